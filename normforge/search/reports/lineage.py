"""The lineage of a candidate: its parents back to a fresh layer, and what each step changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normforge.ir.graph import Graph
from normforge.passes import simplify
from normforge.search import events, results
from normforge.search.config import Config
from normforge.search.display import MEANING, clock, plain, say, short
from normforge.search.events import Candidate, Reranked
from normforge.search.funnel import UNDECIDED, Fate, Outcome, formula
from normforge.search.reports.summary import summarise
from normforge.search.space import INITIAL, Gene, Genotype, SearchSpace
from normforge.search.store import Store

BEST = 10
_WORDS = re.compile(r"\w+(?:\.\w+)?(?:\[[^\]]*\])?\s*|.\s*", re.DOTALL)
_MOST_WORDS = 4000  # the time that a comparison takes grows with the square
_STYLE = {"-": "red strike", "+": "green", "=": ""}
_INITIAL_NAMES = ("x", "0", "v0", "v1")


def ancestors(store: Store, index: int) -> list[Candidate]:
    """A candidate, its parents, theirs, and so on, each once, the nearest first; empty where there is none."""

    return list(ancestry(index, lambda i: events.candidate(store, i)))


def ancestry(index: int, find: Callable[[int], Candidate | None]) -> Iterator[Candidate]:
    """The ancestors of a candidate, as `ancestors` gives them, of candidates that are found by number."""
    waiting, known = [index], {index}
    while waiting:
        generation, waiting = waiting, []
        for i in generation:
            if candidate := find(i):
                yield candidate
                new = [p for p in dict.fromkeys(candidate.parents) if p not in known]
                known.update(new)
                waiting += new


def line(candidates: list[Candidate]) -> list[Candidate]:
    """The line of first parents among ancestors: where two parents were mixed, the one whose first genes stayed."""
    by_index = {c.index: c for c in candidates}
    found = candidates[:1]
    while found and (parent := by_index.get(next(iter(found[-1].parents), -1))):
        found.append(parent)
    return found


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """The changes of a formula, word by word: ('=', kept), ('-', gone) and ('+', new) pieces, in order."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if len(old) + len(new) > _MOST_WORDS:
        return [("-", before), ("+", after)]
    pieces: list[tuple[str, str]] = []
    matcher = SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        parts = [("=", new[k:m])] if tag == "equal" else [("-", old[i:j]), ("+", new[k:m])]
        pieces += [(mark, "".join(words)) for mark, words in parts if words]
    return pieces


def gene_changes(parent: Genotype, child: Genotype, config: Config) -> list[str]:
    """The nodes that differ: `n9: sigmoid(n5) → tanh(v0)`; nodes are numbered as in the search space.

    None in a run with moves or grafts, which number nodes anew: formulas say what they did.
    """
    if config.evolution.mutation != "redraw" or config.evolution.grafts:
        return []
    pairs = enumerate(zip(parent, child, strict=False), INITIAL)
    return [f"n{k}: {_gene(old)} → {_gene(new)}" for k, (old, new) in pairs if old != new]


def _gene(gene: Gene) -> str:
    names = (_INITIAL_NAMES[i] if i < INITIAL else f"n{i}" for i in gene.inputs)
    return f"{gene.primitive}({', '.join(names)})"


def origin(candidate: Candidate, config: Config) -> str:
    """The origin of a candidate in words."""
    if candidate.parents:
        how = "mutated from" if len(candidate.parents) == 1 else "made from"
        return f"{how} {' and '.join(f'#{p}' for p in candidate.parents)}"
    return "given by evolution.start" if candidate.index < len(config.evolution.start) else "fresh"


def show(reference: str, console: Console) -> None:
    """Print what became of `DIRECTORY#17` or `DIRECTORY#best` and where it came from; or the best of a DIRECTORY.

    Raises:
        UnknownNameError: the run has no such candidate.
        RunError: the directory holds no readable run, or none of its layers is scored yet.
    """
    if Path(reference).is_dir():
        _show_best(Path(reference), console)
        return
    directory, which = results.split(reference)
    store = Store(directory)
    try:
        config = results.settings(store)
        drawn = SearchSpace(config.space)
        index = results.candidate_of(store, which, drawn).index
        found = ancestors(store, index)
        again = events.find(store, Reranked, f"#{index}")
    finally:
        store.close()
    candidate = found[0]
    graph = drawn.to_graph(candidate.genotype)
    fate = candidate.outcome.fate
    meaning = "" if fate is Fate.SCORED else f": {MEANING[fate]}"
    say(console, f"#{index}: {fate}{meaning}", "bold")
    if candidate.outcome.reason:
        say(console, f"  {candidate.outcome.reason}")
    say(console, f"  {origin(candidate, config)}, after {clock(candidate.elapsed)} of search")
    say(console, f"\ndrawn as     {formula(graph)}\nsimplified   {_simplified(graph)}\n")
    _show_numbers(console, candidate.outcome, config, again.outcome if again else None)
    if candidate.outcome.seconds:
        spent = ", ".join(f"{stage} {s:.3g}" for stage, s in candidate.outcome.seconds.items())
        say(console, f"seconds      {spent}")
    _show_line(console, found, config, drawn)
    name = f'"{directory}#{index}"'
    say(console, f"\nnext: normforge check {name}; in Python nf.compile(nf.load({name}), channels=64)", "dim")
    say(console, f"as a file that needs torch alone: normforge export {name} layer.py", "dim")


def _show_best(directory: Path, console: Console) -> None:
    store = Store(directory)
    try:
        summary = summarise(store)
    finally:
        store.close()
    best, drawn = summary.best(BEST), SearchSpace(summary.config.space)
    say(console, f"{summary.drawn} layers drawn, {len(summary.ranked)} scored.")
    if not best:
        return
    table = Table("layer", *summary.objectives, "formula", box=None, pad_edge=False)
    room = console.width - 14 * (1 + len(summary.objectives))  # so that no cell takes two lines
    for layer in best:
        scores = (f"{s:.4g}" for s in layer.outcome.scores.values())
        table.add_row(layer.name, *scores, Text(short(plain(formula(drawn.to_graph(layer.genotype))), max(20, room))))
    console.print(table)
    say(console, f'\nnext: normforge show "{directory}#{best[0].index}"', "dim")


def _show_numbers(console: Console, outcome: Outcome, config: Config, again: Outcome | None) -> None:
    """By objective, and by network as far as it came."""
    by_name = {
        "score": outcome.scores,
        "validation loss": outcome.loss,
        "validation accuracy": outcome.accuracy,
        "largest gradient norm under attack": outcome.gradient,
        "held-out loss when ranked again": again.holdout if again else {},
    }
    known = ("micro", *config.networks.use, *config.objectives.also)
    columns = [n for n in known if any(n in v for v in by_name.values())]
    if not columns:
        return
    table = Table("", *columns, box=None, pad_edge=False)
    for name, values in by_name.items():
        if values:
            table.add_row(name, *(f"{values.get(n, math.nan):.4g}" if n in values else "-" for n in columns))
    console.print(table)
    console.print()


def _show_line(console: Console, found: list[Candidate], config: Config, drawn: SearchSpace) -> None:
    steps = line(found)
    if len(steps) == 1:
        return
    say(console, "\nback to its first ancestor; [-gone-] and {+new+} since the parent:", "bold")
    if further := len(found) - len(steps):
        say(console, f"along first parents; {further} further ancestors came in as second parents", "dim")
    formulas = [c.formula or formula(drawn.to_graph(c.genotype)) for c in steps]
    for k, step in enumerate(steps):
        scores = ", ".join(f"{s:.4g}" for s in step.outcome.scores.values())
        fate = step.outcome.fate if step.outcome.fate is not Fate.SCORED else f"scored {scores}"
        say(console, f"  #{step.index}  {fate}, {origin(step, config)}")
        if k + 1 == len(steps):
            say(console, f"      {formulas[k]}")
            break
        if genes := gene_changes(steps[k + 1].genotype, step.genotype, config):
            say(console, f"      {'; '.join(genes)}", "dim")
        text = Text("      ")
        for mark, words in changes(formulas[k + 1], formulas[k]):
            marked = words if mark == "=" else f"[-{words}-]" if mark == "-" else f"{{+{words}+}}"
            text.append(plain(marked), _STYLE[mark])
        console.print(text, soft_wrap=True)


def _simplified(graph: Graph) -> str:
    try:
        return formula(simplify(graph))
    except UNDECIDED as e:  # a drawn layer is arbitrary input
        return f"cannot be said ({type(e).__name__})"
