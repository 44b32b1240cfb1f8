"""Evolution by tournament with aging (EvoNorm, section 4.3), as ask and tell: no clock, no IO, no hidden state."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import moocore
import numpy as np

from normforge.search.config import Evolution
from normforge.search.space import Genotype, mutate, random_genotype
from normforge.search.streams import stream


@dataclass(frozen=True)
class Member:
    """A scored layer. `scores`: one for each objective, smaller is better."""

    index: int
    genotype: Genotype
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """A layer to try; `parent` is the index of the layer it was mutated from, None for a fresh one."""

    genotype: Genotype
    parent: int | None = None


@dataclass
class TournamentEvolution:
    """Proposals depend on (seed, index) and on what was told before, and on nothing else.

    Attributes:
        rules: window, tournament share and least size, share of fresh layers, attempts at a mutation.
        nodes: drawn nodes of a layer.
        seed: of the run.
        identity: the function of a genotype, by which a mutation that changes nothing is known.
    """

    rules: Evolution
    nodes: int
    seed: int
    identity: Callable[[Genotype], str]
    population: deque[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.population = deque(maxlen=self.rules.window)

    def ask(self, index: int) -> Proposal:
        """The proposal with this index: a fresh layer, or a mutation of a tournament's winner."""
        rng = stream(self.seed, "ask", index)
        if not self.population or rng.random() < self.rules.fresh:
            return Proposal(random_genotype(rng, self.nodes))
        parent = self.winner(rng)
        before = self.identity(parent.genotype)
        child = mutate(rng, parent.genotype)
        for _ in range(self.rules.attempts - 1):
            if self.identity(child) != before:
                break
            child = mutate(rng, parent.genotype)
        return Proposal(child, parent.index)

    def tell(self, member: Member) -> None:
        """Add a scored layer; the oldest leaves when the window is full. Non-finite scores never enter."""
        if all(math.isfinite(s) for s in member.scores):
            self.population.append(member)

    def winner(self, rng: np.random.Generator) -> Member:
        """A random member of the Pareto front of a random subset; with one objective, the best."""
        share = math.ceil(self.rules.tournament * len(self.population))
        size = min(len(self.population), max(share, self.rules.tournament_least))
        drawn = [self.population[i] for i in rng.choice(len(self.population), size, replace=False)]
        first = moocore.is_nondominated([m.scores for m in drawn], keep_weakly=True)
        front = [m for m, keep in zip(drawn, first, strict=True) if keep]
        return front[rng.integers(len(front))]
