"""The live display of a run: a table that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from normforge.search.funnel import Fate
from normforge.search.progress import Progress

_REDRAW_SECONDS = 0.25
_LINE_SECONDS = 10.0

_MEANING = {
    Fate.DEGENERATE: "refused by types and dependence alone",
    Fate.DUPLICATE: "the same function as an earlier one",
    Fate.PROBING: "values or gradients not finite on noise",
    Fate.QUALITY: "does not learn in a short training",
    Fate.STABILITY: "gradients explode under attack",
    Fate.FULL: "full training not finite",
    Fate.ERROR: "raised an error",
    Fate.CRASHED: "its worker died",
    Fate.TIMEOUT: "stopped at the time limit",
    Fate.SCORED: "scored: may become a parent",
}


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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
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
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def _clock(self) -> str:
        p = self._progress
        if p.phase == "search":
            left = max(0, round(p.limit - p.elapsed))
            return f"search: {p.drawn} layers, {left // 60}:{left % 60:02d} left"
        return f"{p.phase}: {p.done} of {p.total}"

    def _best(self) -> str:
        best = self._progress.best
        if best is None:
            return "no layer scored yet"
        return f"best #{best.index}: loss {best.loss:.3f}, accuracy {best.accuracy:.1%}: {_short(best.formula)}"

    def _line(self) -> str:
        fates = self._progress.fates
        counts = ", ".join(f"{fates[f]} {f}" for f in Fate if fates[f])
        return f"{self._clock()} | {counts} | {self._best()}" if self._progress.phase == "search" else self._clock()

    def _table(self) -> Group:
        table = Table(title=self._clock(), title_justify="left", box=None, show_header=False)
        table.add_column(justify="right")
        for fate in Fate:
            count = self._progress.fates[fate]
            if count or fate not in (Fate.ERROR, Fate.CRASHED, Fate.TIMEOUT):
                table.add_row(str(count), fate.value, Text(_MEANING[fate], style="dim"))
        return Group(table, Text(self._best()))


def _short(formula: str, width: int = 160) -> str:
    line = formula.replace("\n", " ")
    return line if len(line) <= width else line[: width - 1] + "…"
