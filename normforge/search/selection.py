"""Selection by several scores at once: who wins a tournament, and who stays in the population. Smaller is better.

Scores that are not finite never come here: `TournamentEvolution.tell` refuses them, since libraries of
multi-objective ranking put a row of NaN into the first front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import moocore
import numpy as np

Scores = Sequence[Sequence[float]]


def front(scores: Scores) -> list[int]:
    """The rows that no other row is better than in one score and at least as good in all; equal rows all stay."""
    return np.flatnonzero(moocore.is_nondominated(np.asarray(scores, dtype=float), keep_weakly=True)).tolist()


def mean_ranks(scores: Scores) -> np.ndarray:
    """The rank of each row under each score, ties sharing the middle, averaged over scores.

    Ranks, since the losses of different networks differ in size and spread.
    """
    values = np.asarray(scores, dtype=float)
    ranks = np.empty_like(values)
    for k, column in enumerate(values.T):
        ordered = np.sort(column)
        below, up_to = (np.searchsorted(ordered, column, side) for side in ("left", "right"))
        ranks[:, k] = (below + up_to - 1) / 2
    return np.asarray(ranks.mean(axis=1))


def crowding(scores: Scores) -> np.ndarray:
    """Crowding distance of each row within its front (NSGA-II, Deb et al. 2002, section III-B): the larger, the
    lonelier; infinite at the ends."""
    values = np.asarray(scores, dtype=float)
    distance = np.zeros(len(values))
    for column in values.T:
        by_value = np.argsort(column, kind="stable")
        sorted_ = column[by_value]
        span = sorted_[-1] - sorted_[0]
        distance[by_value[[0, -1]]] = np.inf
        if span > 0:
            distance[by_value[1:-1]] += (sorted_[2:] - sorted_[:-2]) / span
    return distance


def nsga2_ranking(scores: Scores) -> list[int]:
    """The ranking of NSGA-II: all rows by front, within a front the loneliest first; equal ones as they stand."""
    values = np.asarray(scores, dtype=float)
    fronts = np.asarray(moocore.pareto_rank(values))
    lonely = np.zeros(len(values))
    for f in np.unique(fronts):
        lonely[fronts == f] = crowding(values[fronts == f])
    return list(map(int, np.lexsort((-lonely, fronts))))


def best_first(scores: Scores) -> list[int]:
    """The ranking in which a run reports its layers: by Pareto front and within a front by mean rank."""
    if not len(scores):
        return []
    fronts = np.asarray(moocore.pareto_rank(np.asarray(scores, dtype=float)))
    return list(map(int, np.lexsort((mean_ranks(scores), fronts))))


def _pareto(scores: Scores, rng: np.random.Generator) -> int:
    members = front(scores)
    return members[rng.integers(len(members))]


# The winner of a tournament, by rule.
WINNER: dict[str, Callable[[Scores, np.random.Generator], int]] = {
    "pareto": _pareto,
    "average": lambda scores, rng: int(np.argmin(mean_ranks(scores))),
    "first": lambda scores, rng: min(range(len(scores)), key=lambda i: scores[i][0]),
    "nsga2": lambda scores, rng: nsga2_ranking(scores)[0],
}

# The ranking of all layers, the likeliest winner first, by rule.
RANKING: dict[str, Callable[[Scores], list[int]]] = {
    "pareto": best_first,
    "average": lambda scores: list(map(int, np.argsort(mean_ranks(scores), kind="stable"))),
    "first": lambda scores: sorted(range(len(scores)), key=lambda i: scores[i][0]),
    "nsga2": nsga2_ranking,
}
