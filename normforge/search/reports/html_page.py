"""The report of a run as one HTML page that needs nothing else: it opens from disk and can be sent to others.

Formulas and reasons come from layers and errors, so they are text that nobody vouches for: Jinja escapes what it
prints, candidates travel as JSON in which `<` is escaped, the page's script writes text nodes alone, and the page
forbids the browser any other script and any address.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from normforge import __version__
from normforge.errors import RunError
from normforge.search.config import Config
from normforge.search.display import MEANING, clock, short
from normforge.search.events import Candidate
from normforge.search.funnel import Fate, formula
from normforge.search.reports import plots
from normforge.search.reports.atlas import atlas
from normforge.search.reports.lineage import ancestry, changes, gene_changes, origin
from normforge.search.reports.summary import Summary, plus_minus
from normforge.search.results import verdicts
from normforge.search.space import SearchSpace
from normforge.train.settings import flat

FILE = "report.html"
CAP = 5000  # candidates in the page
ROWS = 50  # of a table that is not the candidates'
BEST = 10
_LONGEST = 2000  # characters of a formula or a reason


def write(summary: Summary, path: Path) -> None:
    """Write the page.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.write_text(render(summary), encoding="utf-8")
    except OSError as e:
        raise RunError(f"the report {path} cannot be written ({e}): make the directory writable") from None


def render(summary: Summary, cap: int = CAP) -> str:
    """The text of the page; at most `cap` of the evaluated candidates are in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("normforge.search.reports")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}  # and in our order
    environment.filters |= {"clock": clock, "short": lambda text: short(text, _LONGEST)}
    script, style = (loader.get_source(environment, f"report.{suffix}")[0] for suffix in ("js", "css"))
    page = environment.get_template("report.html.j2")
    defaults = dict(flat(Config()))
    candidates, drawn = embedded(summary, cap), SearchSpace(summary.config.space)
    return page.render(
        summary=summary,
        version=__version__,
        networks=summary.config.networks.use,
        scored=summary.fates[Fate.SCORED],
        settings=[(k, v, v != defaults.get(k)) for k, v in flat(summary.config)],
        front=summary.front,
        best=[(layer, formula(drawn.to_graph(layer.genotype))) for layer in summary.best(BEST)],
        verdicts=verdicts(summary.rows, summary.config.networks.use),
        rows=ROWS,
        meaning=MEANING,
        plus_minus=plus_minus,
        charts={name: Markup(text) for name, text in _charts(summary)},
        embedded=len(candidates),
        data=_data(summary, candidates),
        script=Markup(script),
        style=Markup(style),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _charts(summary: Summary) -> Iterator[tuple[str, str]]:
    if summary.ranked:
        for k, name in enumerate(summary.objectives):
            label = f"progress {name}"
            yield label, plots.svg(f"progress{k}", label, plots.draw_progress(summary, [name]))
        for k, (x, y) in enumerate(plots.pairs(summary)):
            label = f"front {x} {y}"
            yield label, plots.svg(f"front{k}", label, plots.draw_front(summary, x, y))
    if found := atlas(summary):
        yield "atlas", plots.svg("atlas", "atlas of the trained layers", found.draw, (7.5, 5.2))
    if summary.rows:
        size = (5.5, 1.2 + 0.35 * len(summary.rows))
        yield "comparison", plots.svg("comparison", "comparison", plots.draw_comparison(summary), size)


def embedded(summary: Summary, cap: int = CAP) -> list[Candidate]:
    """The evaluated candidates that the page holds: the best and the most recent in turn, with their ancestors.

    Where crossover makes the ancestors too many, those along first parents alone.
    """
    by_index = {c.index: c for c in summary.evaluated}
    chosen: dict[int, Candidate] = {}

    def missing(index: int) -> Candidate | None:
        return None if index in chosen else by_index.get(index)

    for pick in _in_turn(summary.ranked, reversed(summary.evaluated)):
        room = cap - len(chosen)
        if not room:
            break
        new = list(islice(ancestry(pick.index, missing), room + 1))
        if len(new) > room:
            new = list(islice(_first_parents(pick, missing), room + 1))
        if len(new) <= room:
            chosen |= {c.index: c for c in new}
    return [chosen[i] for i in sorted(chosen)]


def _in_turn(*several: Iterable[Candidate]) -> Iterator[Candidate]:
    return (c for c in chain.from_iterable(zip_longest(*several)) if c is not None)


def _first_parents(candidate: Candidate, find: Any) -> Iterator[Candidate]:
    found = find(candidate.index)
    while found:
        yield found
        found = find(found.parents[0]) if found.parents else None


def _data(summary: Summary, candidates: list[Candidate]) -> dict[str, Any]:
    """What the page's script reads."""
    by_index = {c.index: c for c in candidates}
    ranks = {c.index: rank for rank, c in enumerate(summary.ranked)}
    return {
        "objectives": summary.objectives,
        "networks": summary.config.networks.use,
        "candidates": [
            _candidate(c, by_index.get(c.parents[0]) if c.parents else None, ranks.get(c.index), summary)
            for c in candidates
        ],
    }


def _candidate(c: Candidate, parent: Candidate | None, rank: int | None, summary: Summary) -> dict[str, Any]:
    text = short(c.formula, _LONGEST)
    outcome = c.outcome
    return {
        "index": c.index,
        "rank": rank,
        "parents": c.parents,
        "origin": origin(c, summary.config),
        "fate": outcome.fate,
        "reason": short(outcome.reason, _LONGEST),
        "formula": text,
        "scores": [_rounded(outcome.scores.get(n)) for n in summary.objectives],
        "accuracy": [_rounded(outcome.accuracy.get(n)) for n in summary.config.networks.use],
        "at": clock(c.elapsed),
        "seconds": {stage: _rounded(s) for stage, s in outcome.seconds.items()},
        "genes": gene_changes(parent.genotype, c.genotype, summary.config) if parent else [],
        "changes": changes(short(parent.formula, _LONGEST), text) if parent else [],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
