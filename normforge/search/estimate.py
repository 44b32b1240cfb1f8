"""The estimate of a run: a few real candidates are drawn and evaluated, and their cost is scaled to the budget."""

from __future__ import annotations

import json
import operator
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from normforge.errors import RunError
from normforge.ir.graph import Graph
from normforge.ir.layers import layers
from normforge.search import space
from normforge.search.config import Config
from normforge.search.filters import Filters
from normforge.search.funnel import Fate, Outcome, formula
from normforge.search.space import SearchSpace
from normforge.search.tasks import WORK, Task
from normforge.search.workers import open_pool, run_all
from normforge.streams import stream

_DRAWS = 5000  # without a new layer, after which there are no more: of the paper's space, one in 24 is new
_ROW_BYTES = 1.3  # of the store for a byte of an event's JSON, its indices counted: bench/search.py measured 1.29


@dataclass
class Estimate:
    """An estimate of a run, measured on one worker with nothing else at work.

    Attributes:
        drawn: layers drawn to find the sample.
        draw_seconds: of one draw with its filters.
        sample: outcomes of random candidates that came to the stages with numbers.
        known: outcomes of bn-relu, which goes through all stages, by rung of the ladder, "" without one,
            and of the full training in any case.
        event_bytes: of a stored candidate, by whether it came to the stages with numbers.
    """

    config: Config
    drawn: int
    draw_seconds: float
    sample: list[Outcome]
    known: dict[str, Outcome]
    event_bytes: dict[bool, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of drawn layers that come to the stages with numbers."""
        return len(self.sample) / self.drawn

    @property
    def seconds(self) -> float:
        """Seconds of a worker for a random candidate, promotions included."""
        limit = self.config.workers.time_limit
        first = statistics.fmean(limit if o.fate is Fate.TIMEOUT else sum(o.seconds.values()) for o in self.sample)
        return first + sum(share * sum(o.seconds.values()) for share, o in self._promoted)

    @property
    def eq(self) -> float:
        """The trainings of a random candidate, promotions included, in full ones of the first rung."""
        return statistics.fmean(o.trained for o in self.sample) + sum(share * o.trained for share, o in self._promoted)

    @property
    def _stages(self) -> list[Outcome]:
        """The outcomes of bn-relu on the way that layers take."""
        return [self.known[rung] for rung in self.config.ladder.use or ("",)]

    @property
    def _promoted(self) -> list[tuple[float, Outcome]]:
        """The share of candidates that reaches each higher rung, and what bn-relu took there."""
        higher, shares = self._stages[1:], self.config.ladder.promote
        shares = shares * len(higher) if len(shares) == 1 else shares
        return list(zip(accumulate(shares, operator.mul), higher, strict=True)) if higher else []

    @property
    def full_seconds(self) -> float:
        """Seconds of a worker for a layer that comes through all stages."""
        return sum(sum(o.seconds.values()) for o in self._stages)

    @property
    def evaluations(self) -> float:
        """The number of evaluations in the budget, as far as time and counts allow."""
        config = self.config
        by_time = config.budget.minutes * 60 * config.workers.count / self.seconds
        limits = [by_time, config.budget.minutes * 60 * self.share / self.draw_seconds]
        if config.budget.candidates is not None:
            limits.append(config.budget.candidates * self.share)
        if config.budget.trained is not None and self.eq:
            limits.append(config.budget.trained / self.eq)
        if config.budget.evaluations is not None:
            limits.append(config.budget.evaluations)
        return min(limits)

    @property
    def final_seconds(self) -> float:
        """Seconds of re-ranking and comparison, all workers at work; at most, where layers are told apart."""
        final = self.config.final
        trainings = final.candidates + (final.best + len(final.baselines)) * final.seeds
        if final.apart:  # each has a known one nearest to it, which may be among the baselines
            trainings += final.best * final.seeds + 2 * final.best * max(0, final.apart - final.seeds)
        known = self.known.get("full") or self.known[""]  # on a ladder a full training begins from nothing
        training = known.seconds.get("quality", 0.0) + known.seconds["full"]
        return trainings * training * final.longer / self.config.workers.count

    @property
    def memory(self) -> float:
        """Bytes of all workers together."""
        return self.config.workers.count * 2**20 * max(o.peak for o in [*self.sample, *self.known.values()])

    @property
    def disk(self) -> float:
        """Bytes of the store after the search."""
        refused = self.evaluations * (1 / self.share - 1)
        return _ROW_BYTES * (self.evaluations * self.event_bytes[True] + refused * self.event_bytes[False])

    def lines(self) -> list[str]:
        """The estimate as lines of text for people."""
        config, count = self.config, self.config.workers.count
        fates = Counter(o.fate for o in self.sample)
        spent: Counter[str] = Counter()
        for outcome in self._stages:
            spent.update(outcome.seconds)
        search = min(config.budget.minutes * 60, self.evaluations * self.seconds / count)
        return [
            f"{self.drawn} layers drawn at {1 / self.draw_seconds:.0f} a second; "
            f"{self.share:.1%} come through the filters.",
            f"{len(self.sample)} of those evaluated: {', '.join(f'{n} {f}' for f, n in fates.items())}; "
            f"{self.seconds:.1f} s each on average, {self.full_seconds:.1f} s for bn-relu, which comes through "
            f"({', '.join(f'{stage} {s:.1f} s' for stage, s in spent.items())}).",
            f"Search: about {self.evaluations:.0f} evaluations of {self.evaluations / self.share:.0f} layers in "
            f"{_duration(search)} with {count} workers ({3600 * count / self.seconds:.0f} evaluations an hour), "
            f"{self.evaluations * self.eq:.0f} eq trained.",
            f"Re-ranking and comparison: about {_duration(self.final_seconds)}.",
            f"Memory: about {self.memory / 2**30:.1f} GiB in all workers. Disk: about {self.disk / 2**20:.1f} MiB.",
        ]


def estimate(config: Config, sample: int = 8, report: Callable[[str], None] = lambda text: None) -> Estimate:
    """Draw a few candidates, evaluate them, and scale what they cost to the budget.

    Args:
        config: of the run.
        sample: random candidates to evaluate, as many as a search would meet first, or all that there are.
        report: is told what is being done.

    Raises:
        RunError: there are none, or bn-relu itself does not come through the stages.
    """
    drawn, filters = SearchSpace(config.space), Filters(config)
    graphs: list[Graph] = []
    sizes: dict[bool, list[int]] = {True: [], False: []}
    index, last, seconds = 0, 0, 0.0
    while len(graphs) < sample and index - last < _DRAWS:
        start = time.perf_counter()
        genotype = drawn.random(stream(config.seed, "ask", index))
        graph = drawn.to_graph(genotype)
        refused, keys = filters.refuse(graph)
        if index:  # the first one imports what the others use
            seconds += time.perf_counter() - start
        data: dict[str, object] = {"genes": space.to_json(genotype), "parents": []}
        if refused:
            data |= refused.to_json()
        else:
            filters.add(index, keys)
            graphs.append(graph)
            last = index
            data |= keys.stored | {"formula": formula(graph)}
        sizes[refused is None].append(len(json.dumps(data)))
        index += 1
    if not graphs:
        raise RunError(
            f"{index} layers drawn, and none came through the filters: give the space more operations or nodes"
        )
    rungs = config.ladder.use or ("",)
    beside = () if "full" in rungs or not config.ladder.use else ("full",)  # the training of the end
    tasks = [Task(str(i), graph, config, rung=rungs[0]) for i, graph in enumerate(graphs)]
    tasks += [Task(f"bn-relu/{rung}", layers["bn-relu"], config, rung=rung) for rung in (*rungs, *beside)]
    outcomes = _evaluate(config, tasks, report)
    known = dict(zip((*rungs, *beside), outcomes[len(graphs) :], strict=True))
    for outcome in known.values():
        if outcome.fate not in (Fate.PASSED, Fate.SCORED):
            raise RunError(f"bn-relu itself ends at {outcome.fate} ({outcome.reason}): nothing would be found")
    event_bytes = {k: statistics.fmean(v) if v else 0.0 for k, v in sizes.items()}
    event_bytes[True] += statistics.fmean(len(json.dumps(o.to_json())) for o in outcomes)
    return Estimate(config, index, seconds / max(1, index - 1), outcomes[: len(graphs)], known, event_bytes)


def _evaluate(config: Config, tasks: list[Task], report: Callable[[str], None]) -> list[Outcome]:
    pool = open_pool(WORK, config.workers.model_copy(update={"count": 1, "on": "local"}))
    try:
        outcomes = []
        for task, outcome in run_all(pool, iter(tasks)):  # in order, since there is one worker
            outcomes.append(outcome)
            name = task.key if task.key.startswith("bn-relu") else f"a random layer: {outcome.fate}"
            took = sum(outcome.seconds.values())
            report(f"{len(outcomes)} of {len(tasks)} evaluated, the last {name.rstrip('/')}, {took:.1f} s")
        return outcomes
    finally:
        pool.stop()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
