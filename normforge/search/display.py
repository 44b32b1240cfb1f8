"""The live display of a run: a table that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from normforge.search.events import Candidate
from normforge.search.funnel import Fate
from normforge.search.progress import Progress

_REDRAW_SECONDS = 0.25
_LINE_SECONDS = 10.0
_PACE_SECONDS = 5.0  # of a session before it has a pace
_LEADERS = 3

MEANING = {
    Fate.DEGENERATE: "refused by types and dependence alone",
    Fate.DUPLICATE: "the same as an earlier one",
    Fate.GATE: "a signal does not keep its size in it",
    Fate.PROBING: "values or gradients not finite on noise",
    Fate.MICRO: "has not begun to learn in the micro training",
    Fate.QUALITY: "does not learn in a short training",
    Fate.STABILITY: "gradients explode under attack",
    Fate.EARLY: "stopped on the way, among the worst on every network",
    Fate.FULL: "full training not finite",
    Fate.ERROR: "raised an error",
    Fate.CRASHED: "its worker died",
    Fate.TIMEOUT: "stopped at the time limit",
    Fate.MEMORY: "stopped at the memory limit",
    Fate.PASSED: "came through a rung, not promoted: may become a parent",
    Fate.SCORED: "scored: may become a parent",
}
# Shown when there are any.
_RARE = (
    Fate.GATE,
    Fate.MICRO,
    Fate.EARLY,
    Fate.PASSED,
    Fate.ERROR,
    Fate.CRASHED,
    Fate.TIMEOUT,
    Fate.MEMORY,
)


class Display:
    """Shows a `Progress`; use as a context manager around the run."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, *, force: bool = False) -> None:
        """Show the progress, at most a few times a second (on a terminal) or every ten seconds (elsewhere)."""
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + (_REDRAW_SECONDS if self._live else _LINE_SECONDS)
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            say(self._console, self._line())

    def _clock(self) -> str:
        p = self._progress
        if p.phase != "search":
            return f"{p.phase}: {p.done} of {p.total}"
        of = "" if p.candidates is None else f" of {p.candidates}"
        promoted = f", {p.promoted} promoted" if p.promoted else ""
        eq = "" if p.eq is None else f" of {p.eq:g}"
        pace = f", {p.rate:.0f} an hour" if p.elapsed - p.before[0] >= _PACE_SECONDS else ""
        counts = f"{p.drawn}{of} layers, {p.evaluated} evaluated{promoted}, {p.trained:.1f}{eq} eq trained"
        return f"{p.phase}: {counts}{pace}, {clock(time_left(p))} left"

    def _line(self) -> str:
        p = self._progress
        if p.phase != "search":
            return self._clock()
        counts = ", ".join(f"{p.fates[f]} {f}" for f in Fate if p.fates[f])
        best = [f"best {_leader(leader)}" for leader in leaders(p)[:1]]
        return " | ".join([self._clock(), counts or "no layer drawn", *(best or ["no layer scored yet"])])

    def _table(self) -> Group:
        fates = Table(box=None, show_header=False)
        fates.add_column(justify="right")
        for fate in Fate:
            count = self._progress.fates[fate]
            if count or fate not in _RARE:
                fates.add_row(str(count), fate.value, Text(MEANING[fate], style="dim"))
        best = [Text(_leader(leader)) for leader in leaders(self._progress)]
        return Group(Text(self._clock(), "italic"), fates, *(best or [Text("no layer scored yet")]))


def time_left(p: Progress) -> float:
    """Seconds of search that are left: to the time limit, or to the last candidate if that comes first at this pace."""
    left = max(0.0, p.limit - p.elapsed)
    if p.candidates is not None and p.drawn and p.elapsed > 0:
        left = min(left, max(0, p.candidates - p.drawn) * p.elapsed / p.drawn)
    if p.evaluations is not None and p.evaluated and p.elapsed > 0:
        left = min(left, max(0, p.evaluations - p.evaluated) * p.elapsed / p.evaluated)
    if p.eq is not None and p.trained and p.elapsed > 0:
        left = min(left, max(0.0, p.eq - p.trained) * p.elapsed / p.trained)
    return left


def leaders(p: Progress) -> list[Candidate]:
    """The best of the Pareto front; of those with the same scores, which are most often one layer, the first."""
    distinct: dict[tuple[float, ...], Candidate] = {}
    for leader in p.leaders:
        distinct.setdefault(tuple(round(s, 6) for s in leader.outcome.scores.values()), leader)
    return list(distinct.values())[:_LEADERS]


def _leader(leader: Candidate) -> str:
    scores = ", ".join(f"{name} {score:.3f}" for name, score in leader.outcome.scores.items())
    return f"#{leader.index}: {scores}: {short(plain(leader.formula))}"


def clock(seconds: float) -> str:
    """A time as text: `4:05`, `1:02:30`."""
    if math.isinf(seconds):
        return "?"
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def short(formula: str, width: int = 160) -> str:
    """A text in one line, and not a long one."""
    text = " ".join(formula.split("\n"))
    return text if len(text) <= width else text[: width - 1] + "…"


def plain(text: str) -> str:
    """A text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: no markup, no control characters, no line breaks of the console's own."""
    console.print(Text(plain(text), style), soft_wrap=True, highlight=False)
