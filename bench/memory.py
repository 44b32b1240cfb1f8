"""What autograd keeps for the next derivative, compiled and eager, in units of the input tensor. Needs no GPU.

    python bench/memory.py

Each storage is counted once, with the parameters. `backward` is what a forward call leaves behind, `double backward`
what a backward call with create_graph leaves on top of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write
from rich.console import Console
from rich.table import Table
from torch import Tensor

import normforge as nf

RESULT = Path(__file__).parent / "results" / "memory.json"
SHAPE = (8, 32, 28, 28)


def kept_by(step: Callable[[], Any], known: dict[int, int]) -> dict[int, int]:
    """Bytes of each storage that autograd saves during a step and that is not known yet, by address."""
    found: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        alive.append(t)  # or its address would be used again
        address = t.untyped_storage().data_ptr()
        if address not in known:
            found[address] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return found


def row(layer: str, dtype: torch.dtype) -> dict[str, Any]:
    """Bytes kept over bytes of x, by backend and derivative."""
    out: dict[str, Any] = {"layer": layer, "dtype": str(dtype).removeprefix("torch.")}
    for backend in ("c", "eager"):
        module = nf.compile(layer, SHAPE[1], backend=backend)
        x, dy = (torch.randn(SHAPE, dtype=dtype, requires_grad=True) for _ in range(2))
        made: list[Tensor] = []
        first = kept_by(lambda m=module, x=x, made=made: made.append(m(x)), {})  # type: ignore[misc]
        leaves = [x, *module.parameters()]
        second = kept_by(
            lambda y=made[0], leaves=leaves, dy=dy: torch.autograd.grad(y, leaves, dy, create_graph=True),  # type: ignore[misc]
            first,
        )
        out[backend] = [sum(found.values()) / x.nbytes for found in (first, second)]
    return out


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    rows = [
        row(layer, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for layer, graph in nf.layers.items()
        if graph.is_plain
    ]
    title = f"saved at {'x'.join(map(str, SHAPE))}, in units of x"
    table = Table("layer", "dtype", "for backward", "eager", "more for double backward", "eager", title=title)
    for r in rows:
        figures = (r["c"][0], r["eager"][0], r["c"][1], r["eager"][1])
        table.add_row(r["layer"], r["dtype"], *(f"{f:.2f}" for f in figures))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    write(options.output, {"machine": machine(), "shape": list(SHAPE), "rows": rows})


if __name__ == "__main__":
    main()
