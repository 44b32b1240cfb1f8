"""The text that the emitters write for a fixed set of layers, as digests: a change that should change none shows that.

    python tests/emitted.py accept         # these are right: write the digests
    python tests/emitted.py write DIR      # every text as a file, to compare two commits with `diff -r`
    python tests/emitted.py diff DIR       # from the texts in DIR to those of this code, as a unified diff

A row is a layer, order, target, layout, dtype and kind of plan. Its text is the plan, the source, and for Triton how
it is launched at a few shapes. The layers are the named ones and ten random ones with a moment below a moment.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import normforge as nf
from normforge.codegen.c.emit import emit_c
from normforge.codegen.orders import program
from normforge.codegen.plan import LAYOUTS, Plan, make_plan
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import KINDS, plan_of_kind
from normforge.codegen.triton.launch import arguments, warps

DIGESTS = Path(__file__).parent / "goldens" / "emitted.txt"
RANDOM = Path(__file__).parent / "corpus" / "nested.txt"
ORDERS = range(4)
# N, groups, channels a group, positions: a large image, a small one, rows of an odd length, no positions to speak of.
SHAPES = ((128, 32, 8, 56 * 56), (8, 32, 2, 14 * 14), (3, 5, 3, 49), (256, 1, 512, 1))


def layers() -> dict[str, str]:
    """Formulas by the name that their rows go by."""
    random = RANDOM.read_text().splitlines()
    return {name: name for name in nf.layers} | {f"random-{i}": text for i, text in enumerate(random)}


def texts(name: str, formula: str) -> Iterator[tuple[str, str]]:
    """Every row of a layer and its text."""
    graph = nf.parse(formula)
    for order in ORDERS:
        what = program(graph, order, True)
        for layout in LAYOUTS:
            for dtype in ("float32", "float64", "bfloat16"):
                if dtype != "float64" or order == 1:
                    plan = make_plan(what, "c", dtype, layout)
                    yield f"{name} {order} c {layout} {dtype}", f"{plan.summary}\n{emit_c(plan, plan.symbol, formula)}"
            dtype = ("float32", "bfloat16")[(order + (layout == "nhwc")) % 2]
            for kind in KINDS:
                made = plan_of_kind(kind, what, dtype, layout)
                if made is not None:
                    yield f"{name} {order} triton {layout} {dtype} {kind}", _triton(made, formula)


def _triton(plan: Plan, formula: str) -> str:
    module = emit_triton(plan, plan.symbol, formula)
    lines = [f"{plan.summary}\n{module.source}"]
    for dims in SHAPES:
        if module.schedule.slabs is not None and module.schedule.slabs.blocks(dims) is None:
            continue
        sizes = module.schedule.sizes(dims)
        lines.append(f"at {dims}: workspace {module.schedule.places(sizes)}")
        for launch in module.launches:
            values, blocks, programs = arguments(launch, sizes)
            lines.append(f"  {launch.kernel} {launch.pointers} {values} {blocks} {programs} {warps(launch, sizes)}")
    return "\n".join(lines) + "\n"


def digest(text: str) -> str:
    """Twelve hexadecimal digits."""
    return blake2b(text.encode(), digest_size=6).hexdigest()


def file_of(row: str) -> str:
    """The name of the file that holds the text of a row."""
    return row.replace(" ", "_") + ".txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("accept", "write", "diff"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the texts")
    parser.add_argument("--layers", help="only these, separated by commas")
    args = parser.parse_args()
    if (args.folder is None) is not (args.action == "accept"):
        parser.error(f"{args.action} takes {'no' if args.action == 'accept' else 'a'} folder")
    chosen = {k: v for k, v in layers().items() if not args.layers or k in args.layers.split(",")}
    rows = (row for name, formula in chosen.items() for row in texts(name, formula))
    if args.action == "accept":
        DIGESTS.write_text("".join(f"{digest(text)} {row}\n" for row, text in rows))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    different = 0
    for row, text in rows:
        path = args.folder / file_of(row)
        if args.action == "write":
            path.write_text(text)
            continue
        before = path.read_text() if path.exists() else ""
        if before != text:
            different += 1
            lines = difflib.unified_diff(
                before.splitlines(keepends=True), text.splitlines(keepends=True), f"{path}", f"{row} of this code"
            )
            sys.stdout.writelines(lines)
    if args.action == "diff":
        print(f"{different} texts differ", file=sys.stderr)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
