"""A surrogate of training: the scores of untrained layers, predicted from how they behave, by a Gaussian process."""

from __future__ import annotations

import warnings
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel

COMPONENTS = 8
"""Principal components of behaviour that the process sees."""

_Array = npt.NDArray[np.floating]


class Surrogate:
    """Ranks layers by the expected improvement on the best score so far.

    Behaviour is known up to a sign, so the process sees principal components in the space of squared cosines, and z
    beside them. No random numbers are drawn.

    Args:
        vectors: behaviour of the trained layers, (n, d), of norm 1; n at least 2.
        z: how a signal changes in each of them, (n,).
        scores: of each, (n,), smaller is better.
    """

    def __init__(self, vectors: _Array, z: _Array, scores: _Array) -> None:
        self._best = float(np.min(scores))
        self._components = KernelPCA(min(COMPONENTS, len(scores) - 1), kernel="poly", degree=2, gamma=1, coef0=0)
        components = self._components.fit_transform(vectors)
        self._sizes = components.std(axis=0).max(), max(float(np.std(z)), 1e-6)
        inputs = self._inputs(components, z)
        kernel = RBF(np.ones(inputs.shape[1]), (0.1, 100.0)) + WhiteKernel(0.1, (1e-4, 1.0))
        self._process = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():  # a length at its bound is a component that says nothing
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(inputs, scores)

    def expected_improvement(self, vectors: _Array, z: _Array) -> _Array:
        """Of each layer, (m,), in units of the score (Jones, Schonlau & Welch 1998, equation 15).

        Args:
            vectors: behaviour, (m, d).
            z: (m,).
        """
        inputs = self._inputs(self._components.transform(vectors), z)
        mean, deviation = self._process.predict(inputs, return_std=True)
        deviation = np.maximum(deviation, 1e-12)
        gain, normal = self._best - mean, NormalDist()
        below, density = ([f(float(u)) for u in gain / deviation] for f in (normal.cdf, normal.pdf))
        return np.asarray(gain * below + deviation * density)

    def rank(self, vectors: _Array, z: _Array) -> list[int]:
        """All layers, the most promising first; equal ones in their own order. Arguments as above."""
        return list(map(int, np.argsort(-self.expected_improvement(vectors, z), kind="stable")))

    def _inputs(self, components: _Array, z: _Array) -> _Array:
        """Components keep their sizes to each other; the largest, and z, deviate by about 1."""
        size, spread = self._sizes
        return np.column_stack([components / size, np.asarray(z) / spread])
