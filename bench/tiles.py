"""Every tile of the plans whose programs own slabs, compiled ahead of time: does one spill?

    python bench/tiles.py --jobs 4                  # every named layer: hours on one core
    python bench/tiles.py --layers gn-silu,rmsnorm --targets 90
    PYTHONPATH=$PWD:/tmp/triton39 python bench/tiles.py    # under another triton, of `pip install --target`

The limits of tiles (`TILES`, `RAGGED`, `LOOPS` in normforge/codegen/triton/tiles.py) hold for every compiler that is
supported, and each has a register allocation of its own: run this under the oldest and the newest triton, and those
between. A row is a layer, order, dtype, layout, kind and target; each of its tiles is compiled for a shape that gets
it, with the contiguous axis a multiple of 16 and not. Prints what spills, exits with 1 if anything does. Only compiles:
any torch will do beside any triton.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from rich.console import Console
from rich.progress import Progress

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.triton.kinds import plan_of_kind
from normforge.codegen.triton.slab_limits import tile_dims
from normforge.codegen.triton.slab_plan import SLAB_KINDS, slabs_of
from normforge.kernels.launch_triton import compile_aot, require_triton, resources

Row = tuple[str, int, str, str, str, int | str]


def check(row: Row, largest: bool = False) -> tuple[int, int, list[str]]:
    """(kernels compiled, most registers, what spills) of one row; `largest` leaves out all but the largest tiles."""
    layer, order, dtype, layout, kind, target = row
    plan = plan_of_kind(kind, program(nf.parse(layer), order, True), dtype, layout)
    if plan is None:
        return 0, 0, []
    slabs = slabs_of(plan)
    allowed = slabs.rungs_on(target) if kind == "resident" and isinstance(target, int) else slabs.rungs
    tiles = {key: dims for key, dims in tile_dims(slabs).items() if key[0] in allowed}
    if largest:
        tiles = {key[1]: (key, dims) for key, dims in sorted(tiles.items(), key=lambda t: t[0][0].elements)}
        tiles = dict(tiles.values())
    kernels = registers = 0
    spilled = []
    for (rung, _), dims in tiles.items():
        kernel = compile_aot(plan, target, title=layer, dims=dims)[0]
        found = resources(kernel)
        kernels += 1
        registers = max(registers, found.registers)
        if found.spills:
            spilled.append(f"{rung.a}x{rung.e} at {dims}: {found.spills} bytes of stack, {found.registers} registers")
    return kernels, registers, spilled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(nf.layers), help="names, separated by commas")
    parser.add_argument("--targets", default="80,90,100,gfx942", help="compute capabilities and AMD architectures")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--layouts", default="nchw,nhwc")
    parser.add_argument("--orders", default="0,1,2")
    parser.add_argument("--kinds", default=",".join(SLAB_KINDS), help="of plans")
    parser.add_argument("--largest", action="store_true", help="only the largest tile of each row")
    parser.add_argument("--sample", type=int, help="draw this many of the rows")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    rows: list[Row] = list(
        itertools.product(
            args.layers.split(","),
            map(int, args.orders.split(",")),
            args.dtypes.split(","),
            args.layouts.split(","),
            args.kinds.split(","),
            [int(t) if t.isdigit() else t for t in args.targets.split(",")],
        )
    )
    if args.sample is not None:
        rows = random.Random(0).sample(rows, min(args.sample, len(rows)))
    kernels = registers = bad = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with (
            ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool,
            Progress(console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task("compiling", total=len(rows))
            futures = {pool.submit(check, row, args.largest): row for row in rows}
            for future in as_completed(futures):
                made, most, spilled = future.result()
                kernels, registers, bad = kernels + made, max(registers, most), bad + len(spilled)
                for what in spilled:
                    print(*futures[future], what, flush=True)
                progress.advance(task)
    print(f"triton {require_triton().__version__}: {kernels} kernels, {bad} spill, most registers {registers}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
