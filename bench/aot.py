"""Kernels compiled ahead of time for GPUs that are not there: registers, spills, and what must not be in the code.

    python bench/aot.py --jobs 4                            # every named layer: hours on one core, so give it several
    python bench/aot.py --random 200 --sample 500 --jobs 4  # 500 combinations of those and of 200 random layers
    python bench/aot.py --layers gn-silu,evonorm-s0 --targets 90,gfx942
    python bench/aot.py --table --output now.json --before bench/results/aot_before.json  # what a change does

Checked for each combination of layer, order, dtype, layout, target, shape class and kind of plan: nothing spills (STACK
of NVIDIA's cubins, vgpr_spill_count of AMD's), nothing computes in float64, no atomics but integer ones in cooperative
plans, pointer offsets of 64 bits, several elements an access to full tensors where their rows are multiples of 16,
and as many loads and stores of full tensors in the text as the plan says. The widths of NVIDIA's accesses are of the
full tensors alone; AMD's text does not tell pointers apart, so there it is asked for as many wide accesses as there are
of full tensors.

A kind that a layer does not have, or whose tiles are too small for a slab of the class, counts as refused.

Each row for compute capability 90 has, for each kernel, what the machine code says of a tile and what `predict` makes
of it. --table is for the named layers at (128, 256, 56, 56), and those that normalize over channels alone at tokens
(8, 2048, 4096), in bfloat16 and float32: the kind that the shape gets and the multi-launch kind.

Random layers are drawn as in bench/passes.py; those that a static stage refuses are left out. Results are written as
the run goes on. Exits with 1 if a combination fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import machine, write
from passes import draw
from predict import TABLE_DIMS, plan_for, predict, tokens
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import normforge as nf
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import KINDS
from normforge.errors import ShapeError
from normforge.kernels.assembly import amdgcn_accesses, is_float_atomic, ptx_accesses
from normforge.kernels.launch_triton import TYPICAL_DIMS, CompiledKernel, compile_aot, full_pointers, resources
from normforge.passes import Degeneracy
from normforge.passes.normal_form.identity import value_of

RESULT = Path(__file__).parent / "results" / "aot.json"
# N, groups, channels a group, positions: among them one for each rung of the ladders of blocks. Where no axis is a
# multiple of 16, or positions are not, every element has an address and a mask of its own, which takes registers.
CLASSES = {
    "large": TYPICAL_DIMS,
    "long": (4, 4, 16, 32 * 32),
    "wide": (4, 8, 32, 14 * 14),
    "odd": (4, 6, 5, 31 * 31),
    "medium": (4, 8, 4, 14 * 14),
    "small": (4, 4, 2, 49),
    "tiny": (2, 2, 1, 9),
    "flat": (64, 32, 16, 1),
    **TABLE_DIMS,
}
EVERY = 25  # combinations between two writes of the results

# What the table says of a kernel.
TILE = ("instructions", "barriers", "shuffles", "load_bytes", "in_flight", "registers", "blocks")
FIELDS = ("layer", "order", "dtype", "layout", "target", "class", "kind")
Combination = tuple[str, int, str, str, int | str, str, str]


def graph_of(layer: str) -> nf.Graph:
    """By name, or `random-17` for that draw."""
    return draw(0, int(layer.removeprefix("random-"))) if layer.startswith("random-") else nf.parse(layer)


def random_layers(count: int) -> list[str]:
    """The first draws that no static stage refuses and whose output depends on x."""
    names = []
    for index in itertools.count():
        if len(names) == count:
            return names
        graph = draw(0, index)
        space, value = value_of(graph)
        if space.depends(value) and not Degeneracy().timed(graph)[0]:
            names.append(f"random-{index}")
    raise AssertionError("itertools.count ends never")


def check(combination: Combination, out: Path | None = None) -> dict[str, Any]:
    """Compile one launch list and look at it; `failures` says what must not be."""
    layer, order, dtype, layout, target, cls, kind = combination
    start = time.perf_counter()
    row: dict[str, Any] = dict(
        zip(("layer", "order", "dtype", "layout", "target", "class", "kind"), combination, strict=True)
    )
    plan = plan_for(graph_of(layer), order, dtype, layout, kind, CLASSES[cls])
    if plan is None:
        return row | {"refused": "the layer has no plan of this kind", "failures": []}
    try:
        kernels = compile_aot(plan, target, title=layer, dims=CLASSES[cls])
    except ShapeError as error:  # a slab fits no tile
        return row | {"refused": str(error), "failures": []}
    except Exception as error:
        return row | {"failures": [f"does not compile: {type(error).__name__}: {str(error)[:200]}"]}
    found = [resources(k) for k in kernels]
    failures = [f"{k.name}: {r.spills} spilled" for k, r in zip(kernels, found, strict=True) if r.spills]
    failures += [f"{k.name}: float64" for k, r in zip(kernels, found, strict=True) if r.float64]
    failures += [f"{k.name}: offsets of 32 bits" for k, r in zip(kernels, found, strict=True) if r.narrow_offsets]
    for k, r in zip(kernels, found, strict=True):
        bad = [a for a in r.atomics if plan.kind != "cooperative" or is_float_atomic(a)]
        failures += [f"{k.name}: {a}" for a in bad]
    failures += count_failures(plan)
    dims = CLASSES[cls]
    contiguous = dims[3] if layout == "nchw" else dims[1] * dims[2]
    widths, narrow = access_widths(plan, kernels)
    whole = plan.schedule.sizes(dims).get("ALIGNED", 16) == 16  # blocks of slabs start at multiples of 16
    if contiguous % 16 == 0 and contiguous > 1 and whole:
        failures += narrow
    if target == 90:
        try:
            row |= {"made": plan.kind, "predicted": predict(plan, dims, kernels).as_row()}
        except ValueError as error:
            failures.append(f"no prediction: {error}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for k in kernels:
            stage = "ptx" if "ptx" in k.asm else "amdgcn"
            (out / f"{'_'.join(map(str, combination))}_{k.name}.{stage}").write_text(k.asm[stage])
    return row | {
        "kernels": len(kernels), "registers": max(r.registers for r in found), "spills": max(r.spills for r in found),
        "narrowest_access": min(widths, default=0), "seconds": time.perf_counter() - start, "failures": failures,
    }  # fmt: skip


def count_failures(plan: Plan) -> list[str]:
    """Loads and stores of full tensors in the text against the plan's; a resident plan loads each tensor once."""
    module = emit_triton(plan, plan.symbol)
    full = "|".join(full_pointers(plan, module)) or "(?!)"
    body = re.sub(r"#.*", "", module.source)
    loads, stores = (len(re.findall(rf"tl\.{what}\((?:{full})\b", body)) for what in ("load", "store"))
    once = len({node for sweep in plan.sweeps for node in sweep.loads})
    want = once if plan.kind == "resident" else plan.loads
    out = [f"{loads} loads of full tensors and not {want}"] if loads != want else []
    return out + ([f"{stores} stores of full tensors and not {plan.writes}"] if stores != plan.writes else [])


def access_widths(plan: Plan, kernels: list[CompiledKernel]) -> tuple[list[int], list[str]]:
    """Bytes of the accesses to full tensors, and a failure for each kernel that takes one element at a time."""
    module = emit_triton(plan, plan.symbol)
    full, item = full_pointers(plan, module), ITEM_BYTES[plan.dtype]
    widths: list[int] = []
    failures = []
    for launch, kernel in zip(module.launches, kernels, strict=True):
        places = [i for i, p in enumerate(launch.pointers) if p in full]
        if not places:
            continue
        if "ptx" in kernel.asm:
            found = ptx_accesses(kernel.asm["ptx"], kernel.name, places)
            these = [*found.loads, *found.stores]
            if not these:
                failures.append(f"{kernel.name}: no access to full tensors found")
        else:
            every = amdgcn_accesses(kernel.asm["amdgcn"])
            these = sorted([*every.loads, *every.stores], reverse=True)[: len(places)]
        widths += these
        if min(these, default=item + 1) <= item:
            failures.append(f"{kernel.name}: accesses of {min(these)} bytes to {plan.dtype} tensors")
    return widths, failures


def in_table(combination: Combination) -> bool:
    """Each layer has its own shape, and a kind once where the shape gets it."""
    layer, order, dtype, layout, _, cls, kind = combination
    if (cls == "tokens") != tokens(layer):
        return False
    got = plan_for(graph_of(layer), order, dtype, layout, "chosen", CLASSES[cls])
    return kind == "chosen" or got is None or got.kind != kind


def table(rows: list[dict[str, Any]], before: list[dict[str, Any]] | None) -> Table:
    """A line a kernel: of the loop with the most instructions over tiles. Shares are a line a plan; with `before`, what
    was there stands in front of an arrow."""
    out = Table(box=None, pad_edge=False)
    for name in ("layer", "order", "dtype", "layout", "kind", "share", "of plan", "kernel", "us", "limit", *TILE):
        out.add_column(name, justify="left" if name in ("layer", "dtype", "layout", "kind", "kernel") else "right")
    old = {tuple(r[k] for k in FIELDS): r for r in before or []}
    for row in sorted((r for r in rows if "predicted" in r), key=lambda r: [str(r[k]) for k in FIELDS]):
        was = old.get(tuple(row[k] for k in FIELDS), {}).get("predicted")
        now = row["predicted"]
        where = [row["layer"], str(row["order"]), row["dtype"], row["layout"], row["made"]]
        shares = [_change(was and was[k], now[k], "{:.2f}") for k in ("share", "of_plan")]
        kernels = list(itertools.zip_longest(was["kernels"] if was else [], now["kernels"], fillvalue={}))
        for old_kernel, kernel in kernels:
            cells = [_change(old_kernel.get(k), kernel.get(k), f) for k, f in (("us", "{:.1f}"), ("limit", "{}"))] + [
                _change(old_kernel.get(k), kernel.get(k), "{}") for k in TILE
            ]
            out.add_row(*where, *shares, kernel.get("name", old_kernel.get("name")), *cells)
            where, shares = [""] * 5, [""] * 2
    return out


def _change(before: Any, now: Any, form: str) -> str:
    """ "3 > 2", or "2" where nothing changed or nothing was there."""
    said = [form.format(v) if v is not None else "-" for v in (before, now)]
    return said[1] if before is None or said[0] == said[1] else " > ".join(said)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all rows."""
    done = [r for r in rows if "kernels" in r]
    return {
        "combinations": len(rows),
        "refused": sum("refused" in r for r in rows),
        "with failures": sum(bool(r["failures"]) for r in rows),
        "kernels": sum(r["kernels"] for r in done),
        "most registers": max((r["registers"] for r in done), default=0),
        "narrowest access, bytes": dict(sorted(Counter(r["narrowest_access"] for r in done).items())),
        "seconds a combination": sum(r["seconds"] for r in done) / max(len(done), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(nf.layers), help="names, separated by commas")
    parser.add_argument("--random", type=int, default=0, help="this many random layers too")
    parser.add_argument("--targets", default="80,90,100,gfx942", help="compute capabilities and AMD architectures")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--layouts", default="nchw,nhwc")
    parser.add_argument("--orders", default="0,1,2")
    parser.add_argument("--classes", default="large", help=f"of shapes: {', '.join(CLASSES)}; or all")
    parser.add_argument("--kinds", default="multi-launch", help=f"of plans: {', '.join(KINDS)}; or all")
    parser.add_argument("--sample", type=int, help="draw this many of the combinations")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the assembly of each kernel here")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULT,
        help="where the JSON goes: a summary and what failed; all rows of a table",
    )
    parser.add_argument("--table", action="store_true", help="the combinations of the table, and print it")
    parser.add_argument("--before", type=Path, help="a JSON of before, which the table compares with")
    args = parser.parse_args()
    if args.table:
        parser.set_defaults(
            targets="90", dtypes="bfloat16,float32", kinds="chosen,multi-launch", classes=",".join(TABLE_DIMS)
        )
        args = parser.parse_args()
    layers = [*filter(None, args.layers.split(",")), *random_layers(args.random)]
    combinations: list[Combination] = list(
        itertools.product(
            layers,
            map(int, args.orders.split(",")),
            args.dtypes.split(","),
            args.layouts.split(","),
            [int(t) if t.isdigit() else t for t in args.targets.split(",")],
            CLASSES if args.classes == "all" else args.classes.split(","),
            KINDS if args.kinds == "all" else args.kinds.split(","),
        )
    )
    if args.table:
        combinations = [c for c in combinations if in_table(c)]
    if args.sample is not None:
        combinations = random.Random(args.seed).sample(combinations, min(args.sample, len(combinations)))
    rows: list[dict[str, Any]] = []
    options = {k: str(v) for k, v in vars(args).items() if k not in ("out", "output")}
    report: dict[str, Any] = {"machine": machine(), "options": options, "status": "stopped", "rows": rows}

    def save() -> None:
        # Rows are for what failed, and for a table that is compared with another one.
        kept = rows if args.table else [row for row in rows if row["failures"]]
        write(args.output, report | {"rows": kept, "summary": summary(rows)})

    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        with (
            ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool,
            Progress(console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task("compiling", total=len(combinations))
            for future in as_completed([pool.submit(check, c, args.out) for c in combinations]):
                row = future.result()
                rows.append(row)
                if row["failures"]:
                    where = " ".join(
                        str(row[k]) for k in ("layer", "order", "dtype", "layout", "target", "class", "kind")
                    )
                    progress.console.print(f"{where}: {'; '.join(row['failures'])}", markup=False, soft_wrap=True)
                if len(rows) % EVERY == 0:
                    save()
                progress.advance(task)
    report["status"] = "complete"
    save()
    if args.table:
        before = json.loads(args.before.read_text())["rows"] if args.before else None
        Console(width=240).print(table(rows, before))
    for what, value in summary(rows).items():
        print(f"{what}: {value}")
    return 1 if any(r["failures"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
