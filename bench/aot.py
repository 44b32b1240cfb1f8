"""Every kernel of every named layer, compiled ahead of time: registers, spills, and what must not be in the text.

    python bench/aot.py --layers gn-silu,evonorm-s0 --targets 90,gfx942

Needs no GPU. Prints one row a launch list (the worst of its kernels) and exits with 1 if anything spills, computes in
float64, uses atomics or has offsets of 32 bits. Writes only under --out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.kernels.launch_triton import TYPICAL_DIMS, compile_aot, resources

# N, groups, channels a group, positions: one for each rung of the ladders of blocks.
CLASSES = {
    "large": TYPICAL_DIMS,
    "medium": (4, 8, 4, 14 * 14),
    "small": (4, 4, 2, 49),
    "tiny": (2, 2, 1, 9),
    "flat": (64, 32, 16, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(nf.layers), help="names, separated by commas")
    parser.add_argument("--targets", default="80,90,100,gfx942", help="compute capabilities and AMD architectures")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--orders", default="0,1,2")
    parser.add_argument("--classes", default="large", help=f"of shapes: {', '.join(CLASSES)}; or all")
    parser.add_argument("--out", type=Path, help="write the assembly of each kernel here")
    args = parser.parse_args()
    targets: list[int | str] = [int(t) if t.isdigit() else t for t in args.targets.split(",")]
    classes = list(CLASSES) if args.classes == "all" else args.classes.split(",")
    rows = [
        (name, int(order), dtype, layout, target, cls)
        for name in args.layers.split(",")
        for order in args.orders.split(",")
        for dtype in args.dtypes.split(",")
        for layout in ("nchw", "nhwc")
        for target in targets
        for cls in classes
    ]
    print(f"{'layer':16} order dtype    layout target  shape    kernels registers spills .f64 atomics narrow  seconds")
    bad = 0
    for i, (name, order, dtype, layout, target, cls) in enumerate(rows):
        start = time.time()
        plan = make_plan(program(nf.parse(name), order, True), "triton", dtype, layout)
        kernels = compile_aot(plan, target, title=name, dims=CLASSES[cls])
        found = [resources(k) for k in kernels]
        spills, narrow = max(r.spills for r in found), sum(r.narrow_offsets for r in found)
        float64, atomics = any(r.float64 for r in found), any(r.atomics for r in found)
        bad += bool(spills or narrow or float64 or atomics)
        print(
            f"{name:16} {order:5} {dtype:8} {layout:6} {target!s:7} {cls:8} {len(kernels):7} "
            f"{max(r.registers for r in found):9} {spills:6} {'yes' if float64 else 'no':4} "
            f"{'yes' if atomics else 'no':7} {narrow:6} {time.time() - start:8.1f}",
            flush=True,
        )
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            for k in kernels:
                stage = "ptx" if "ptx" in k.asm else "amdgcn"
                file = args.out / f"{name}_{order}_{dtype}_{layout}_{target}_{cls.replace(' ', '_')}_{k.name}.{stage}"
                file.write_text(k.asm[stage])
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{len(rows)}", end="\r", file=sys.stderr)
    print(f"{len(rows)} rows, {bad} with something that must not be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
