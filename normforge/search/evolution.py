"""Evolution by tournament with aging (EvoNorm, section 4.3), as ask and tell: no clock, no IO, no hidden state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from normforge.search.config import Evolution
from normforge.search.selection import WINNER, nsga2_ranking
from normforge.search.space import Genotype, SearchSpace
from normforge.streams import stream


@dataclass(frozen=True)
class Member:
    """A scored layer. `scores`: one for each objective, smaller is better."""

    index: int
    genotype: Genotype
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """A layer to try; `parents` are the indices of the layers it was made from, none for a fresh one."""

    genotype: Genotype
    parents: tuple[int, ...] = ()


@dataclass
class TournamentEvolution:
    """Evolution by tournament: proposals depend on (seed, index) and on what was told before, and on nothing else.

    Attributes:
        rules: selection, window, tournament, shares of fresh layers and of crossover, attempts at a mutation.
        space: what is drawn from.
        seed: of the run.
        identity: the function of a genotype, by which a mutation that changes nothing is known.
        start: proposed first, in this order.
        population: scored layers that can be parents, the oldest first.
    """

    rules: Evolution
    space: SearchSpace
    seed: int
    identity: Callable[[Genotype], str]
    start: Sequence[Genotype] = ()
    population: list[Member] = field(init=False, default_factory=list)

    def ask(self, index: int) -> Proposal:
        """The proposal with this index: one to start with, a fresh layer, or a child of a tournament's winner."""
        rng = stream(self.seed, "ask", index)
        if index < len(self.start):
            return Proposal(self.start[index])
        if not self.population or rng.random() < self.rules.fresh:
            return Proposal(self.space.random(rng))
        parents = [self.winner(rng)]
        if rng.random() < self.rules.crossover:
            parents.append(self.winner(rng))
        known = {self.identity(p.genotype) for p in parents}
        for _ in range(self.rules.attempts):
            mixed = self.space.crossover(rng, *(p.genotype for p in parents)) if parents[1:] else parents[0].genotype
            child = self.space.mutate(rng, mixed)
            if self.identity(child) not in known:
                break
        return Proposal(child, tuple(p.index for p in parents))

    def tell(self, member: Member) -> None:
        """Add a scored layer; when the window is full the oldest leaves, or under NSGA-II the last of its order.

        Non-finite scores never enter.
        """
        if not all(math.isfinite(s) for s in member.scores):
            return
        self.population.append(member)
        if len(self.population) > self.rules.window:
            oldest = 0
            if self.rules.selection == "nsga2":
                oldest = nsga2_ranking([m.scores for m in self.population])[-1]
            del self.population[oldest]

    def winner(self, rng: np.random.Generator) -> Member:
        """The winner of a tournament among a random subset of the population."""
        share = math.ceil(self.rules.tournament * len(self.population))
        size = min(len(self.population), max(share, self.rules.tournament_least))
        drawn = [self.population[i] for i in rng.choice(len(self.population), size, replace=False)]
        chosen: Member = drawn[WINNER[self.rules.selection]([m.scores for m in drawn], rng)]
        return chosen
