"""Evolution by tournament with aging (EvoNorm, section 4.3), as ask and tell: no clock, no IO, no hidden state.

Layers that behave alike may be held to one niche (`Evolution.niche`): of each niche in the window only the best can be
a parent, which is clearing with capacity one (Pétrowski, "A clearing procedure as a niching method for genetic
algorithms", 1996). The idea of MAP-Elites, that a niche keeps its best, is used and pyribs is not: its archives are
grids over a few measures or Euclidean neighbourhoods, and an elite that a lucky score made never leaves them, while
here niches are cosines in many dimensions, and aging frees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from normforge.errors import OptionError
from normforge.search import moves
from normforge.search.config import Evolution
from normforge.search.objectives import traffic
from normforge.search.selection import RANKING, WINNER, nsga2_ranking
from normforge.search.space import Genotype, SearchSpace
from normforge.streams import stream


@dataclass(frozen=True)
class Member:
    """A scored layer.

    Attributes:
        index: of the candidate.
        genotype: of the layer.
        scores: one for each objective of the rung, smaller is better.
        rung: number of the highest rung of the ladder that it came through; 0 without a ladder.
    """

    index: int
    genotype: Genotype
    scores: tuple[float, ...]
    rung: int = 0


@dataclass(frozen=True)
class Proposal:
    """A layer to try; `parents` are the indices of the layers it was made from, none for a fresh one."""

    genotype: Genotype
    parents: tuple[int, ...] = ()


@dataclass
class TournamentEvolution:
    """Evolution by tournament: proposals depend on (seed, index) and on what was told before, and on nothing else.

    Attributes:
        rules: how layers are drawn and mutated, and who can be a parent.
        space: what is drawn from.
        seed: of the run.
        identity: the function of a genotype, by which a mutation that changes nothing is known.
        start: proposed first, in this order.
        behaviour: of a layer, a unit vector, or None where it has none, which is a niche of its own; needed where
            `rules.niche` is above 0. Cosines count by absolute value, since gamma may be negative.
        population: the most recent scored layers, the oldest first.

    Raises:
        OptionError: niches without `behaviour`.
    """

    rules: Evolution
    space: SearchSpace
    seed: int
    identity: Callable[[Genotype], str]
    start: Sequence[Genotype] = ()
    behaviour: Callable[[Genotype], np.ndarray | None] | None = None
    population: list[Member] = field(init=False, default_factory=list)
    _scored: int = field(init=False, default=0)  # layers that were told, those that have left included
    _vectors: list[np.ndarray | None] = field(init=False, default_factory=list)  # of the population
    _cost: Callable[[Genotype], tuple[float, int]] = field(init=False)
    _parents: list[Member] | None = field(init=False, default=None)  # None where they are to be found anew

    def __post_init__(self) -> None:
        if self.rules.niche and self.behaviour is None:
            raise OptionError("evolution.niche needs to know how a layer behaves")
        self._cost = cache(lambda genotype: (traffic(self.space.to_graph(genotype)), len(moves.active(genotype))))

    def ask(self, index: int) -> Proposal:
        """The proposal with this index: one to start with, a fresh layer, or a child of a tournament's winner."""
        rng = stream(self.seed, "ask", index)
        if index < len(self.start):
            return Proposal(self.start[index])
        if self._scored < max(1, self.rules.first) or rng.random() < self.rules.fresh:
            grown = self.rules.draws == "grown"
            return Proposal(moves.grown(rng, self.space) if grown else self.space.random(rng))
        parents = [self.winner(rng)]
        grafted = self.rules.grafts > 0 and rng.random() < self.rules.grafts
        if grafted or rng.random() < self.rules.crossover:
            parents.append(self.winner(rng))
        known = {self.identity(p.genotype) for p in parents}
        for _ in range(self.rules.attempts):
            child = self._child(rng, [p.genotype for p in parents], grafted)
            if self.identity(child) not in known:
                break
        return Proposal(child, tuple(p.index for p in parents))

    def tell(self, member: Member) -> None:
        """Add a scored layer; when the window is full the oldest leaves, or under NSGA-II the last of its order.

        A layer that came through a higher rung takes the place that it had, if it has not left; its age stays.
        Non-finite scores never enter.
        """
        if not all(math.isfinite(s) for s in member.scores):
            return
        self._parents = None
        if member.rung:
            self.population = [member if m.index == member.index else m for m in self.population]
            return
        self._scored += 1
        self.population.append(member)
        if self.rules.niche and self.behaviour:
            self._vectors.append(self.behaviour(member.genotype))
        if len(self.population) > self.rules.window:
            oldest = 0
            if self.rules.selection == "nsga2":
                lowest = min(m.rung for m in self.population)
                low = [i for i, m in enumerate(self.population) if m.rung == lowest]
                oldest = low[nsga2_ranking([self.population[i].scores for i in low])[-1]]
            del self.population[oldest], self._vectors[oldest : oldest + 1]

    def parents(self) -> list[Member]:
        """The layers that tournaments are held among: of each niche the best; without niches, the population."""
        if self._parents is None:
            self._parents = self._cleared() if self.rules.niche else self.population
        return self._parents

    def winner(self, rng: np.random.Generator) -> Member:
        """The winner of a tournament among a random subset of those that can be parents.

        A layer that came through a higher rung beats those that did not, whatever their scores: it was among the best
        of each rung below, and was measured better. Layers on one rung compare by its scores. So there is one order
        of all members; a layer that a higher rung refused keeps its place on the rung below.
        """
        among = self.parents()
        share = math.ceil(self.rules.tournament * len(among))
        size = min(len(among), max(share, self.rules.tournament_least))
        drawn = [among[i] for i in rng.choice(len(among), size, replace=False)]
        highest = max(m.rung for m in drawn)
        drawn = [m for m in drawn if m.rung == highest]
        best = drawn[WINNER[self.rules.selection]([m.scores for m in drawn], rng)]
        return self._cheapest(best, drawn)

    def _child(self, rng: np.random.Generator, parents: Sequence[Genotype], grafted: bool) -> Genotype:
        """A graft, or a mutation of the parent or of the mix of both: one gene drawn anew, or one move and perhaps
        further ones."""
        if grafted and (child := moves.graft(rng, self.space, *parents)):
            return child
        mixed = self.space.crossover(rng, *parents) if parents[1:] and not grafted else parents[0]
        how = self.rules.mutation
        if how == "both":
            how = "moves" if rng.random() < 0.5 else "redraw"
        if how == "redraw":
            return self.space.mutate(rng, mixed)
        child = moves.move(rng, self.space, mixed)
        while rng.random() < self.rules.further:
            child = moves.move(rng, self.space, child)
        return child

    def _cheapest(self, best: Member, others: Sequence[Member]) -> Member:
        """Of the layers on its rung that are level with the best in every score the one of least memory traffic, then
        of fewest nodes."""
        if not self.rules.ties:
            return best
        limits = [s + self.rules.ties for s in best.scores]
        on_rung = (m for m in others if m.rung == best.rung)
        level = (m for m in on_rung if all(s <= limit for s, limit in zip(m.scores, limits, strict=True)))
        return min([best, *level], key=lambda m: self._cost(m.genotype))

    def _ranked(self) -> list[int]:
        """The population by rung, the highest first, and on a rung by the rule of selection."""
        ranked: list[int] = []
        for rung in sorted({m.rung for m in self.population}, reverse=True):
            on_rung = [i for i, m in enumerate(self.population) if m.rung == rung]
            ranking = RANKING[self.rules.selection]([self.population[i].scores for i in on_rung])
            ranked += [on_rung[k] for k in ranking]
        return ranked

    def _cleared(self) -> list[Member]:
        """The best layer of the window with all that behave alike is a niche; then the best of the rest, and so on."""
        left = self._ranked()
        length = max((v.size for v in self._vectors if v is not None), default=1)
        vectors = np.array([np.zeros(length) if v is None else v for v in self._vectors], dtype=np.float64)
        kept = []
        while left:
            alike = np.abs(vectors[left] @ vectors[left[0]]) >= self.rules.niche
            alike[0] = True  # also where it has no behaviour, or rounding left its norm below 1
            niche = [i for i, same in zip(left, alike, strict=True) if same]
            kept.append(self._cheapest(self.population[left[0]], [self.population[i] for i in niche]))
            left = [i for i, same in zip(left, alike, strict=True) if not same]
        return kept
