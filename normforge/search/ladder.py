"""A ladder of fidelities: successive halving without waiting, as in ASHA (Li et al., arXiv 1810.05934, algorithm 2).

Every layer is trained on the first and cheapest rung; of those that come through a rung the best share goes on to the
next. Refused layers are not counted: where most of what is drawn never learns, a share of all results would promote
whatever does, and the rung would choose nothing. ASHA decides on whatever has arrived; here promotions are decided on
what was told in turn, so a run goes the same way with any number of workers, and a resumed one decides again as it did.
"""

from __future__ import annotations

from collections.abc import Sequence

from normforge.search.selection import mean_ranks


class Ladder:
    """The results of each rung, and who is promoted next.

    Args:
        rungs: names, the cheapest first; one for a search without a ladder, from which nothing is promoted.
        shares: of the layers that came through each rung but the last that go on; one value holds for all.
    """

    def __init__(self, rungs: Sequence[str], shares: Sequence[float]) -> None:
        self.rungs = tuple(rungs)
        below = len(rungs) - 1
        self._shares = tuple(shares) * below if len(shares) == 1 else tuple(shares)
        self._passed: list[dict[int, tuple[float, ...]]] = [{} for _ in rungs]
        self._promoted: list[set[int]] = [set() for _ in rungs]
        self._settled = True  # nothing was told since `next` last gave None

    def tell(self, rung: int, index: int, scores: tuple[float, ...]) -> None:
        """Add a layer that came through a rung, by its number, with its scores there; smaller is better."""
        self._passed[rung][index] = scores
        self._settled = False

    def next(self) -> tuple[int, str] | None:
        """The layer that is promoted now and the rung that it is promoted to; None while there is none.

        The highest rung with a layer among the best share of it, by mean rank, that was not promoted yet; of
        several such layers the best, of equal ones the oldest.
        """
        if self._settled:
            return None
        for k in reversed(range(len(self.rungs) - 1)):
            for index in self._best(k, int(self._shares[k] * len(self._passed[k]))):
                if index not in self._promoted[k]:
                    self._promoted[k].add(index)
                    return index, self.rungs[k + 1]
        self._settled = True
        return None

    def _best(self, rung: int, count: int) -> list[int]:
        passed = self._passed[rung]
        if not count or not passed:
            return []
        ranks = mean_ranks(list(passed.values()))
        return [index for _, index in sorted(zip(ranks.tolist(), passed, strict=True))][:count]
