"""What a command found out, as a table for people."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from first.rows import Row, of

WIDTH = 170
SHOWN = 20  # failures and choices at most


def table(rows: Sequence[Row], name: str) -> str:
    """Everything short enough to read at once; the rest is in the rows."""
    console = Console(file=io.StringIO(), width=WIDTH)
    for part in (stages, card, launches, suite, choices, large, profiles, experiments, bench, failures):
        part(console, rows)
    file = console.file
    assert isinstance(file, io.StringIO)
    return f"{name}\n{file.getvalue()}"


def stages(console: Console, rows: Sequence[Row]) -> None:
    """How each stage ended."""
    print_table(console, "stages", ("stage", "seconds", "of", "ended"),
                ((r["stage"], r["seconds"], r["limit"], r["ended"]) for r in of(rows, "stage")))  # fmt: skip


def card(console: Console, rows: Sequence[Row]) -> None:
    """The machine, the copy, the cache."""
    for row in of(rows, "machine"):
        console.print(", ".join(f"{k} {v}" for k, v in row.items() if k not in ("stage", "what")), markup=False)
    copies = [
        f"{r['bytes'] / 1e6:.0f} MB {r['bytes_a_second'] / 1e12:.2f}" for r in of(rows, "copy") if "error" not in r
    ]
    console.print("copy, TB/s:", "; ".join(copies), markup=False)
    for row in [*of(rows, "unpacked"), *of(rows, "cache"), *of(rows, "compiled")]:
        console.print(
            f"{row['what']}:", ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("stage", "what")), markup=False
        )


def launches(console: Console, rows: Sequence[Row]) -> None:
    """Do the kinds run?"""
    found = of(rows, "launch")
    good = sum(r.get("ok", False) for r in found)
    if found:
        console.print(f"launches: {good} of {len(found)} as they should be")
    print_table(console, "launches that are not", ("where", "why"),
                ((where(r), r.get("error") or r["refused"] or ", ".join(r["failed"])) for r in found if not r.get("ok")))  # fmt: skip


def suite(console: Console, rows: Sequence[Row]) -> None:
    """Counts."""
    for row in of(rows, "suite"):
        console.print(f"suite: {row['counts']}; kernels: {row['kernels_compiled']} compiled, {row['kernels_from_cache']} "
                      f"from the cache; {row['tail'].splitlines()[-1] if row['tail'] else ''}", markup=False)  # fmt: skip


def choices(console: Console, rows: Sequence[Row]) -> None:
    """Chosen against fastest kind, the worst first."""
    found = sorted(of(rows, "choice"), key=lambda r: -(r["chosen_over_fastest"] or 99))
    print_table(console, "the kind that was chosen against the fastest", ("where", "chosen", "fastest", "ratio", "ms by kind"),
                ((where(r), r["chosen"], r["fastest"], number(r["chosen_over_fastest"]),
                  ", ".join(f"{k} {v:.3f}" for k, v in r["ms"].items())) for r in found))  # fmt: skip


def large(console: Console, rows: Sequence[Row]) -> None:
    """Each kind that was measured, beside its prediction."""
    found = [r for r in of(rows, "kind") if "error" not in r]
    print_table(
        console, "kinds", ("where", "kind", "ms", "predicted", "of copy", "at floor", "workspace MB", "registers", "blocks/SM", "refused"),
        ((where(r), r["kind"] + (" *" if r["chosen"] else ""), f"{r['ms']['median']:.3f}", number(r["predicted_ms"], 3),
          f"{r['share_of_copy']:.0%}", f"{r['share_at_the_floor']:.0%}", f"{r['workspace_bytes'] / 1e6:.1f}",
          ",".join(str(k["registers"]) for k in r["kernels"]), ",".join(str(k["blocks_an_sm"]) for k in r["kernels"]),
          r["refused"]) for r in found),
    )  # fmt: skip


def profiles(console: Console, rows: Sequence[Row]) -> None:
    """What Nsight Compute saw."""
    for row in of(rows, "profile"):
        if "error" not in row:
            console.print(row["kernel"], "; ".join(f"{k} {v}" for k, v in row["metrics"].items()), markup=False)


def experiments(console: Console, rows: Sequence[Row]) -> None:
    """A line each."""
    print_table(console, "experiments", ("what", "where", "kind", "ms", "with it", "faster by"),
                ((r["name"], where(r), r["kind"], f"{r['ms_before']:.3f}", f"{r['ms_after']:.3f}", f"{r['faster_by']:.2f}")
                 for r in of(rows, "experiment") if "error" not in r))  # fmt: skip


def bench(console: Console, rows: Sequence[Row]) -> None:
    """Verdicts of bench/gpu.py."""
    for row in of(rows, "bench"):
        console.print(f"bench/gpu.py: {row['rows']} rows, {row['left_out']} parts left out")
        print_table(console, "required", ("what", "required", "measured", "holds"),
                    ((v["what"], v["required"], number(v["measured"]), v["holds"]) for v in row["verdicts"]))  # fmt: skip


def failures(console: Console, rows: Sequence[Row]) -> None:
    """Whatever went wrong, by how often."""
    for row in [*of(rows, "test")][:SHOWN]:
        console.print(f"failed: {row['test']}: {row['message']}", markup=False)
    errors = Counter((r["stage"], r["what"], r["error"]) for r in rows if "error" in r)
    for (stage, what, error), count in errors.most_common(SHOWN):
        console.print(f"{count} x {stage}, {what}: {error}", markup=False)
    apart = [r for r in of(rows, "agreement") if not r["differs"] < 1e-2]
    for row in apart[:SHOWN]:
        console.print(f"kinds differ by {row['differs']:.1e}: {where(row)} {row['kind']}", markup=False)
    left = Counter(r["stage"] for r in of(rows, "left out"))
    for stage, count in left.items():
        console.print(f"{stage}: {count} left out for lack of time", markup=False)


def print_table(console: Console, title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Nothing where there are no rows."""
    found = Table(title=title, *heads)
    for row in rows:
        found.add_row(*(str(cell) for cell in row))
    if found.row_count:
        console.print(found, markup=False)


def where(row: Row) -> str:
    """Layer, shape, layout, order."""
    return f"{row['layer']} {'x'.join(map(str, row['shape']))} {row['layout']} {row['order']}"


def number(value: float | None, digits: int = 2) -> str:
    """Empty for none."""
    return "" if value is None else f"{value:.{digits}f}"
