"""How long a new layer takes to compile for a CPU: three orders, from its formula to code that has run.

    python bench/compile_time.py              # named layers and 20 random ones; writes bench/results/compile_time.json
    python bench/compile_time.py --runs 1     # a look

What counts: the first double backward of a new module on a small tensor (`nf.compile`, forward, backward with
`create_graph`, gradient of that), less the time of the same step once everything is there. So all of it is in, in the
order and with the overlap in which a training loop meets it: the passes of three orders, their text, the system's
compiler, loading. One process; imports, and a first layer, before the clock starts. The disk cache is empty but for the
driver that the first layer left there; what that first layer took is reported apart ("first ever").

Beside it, by order and one after the other: seconds of Python (passes, plan, text), of compiler and loading, and lines
of text. Each layer is compiled `--runs` times, with another ε each time, which makes it a new layer; medians count.

Random layers are drawn as in `bench/passes.py`: the first that the static stages keep, the last of them with nested
moments. Exits with 1 if the median of all layers or the slowest is above what is required.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write
from cpu import double_backward, machine
from passes import depends_and_nests, draw
from rich.console import Console
from rich.progress import track
from rich.table import Table

import normforge as nf
from normforge.codegen.c.emit import emit_c
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.kernels import launch_c
from normforge.kernels.job import layer_text
from normforge.passes import Degeneracy

RESULT = Path(__file__).parent / "results" / "compile_time.json"
PLAIN = [name for name, graph in nf.layers.items() if graph.is_plain]
RANDOM, NESTED = 20, 6  # random layers, and how many of them have nested moments
MEDIAN, MOST = 0.4, 0.8  # seconds
CHANNELS = 32
ORDERS = ("forward", "backward", "double backward")


def random_layers(seed: int = 0) -> dict[str, nf.Graph]:
    """By the number under which `bench/passes.py` draws them."""
    plain: dict[str, nf.Graph] = {}
    nested: dict[str, nf.Graph] = {}
    seen = set()
    index = 0
    while len(plain) + len(nested) < RANDOM:
        graph = draw(seed, index)
        depends, nests = depends_and_nests(graph)
        wanted = nested if nests else plain
        room = NESTED if nests else RANDOM - NESTED
        if depends and len(wanted) < room and graph.hash not in seen and not Degeneracy().run(graph):
            seen.add(graph.hash)
            wanted[f"random {index}"] = graph
        index += 1
    return plain | nested


def with_eps(graph: nf.Graph, eps: float) -> nf.Graph:
    """Another layer, of the same cost."""
    return nf.Graph(graph.outputs, graph.inputs, eps)


def cpu_seconds() -> float:
    """Of this process, and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def whole(graph: nf.Graph) -> dict[str, float]:
    """Seconds from a graph to its double backward, less those of a step with everything at hand; and CPU seconds of
    this process and its compilers in the meantime."""
    x, dy, v = (torch.randn(4, CHANNELS, 4, 4) for _ in range(3))
    x.requires_grad_(), dy.requires_grad_()
    before = cpu_seconds()
    start = time.perf_counter()
    module = nf.compile(graph, CHANNELS, backend="c")
    double_backward(module, x, dy, v)
    first = time.perf_counter() - start
    cpu = cpu_seconds() - before
    start = time.perf_counter()
    double_backward(module, x, dy, v)
    return {"seconds": first - (time.perf_counter() - start), "cpu seconds": cpu}


def by_order(graph: nf.Graph) -> list[dict[str, float]]:
    """What each order costs alone: seconds of Python, of the compiler, of loading; lines of text."""
    out = []
    for order in range(len(ORDERS)):
        start = time.perf_counter()
        seeded = ((0,),) if order == 2 else ()
        plan = make_plan(program(graph, order, True, seeded), "c", "float32", "nchw")
        source = emit_c(plan, plan.symbol, layer_text(graph))
        middle = time.perf_counter()
        launch_c.load(plan, layer_text(graph))
        end = time.perf_counter()
        out.append({"python": middle - start, "compiler": end - middle, "lines": len(source.splitlines())})
    return out


def measure(graph: nf.Graph, runs: int) -> dict[str, Any]:
    """Medians of both, each on layers that differ in ε alone."""
    wholes = [whole(with_eps(graph, 1e-5 * (1 + k / 100))) for k in range(runs)]
    parts = [by_order(with_eps(graph, 2e-5 * (1 + k / 100))) for k in range(runs)]
    found: dict[str, Any] = {k: statistics.median(w[k] for w in wholes) for k in wholes[0]}
    found["orders"] = {
        name: {k: statistics.median(p[i][k] for p in parts) for k in parts[0][i]} for i, name in enumerate(ORDERS)
    }
    return found


def show(console: Console, report: dict[str, Any]) -> None:
    """A row a layer, and what is required."""
    table = Table(title="seconds from a new layer to three orders; by order: ms of Python + compiler (lines)")
    for head in ("layer", "seconds", "CPU seconds", *ORDERS):
        table.add_column(head, justify="left" if head == "layer" else "right")
    for name, row in report["layers"].items():
        orders = [
            f"{o['python'] * 1e3:.0f} + {o['compiler'] * 1e3:.0f} ({o['lines']:.0f})" for o in row["orders"].values()
        ]
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['cpu seconds']:.2f}", *orders)
    console.print(table)
    for what, required in (("median", MEDIAN), ("largest", MOST)):
        holds = "holds" if report[what] <= required else "FAILS"
        console.print(f"{what}: {report[what]:.3f} s, at most {required} required: {holds}")
    console.print(f"first ever, with the driver: {report['first ever']:.2f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of every layer, of which the median counts")
    parser.add_argument("--layers", default="", help="named layers, separated by commas; all, and random ones")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    chosen = list(filter(None, options.layers.split(",")))
    layers = {name: nf.layers[name] for name in chosen or PLAIN} | ({} if chosen else random_layers())
    with tempfile.TemporaryDirectory() as directory:
        os.environ["NORMFORGE_CACHE"] = directory
        report: dict[str, Any] = {
            "machine": machine(),
            "first ever": whole(with_eps(nf.layers["derf"], 3e-5))["seconds"],
        }
        progress = track(layers.items(), "layers", disable=not sys.stderr.isatty())
        report["layers"] = {name: measure(graph, options.runs) for name, graph in progress}
    seconds = [row["seconds"] for row in report["layers"].values()]
    report |= {"median": statistics.median(seconds), "largest": max(seconds)}
    show(Console(width=None if sys.stdout.isatty() else 160), report)
    if not chosen or options.output != RESULT:
        write(options.output, report)
    return int(report["median"] > MEDIAN or report["largest"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
