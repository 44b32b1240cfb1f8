"""What a command found out, as a table for people."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from first.rows import Row, of, words

WIDTH = 170
SHOWN = 20  # failures at most
APART = 1e-2  # relative difference between kinds that bfloat16 does not explain


def table(rows: Sequence[Row], name: str) -> str:
    """Everything short enough to read at once; the rest is in the rows."""
    console = Console(file=io.StringIO(), width=WIDTH)
    for part in (stages, card, launches, suite, choices, kinds, profiles, experiments, bench, failures):
        try:
            part(console, rows)
        except (KeyError, TypeError, ValueError) as error:  # a row that was not foreseen must not cost the table
            console.print(f"{part.__name__}: {words(error)}", markup=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return f"{name}\n{file.getvalue()}"


def stages(console: Console, rows: Sequence[Row]) -> None:
    """How each stage ended."""
    found = [(r["stage"], r["seconds"], r["limit"], r["ended"]) for r in of(rows, "stage")]
    show(console, "stages", ("stage", "seconds", "of", "ended"), found)


def card(console: Console, rows: Sequence[Row]) -> None:
    """The machine, the copy, the cache."""
    for row in of(rows, "machine"):
        console.print(pairs(row), markup=False)
    good = [r for r in of(rows, "copy") if "error" not in r]
    copies = [f"{r['bytes'] / 1e6:.0f} MB {r['bytes_a_second'] / 1e12:.2f}" for r in good]
    console.print("copy, TB/s:", "; ".join(copies), markup=False)
    for row in [*of(rows, "unpacked"), *of(rows, "cache"), *of(rows, "compiled")]:
        console.print(f"{row['what']}:", pairs(row), markup=False)


def launches(console: Console, rows: Sequence[Row]) -> None:
    """Do the kinds run?"""
    found = of(rows, "launch")
    bad = [r for r in found if not r.get("ok")]
    if found:
        console.print(f"launches: {len(found) - len(bad)} of {len(found)} as they should be")
    why = [(where(r), r["kind"], r.get("error") or r["refused"] or ", ".join(r["failed"])) for r in bad]
    show(console, "launches that are not", ("where", "kind", "why"), why)


def suite(console: Console, rows: Sequence[Row]) -> None:
    """Counts."""
    for row in of(rows, "suite"):
        last = row["tail"].splitlines()[-1] if row["tail"] else ""
        kernels = f"{row['kernels_compiled']} kernels compiled, {row['kernels_from_cache']} from the cache"
        console.print(f"suite: {row['counts']}; {kernels}; {last}", markup=False)


def choices(console: Console, rows: Sequence[Row]) -> None:
    """Chosen against fastest kind, the worst first."""
    found = sorted(of(rows, "choice"), key=lambda r: -(r["chosen_over_fastest"] or 99))
    cells = []
    for r in found:
        times = ", ".join(f"{kind} {ms:.3f}" for kind, ms in r["ms"].items())
        cells.append((where(r), r["chosen"], r["fastest"], number(r["chosen_over_fastest"]), times))
    show(console, "the chosen kind against the fastest", ("where", "chosen", "fastest", "ratio", "ms by kind"), cells)


def kinds(console: Console, rows: Sequence[Row]) -> None:
    """Each kind that was measured, beside its prediction; * is the chosen one."""
    cells = []
    for r in of(rows, "kind"):
        if "error" in r:
            continue
        shares = f"{r['share_of_copy']:.0%}", f"{r['share_at_the_floor']:.0%}"
        used, blocks = (",".join(str(k[key]) for k in r["kernels"]) for key in ("registers", "blocks_an_sm"))
        kind = r["kind"] + (" *" if r["chosen"] else "")
        times = number(r["ms"]["median"], 3), number(r["predicted_ms"], 3)
        cells.append((where(r), kind, *times, *shares, number(r["workspace_bytes"] / 1e6), used, blocks, r["refused"]))
    heads = (
        "where",
        "kind",
        "ms",
        "predicted",
        "of copy",
        "at floor",
        "workspace",
        "registers",
        "blocks/SM",
        "refused",
    )
    show(console, "kinds", heads, cells)


def profiles(console: Console, rows: Sequence[Row]) -> None:
    """What Nsight Compute saw."""
    for row in of(rows, "profile"):
        if "error" not in row:
            console.print(row["kernel"], "; ".join(f"{k} {v}" for k, v in row["metrics"].items()), markup=False)


def experiments(console: Console, rows: Sequence[Row]) -> None:
    """A line each."""
    cells = []
    for r in of(rows, "experiment"):
        if "error" not in r:
            times = number(r["ms_before"], 3), number(r["ms_after"], 3), number(r["faster_by"])
            cells.append((r["name"], where(r), r["kind"], *times))
    show(console, "experiments", ("what", "where", "kind", "ms", "with it", "faster by"), cells)


def bench(console: Console, rows: Sequence[Row]) -> None:
    """Verdicts of bench/gpu.py."""
    for row in of(rows, "bench"):
        console.print(f"bench/gpu.py: {row['rows']} rows, {row['left_out']} parts left out")
        cells = [(v["what"], v["required"], number(v["measured"]), v["holds"]) for v in row["verdicts"]]
        show(console, "required", ("what", "required", "measured", "holds"), cells)


def failures(console: Console, rows: Sequence[Row]) -> None:
    """Whatever went wrong, by how often."""
    for row in of(rows, "test")[:SHOWN]:
        console.print(f"failed: {row['test']}: {row['message']}", markup=False)
    errors = Counter((r["stage"], r["what"], r["error"]) for r in rows if "error" in r)
    for (stage, what, error), count in errors.most_common(SHOWN):
        console.print(f"{count} x {stage}, {what}: {error}", markup=False)
    apart = [r for r in of(rows, "agreement") if not r["differs"] < APART]
    for row in apart[:SHOWN]:
        console.print(f"kinds differ by {row['differs']:.1e}: {where(row)} {row['kind']}", markup=False)
    for stage, count in Counter(r["stage"] for r in of(rows, "left out")).items():
        console.print(f"{stage}: {count} left out for lack of time", markup=False)


def show(console: Console, title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; nothing where there are no rows."""
    found = Table(*heads, title=title)
    for row in rows:
        found.add_row(*(str(cell) for cell in row))
    if found.row_count:
        console.print(found, markup=False)


def pairs(row: Row) -> str:
    """What a row says, in words."""
    return ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("stage", "what"))


def where(row: Row) -> str:
    """Layer, shape, layout, order."""
    return f"{row['layer']} {'x'.join(map(str, row['shape']))} {row['layout']} {row['order']}"


def number(value: float | None, digits: int = 2) -> str:
    """Empty for none."""
    return "" if value is None else f"{value:.{digits}f}"
