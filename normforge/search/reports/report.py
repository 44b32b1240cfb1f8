"""The end of a run, for people: text for the terminal, a picture, and a page."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normforge.search.display import clock, plain, say, short
from normforge.search.funnel import Fate
from normforge.search.reports.summary import Summary, plus_minus, summary_of
from normforge.search.results import verdicts

PLOT = "search.png"
_FRONT = 10
_BAR = 24


def report(directory: Path, console: Console, *, html: bool = True) -> None:
    """Print what a run has found, and write `search.png` and `report.html` into its directory, finished or not.

    Args:
        directory: of the run.
        console: to print on.
        html: False leaves out the page.

    Raises:
        RunError: the directory holds no readable run, or cannot be written to.
    """
    from normforge.search.reports import html_page
    from normforge.search.reports.plots import picture

    summary = summary_of(directory)
    _print_search(console, summary)
    if summary.rows:
        _print_comparison(console, summary)
    picture(summary, directory / PLOT)
    say(console, f"Plot: {directory / PLOT}")
    if html:
        html_page.write(summary, directory / html_page.FILE)
        say(console, f"Page: {directory / html_page.FILE}")


def print_so_far(directory: Path, console: Console) -> None:
    """Print what an interrupted run has found, and write nothing.

    Raises:
        RunError: the directory holds no readable run.
    """
    _print_search(console, summary_of(directory))


def _print_search(console: Console, summary: Summary) -> None:
    _print_funnel(console, summary)
    if not summary.ranked:
        way = "ladder" if summary.config.ladder.use else "funnel"
        say(console, f"No layer came through the {way}: give the search more minutes (--budget-minutes).")
    else:
        _print_best(console, summary)
        best = next((row.name for row in summary.rows if row.found), summary.ranked[0].name)
        say(console, f'next: normforge show "{summary.directory}{best}"', "dim")


def _print_funnel(console: Console, summary: Summary) -> None:
    evaluated, scored = len(summary.evaluated), summary.fates[Fate.SCORED]
    trained = ""
    if summary.trained:  # a run of an earlier version did not count it
        what = "a layer's way up the first rung" if summary.config.ladder.use else "a layer's full training"
        trained = f" {summary.trained:.1f} eq trained in {clock(summary.seconds)} of workers; 1 eq is {what}."
    say(
        console,
        f"{summary.drawn} layers drawn in {clock(summary.elapsed)} of search, {summary.rate(summary.drawn):.0f} an "
        f"hour; {evaluated} evaluated, {summary.rate(evaluated):.0f} an hour; {scored} scored.{trained}",
    )
    table = Table("ended as", "layers", "share", "left", "", "seconds", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    table.columns[5].justify = "right"
    for step in summary.funnel:
        share, left = step.ended / summary.drawn, math.ceil(_BAR * step.left / summary.drawn)
        seconds = "" if step.seconds is None else f"{step.seconds:.0f}"
        table.add_row(step.fate, str(step.ended), f"{share:.1%}", str(step.left), "█" * left, seconds)
    if scored:
        table.add_row("scored", str(scored), f"{scored / summary.drawn:.1%}", style="bold")
    console.print(table)
    spent = ", ".join(f"{stage} {cost.seconds:.0f} s" for stage, cost in summary.costs.items())
    say(console, f"Time by stage, all workers together: {spent or 'none'}.")


def _print_best(console: Console, summary: Summary) -> None:
    if len(summary.objectives) == 1:
        best = summary.ranked[0]
        (score,) = best.outcome.scores.values()
        what = f"validation {summary.config.objectives.score}"
        text = f"Best of the search: {best.name}, {what} {score:.3f}: {short(best.formula)}"
        say(console, text if summary.rows else f"{text}\nNot compared with known layers yet.")
        return
    front = summary.front
    title = f"Pareto front: {len(front)} layer{'' if len(front) == 1 else 's'}" + (
        f", the best {_FRONT} by mean rank" if len(front) > _FRONT else ""
    )
    table = Table("layer", *summary.objectives, "formula", title=title, title_justify="left")
    for member, _ in front[:_FRONT]:
        scores = (f"{s:.3f}" for s in member.outcome.scores.values())
        table.add_row(member.name, *scores, Text(short(plain(member.formula), 400)))
    console.print(table)
    if not summary.rows:
        say(console, "Not compared with known layers yet.")


def _print_comparison(console: Console, summary: Summary) -> None:
    """A table a network, since the columns of several would not fit a terminal."""
    for network in summary.config.networks.use:
        title = f"{network}: trained alike; mean ± deviation over trainings that did not fail"
        table = Table(title=title, title_justify="left")
        for name in ("layer", "validation loss", "validation acc.", "test acc.", "failed"):
            table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
        for row in summary.rows:
            cells = (plus_minus(row, what, network) for what in ("loss", "accuracy", "test"))
            failed = f"{row.failures(network)}/{len(row.outcomes)}"
            table.add_row(Text(row.name), *cells, failed, style="bold" if row.found else None)
        console.print(table)
    for row in summary.rows:
        say(console, f"  {row.name:11} {row.formula}")
    for verdict in verdicts(summary.rows, summary.config.networks.use):
        say(console, f"  {verdict}")
