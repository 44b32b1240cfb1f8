"""A training step of ResNet-50 at 224 on this machine's CPU: images a second and peak memory, the pool off and on.

    python bench/cpu_network.py                      about ten minutes on two cores
    python bench/cpu_network.py --steps 2 --batch 4  a rehearsal

The network is timm's resnetv2_50, its BatchNorm + ReLU swapped for a layer, or left, or compiled whole by
torch.compile; a step is loss, backward and SGD with momentum. Each row is a process of its own, so that its peak
resident memory is its own: that of training, with the interpreter, the libraries and, under torch.compile, the compiler
in it. The rows are walked twice; a row keeps its faster median step and its higher peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from common import machine, write
from rich.console import Console
from rich.table import Table
from torch import nn

import normforge as nf
from normforge.kernels.pool import POOL, VARIABLE

RESULT = Path(__file__).parent / "results" / "cpu_network.json"
OFF, ON = {VARIABLE: "0"}, {VARIABLE: ""}
# Rows: layer ("torch" for BatchNorm + ReLU), is torch.compile to compile the network, environment.
ROWS: dict[str, tuple[str, bool, dict[str, str]]] = {
    "evonorm-s0": ("evonorm-s0", False, ON),
    "evonorm-s0, no pool": ("evonorm-s0", False, OFF),
    "bn-relu": ("bn-relu", False, ON),
    "bn-relu, no pool": ("bn-relu", False, OFF),
    "torch's BatchNorm + ReLU": ("torch", False, ON),
    "the same, torch.compile": ("torch", True, ON),
    "evonorm-s0 eager, torch.compile": ("evonorm-s0 eager", True, ON),
}
MOST_MEMORY = 1.1  # of the pool off
WALKS = 2


def train(layer: str, compiled: bool, batch: int, steps: int) -> dict[str, float]:
    """Seconds of the steps after two, and the peak memory of this process."""
    name, _, backend = layer.partition(" ")

    def norm(channels: int, apply_act: bool = True, **_: Any) -> nn.Module:
        return nf.compile(name, channels, backend=backend or "c")

    torch.manual_seed(0)
    model: Any = timm.create_model("resnetv2_50", norm_layer=timm.layers.BatchNormAct2d if layer == "torch" else norm)
    if compiled:
        model = torch.compile(model, dynamic=False)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x, target = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    return {
        "seconds": median,
        "images_per_second": batch / median,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "pool_megabytes": POOL.kept() / 1e6,
        "first_step_seconds": seconds[0],
        "loss": float(loss.detach()),
    }


def alone(row: str, options: argparse.Namespace) -> dict[str, float]:
    """A row in a process of its own."""
    command = [sys.executable, __file__, "--row", row, "--batch", str(options.batch), "--steps", str(options.steps)]
    command += ["--threads", str(options.threads)]
    ran = subprocess.run(command, env=os.environ | ROWS[row][2], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout)


def show(console: Console, rows: dict[str, dict[str, float]], batch: int) -> None:
    """The table, and what the pool adds to the peak."""
    heads = ("layer", "images/s", "seconds a step", "peak MB", "of it in the pool", "first step, s")
    table = Table(*heads, title=f"ResNet-50, training, batch {batch} at 224")
    for name, r in rows.items():
        figures = (r["images_per_second"], r["seconds"], r["peak_megabytes"], r["pool_megabytes"])
        table.add_row(name, *(f"{f:.2f}" if f < 100 else f"{f:.0f}" for f in figures), f"{r['first_step_seconds']:.1f}")
    console.print(table)
    for name in rows:
        off = rows.get(f"{name}, no pool")
        if off is not None:
            share = rows[name]["peak_megabytes"] / off["peak_megabytes"]
            verdict = "ok" if share <= MOST_MEMORY else "above"
            console.print(f"{name}: peak with the pool {share:.3f} of that without (at most {MOST_MEMORY}: {verdict})")


def main() -> None:
    """Run the rows, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--steps", type=int, default=5, help="timed, after two")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every row")
    parser.add_argument("--rows", default="", help="only these, separated by semicolons")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        print(json.dumps(train(*ROWS[options.row][:2], options.batch, options.steps)))
        return
    chosen = options.rows.split(";") if options.rows else list(ROWS)
    rows: dict[str, dict[str, float]] = {}
    for _ in range(WALKS):
        for name in chosen:
            found = alone(name, options)
            before = rows.get(name, found)
            faster = min(before, found, key=lambda r: r["seconds"])
            peak = max(before["peak_megabytes"], found["peak_megabytes"])
            rows[name] = faster | {"peak_megabytes": peak}
            print(f"{name}: {found['images_per_second']:.2f} images a second", file=sys.stderr)
    show(Console(width=None if sys.stdout.isatty() else 160), rows, options.batch)
    said = machine() | {"threads": str(options.threads)}
    write(options.output, {"machine": said, "batch": options.batch, "steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
