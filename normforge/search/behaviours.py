"""The behaviours of a run's layers, searched for the nearest: exact, and fast among a hundred thousand.

Every vector is kept whole, and as its projection on the few directions along which vectors differ most, with the norm
of what the projection leaves out. For vectors u and v with projections p, q and remainders of norm r, s,

    |u·v| <= |p·q| + r·s        (Cauchy and Schwarz)

so whatever the directions are, only vectors whose bound reaches what is asked for can be near enough; of those the
cosine is computed. The directions are the principal components of what is stored, found anew whenever that has doubled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from normforge.probing.behaviour import LENGTH, Vector, cosines

DIRECTIONS = 12
FEWEST = 256  # vectors below which all are compared
SAMPLE = 4096  # vectors that directions are found from
SLACK = 1e-5  # above the rounding of float32 in a bound


class Behaviours:
    """Vectors of `normforge.probing.behaviour`, each with the number of its candidate."""

    def __init__(self) -> None:
        self._count = 0
        self._candidates = np.empty(FEWEST, np.int64)
        self._vectors = np.empty((FEWEST, LENGTH), np.float32)
        self._directions: npt.NDArray[np.float64] | None = None  # (LENGTH, DIRECTIONS), orthonormal
        # One row a direction and the remainders last, so that a bound is a sum along rows.
        self._shadows = np.empty((DIRECTIONS + 1, 0), np.float32)

    def __len__(self) -> int:
        return self._count

    def add(self, candidate: int, vector: Vector) -> None:
        """Store a vector (LENGTH,)."""
        if self._count == len(self._vectors):
            self._grow()
        at = self._count
        self._candidates[at], self._vectors[at] = candidate, vector
        if self._directions is not None:
            self._shadows[:, at] = self._shadow(vector[None])[:, 0]
        self._count += 1

    def nearest(self, vector: Vector, least: float) -> tuple[int, float] | None:
        """The stored vector with the largest absolute cosine, the first of equals.

        Args:
            vector: (LENGTH,).
            least: a cosine; what is farther away is not looked for.

        Returns:
            Its candidate and the cosine; None where none reaches `least`.
        """
        if self._directions is None:
            near = np.arange(self._count)
        else:
            shadow, shadows = self._shadow(vector[None])[:, 0], self._shadows[:, : self._count]
            # Not by BLAS, whose threads would wait for cores that the workers use.
            bound = np.abs(np.einsum("k,kn->n", shadow[:-1], shadows[:-1]))
            bound += shadow[-1] * shadows[-1]
            near = np.flatnonzero(bound >= least - SLACK)
        if not len(near):
            return None
        found = cosines(self._vectors[near], vector)
        best = int(np.argmax(found))
        return (int(self._candidates[near[best]]), float(found[best])) if found[best] >= least else None

    def _grow(self) -> None:
        """Make room for twice as many, and find the directions anew."""
        more = 2 * self._count
        self._candidates = np.resize(self._candidates, more)
        self._vectors = np.concatenate([self._vectors, np.empty((self._count, LENGTH), np.float32)])
        sample = self._vectors[: self._count : -(-self._count // SAMPLE)].astype(np.float64)
        # Not centred: cosines are of the vectors themselves.
        self._directions = np.linalg.eigh(sample.T @ sample)[1][:, -DIRECTIONS:]
        self._shadows = np.empty((DIRECTIONS + 1, more), np.float32)
        self._shadows[:, : self._count] = self._shadow(self._vectors[: self._count])

    def _shadow(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Projections and remainders (DIRECTIONS + 1, n) of vectors (n, LENGTH)."""
        assert self._directions is not None
        exact = vectors.astype(np.float64)
        projected = exact @ self._directions
        left = np.square(exact).sum(1) - np.square(projected).sum(1)
        return np.concatenate([projected.T, np.sqrt(np.maximum(left, 0.0))[None]]).astype(np.float32)
