"""Speed of the C backend on this machine, beside what one would use without it.

    python bench/cpu.py            the layers and shapes that have a required ratio, under 8 minutes
    python bench/cpu.py --full     every named layer that has a rival, more shapes, more rounds

A row is a layer, a shape and a pass; its peers are timed in one process after each has been checked against float64.
They take turns by blocks of calls, the first two of each untimed, as a training loop would call each of them: call by
call, one would pay for the caches and the heap that another leaves behind. Inputs change from call to call. Outputs
are fresh except where a column says reused, and all peers share one allocator; what fresh memory costs here is
measured and printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch._dynamo
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import normforge as nf
from normforge.codegen.plan import make_plan
from normforge.kernels import launch_c
from normforge.kernels.job import Job, allocate

Shape = tuple[int, ...]
Step = Callable[[int], Any]

RESULT = Path(__file__).parent / "results" / "cpu.json"
LAYERS = ("evonorm-b0", "evonorm-s0", "bn-relu", "gn-silu")
MORE_LAYERS = ("gn-relu", "ln-relu", "in-relu", "frn-tlu", "evonorm-s1", "layernorm-gelu", "rmsnorm")
SHAPES: tuple[Shape, ...] = ((128, 64, 16, 16), (16, 64, 56, 56), (128, 256, 8, 8))
MORE_SHAPES: tuple[Shape, ...] = ((32, 512, 7, 7), (8, 32, 112, 112), (2, 64, 56, 56))
SETS = 3  # of inputs, taken in turns
BLOCK = 9  # calls timed before the next peer has its turn
SLOW, SLOW_BLOCK = 0.05, 3  # seconds: a peer above has shorter blocks

# Required ratio: (layer or any, shape or any, pass, peer, at least).
REQUIRED: tuple[tuple[str | None, Shape | None, str, str, float], ...] = (
    *((None, s, "forward+backward", "torch.compile", 3.0) for s in SHAPES[:2]),
    (None, SHAPES[2], "forward+backward", "torch.compile", 2.0),
    ("evonorm-s0", None, "forward+backward", "eager", 8.0),
    ("evonorm-b0", None, "forward+backward", "eager", 20.0),
    (None, None, "forward+backward", "BatchNorm+ReLU", 2.0),
    (None, None, "double backward", "eager", 15.0),
)
COMPILE_SECONDS = 1.0


# -- the two passes


def forward_backward(module: nn.Module, x: Tensor, dy: Tensor, _: Tensor) -> list[Tensor]:
    """y and the gradients of x and the parameters."""
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


def double_backward(module: nn.Module, x: Tensor, dy: Tensor, v: Tensor) -> list[Tensor]:
    """Gradients of <dx, v> with respect to x, the parameters and dy; forward and backward are part of the time."""
    y = module(x)
    (dx,) = torch.autograd.grad(y, [x], dy, create_graph=True)
    operands = [x, *module.parameters(), dy]
    return list(torch.autograd.grad(dx, operands, v, allow_unused=True, materialize_grads=True))


PASSES = {"forward+backward": forward_backward, "double backward": double_backward}
# Copies of x that move as many bytes as the pass must: 2 S forward, 3 S backward, 5 S double backward.
FLOOR_COPIES = {"forward+backward": 2.5, "double backward": 5.0}


# -- peers


def modules(layer: str, channels: int, pass_name: str) -> dict[str, nn.Module]:
    """Everything that is a module, by column."""
    made: dict[str, nn.Module] = {
        "normforge": nf.compile(layer, channels, backend="c"),
        "eager": nf.compile(layer, channels, backend="eager"),
        "torch.compile": torch.compile(nf.compile(layer, channels, backend="eager"), dynamic=False),
        "BatchNorm+ReLU": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
    }
    if pass_name == "forward+backward":
        made["torch.compile dynamic"] = torch.compile(nf.compile(layer, channels, backend="eager"), dynamic=True)
    if layer == "evonorm-b0":
        made["timm"] = timm.layers.EvoNorm2dB0(channels, eps=1e-5)
    if layer == "evonorm-s0":
        made["timm"] = timm.layers.EvoNorm2dS0(channels)
    return made


def kernels(layer: str, inputs: list[tuple[Tensor, Tensor, Tensor]], pass_name: str) -> Step:
    """The compiled functions alone, called with outputs that are used again."""
    x, dy, v = (t.detach() for t in inputs[0])
    module = nf.compile(layer, x.shape[1], backend="c")
    n, c = x.shape[:2]
    dims = (n, module.groups, c // module.groups, x[0, 0].numel())
    job = Job(0, True, module.groups, module.graph)
    given = [x, *(p.detach() for p in module.parameters())]
    calls = []
    saved: list[Tensor] = []
    seeds: list[Tensor] = []
    for order in range(2 if pass_name == "forward+backward" else 3):
        operands = [*given, *seeds, *saved]
        outputs = allocate(job, operands)
        kernel = launch_c.load(make_plan(job.program, "c", "float32", "nchw"), layer)
        calls.append((kernel, operands, outputs))
        kernel([*operands, *outputs], dims)
        if order == 0:
            saved = outputs[len(outputs) - len(job.program.saved) :]
        seeds = [dy] if order == 0 else [dy, v]
        job = job.after()

    def step(k: int) -> None:
        a, b, d = (t.detach() for t in inputs[k % SETS])
        swap = {id(x): a, id(dy): b, id(v): d}
        for kernel, operands, outputs in calls:
            kernel([*(swap.get(id(t), t) for t in operands), *outputs], dims)

    return step


# -- checks and times


def deviation(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest error of a list of tensors, relative to the largest magnitude of each."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        scale = float(w.detach().abs().max()) + 1e-3 * w.numel() ** 0.5
        worst = max(worst, float((g.double() - w).detach().abs().max()) / scale)
    return worst


def measure(steps: dict[str, Step], rounds: int) -> dict[str, dict[str, float]]:
    """Median, p20, p80 and minimum in milliseconds of peers that take turns by blocks of calls."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step(0)
            step(1)
            block = BLOCK if not times[name] or times[name][0] < SLOW else SLOW_BLOCK
            for k in range(block):
                start = time.perf_counter()
                step(k)
                times[name].append(time.perf_counter() - start)
    out = {}
    for name, seconds in times.items():
        p = statistics.quantiles(seconds, n=5, method="inclusive")
        figures = {"median": statistics.median(seconds), "p20": p[0], "p80": p[3], "min": min(seconds)}
        out[name] = {key: value * 1e3 for key, value in figures.items()}
    return out


def row(layer: str, shape: Shape, pass_name: str, rounds: int) -> dict[str, Any]:
    """One row of the table: every peer checked, then timed."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = []
    for _ in range(SETS):
        x, dy, v = (torch.randn(shape) for _ in range(3))
        inputs.append((x.requires_grad_(), dy.requires_grad_(pass_name == "double backward"), v))
    run = PASSES[pass_name]
    truth = nf.compile(layer, shape[1], backend="eager").double()
    wide = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in inputs[0])
    want = run(truth, *wide)
    steps: dict[str, Step] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, module in modules(layer, shape[1], pass_name).items():
        try:
            got = run(module, *inputs[0])
        except RuntimeError as error:  # torch.compile refuses to be differentiated twice
            missing[name] = str(error).split("\n")[0][:120]
            continue
        if name not in ("timm", "BatchNorm+ReLU"):  # these have parameters, or a formula, of their own
            errors[name] = deviation(got, want)
            # Rivals may be less exact (at the kink of a maximum, an element more or less); their error is recorded.
            if not errors[name] < (1e-3 if name == "normforge" else 1e-2):
                raise SystemExit(f"{name} is wrong for {layer} {shape} {pass_name}: error {errors[name]:.1e}")

        def step(k: int, module: nn.Module = module) -> None:
            run(module, *inputs[k % SETS])

        steps[name] = step
    steps["kernels, reused"] = kernels(layer, inputs, pass_name)
    target = torch.empty(shape)
    steps["copy of x"] = lambda k: target.copy_(inputs[k % SETS][0].detach())
    steps["fresh copy of x"] = lambda k: inputs[k % SETS][0].detach().clone()
    times = measure(steps, rounds)
    copies = FLOOR_COPIES[pass_name]
    times["floor"] = {q: t * copies for q, t in times["copy of x"].items()}
    # By minima: on a busy machine a median says how often a thread waited for a core.
    impossible = [n for n in steps if "copy" not in n and times[n]["min"] < times["floor"]["min"]]
    if impossible:
        raise SystemExit(f"error in the benchmark: {impossible} below the floor for {layer} {shape} {pass_name}")
    return {
        "layer": layer, "shape": list(shape), "pass": pass_name, "ms": times, "error": errors, "missing": missing,
    }  # fmt: skip


def compile_seconds(layer: str) -> float:
    """Seconds from a new layer to all three orders compiled, in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NORMFORGE_CACHE": cache}
        command = [sys.executable, __file__, "--compile-one", layer]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def compile_one(layer: str) -> float:
    """The first double backward of a process less the second."""
    x, dy, v = (torch.randn(4, 32, 4, 4) for _ in range(3))
    x.requires_grad_(), dy.requires_grad_()
    double_backward(nf.compile("dyt", 32, backend="c"), x, dy, v)  # imports and first uses
    module = nf.compile(layer, 32, backend="c")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        double_backward(module, x, dy, v)
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


# -- report


def machine() -> dict[str, str]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().split("\n") if line.startswith("model name")]
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "commit": commit.stdout.strip(),
    }


def requirements(rows: list[dict[str, Any]], compiled: dict[str, float]) -> list[dict[str, Any]]:
    """Each required ratio, what was measured, and whether it holds."""
    out = []
    for r in rows:
        for layer, shape, pass_name, peer, least in REQUIRED:
            if layer not in (None, r["layer"]) or shape not in (None, tuple(r["shape"])) or pass_name != r["pass"]:
                continue
            if peer in r["ms"] and r["layer"] in LAYERS and tuple(r["shape"]) in SHAPES:
                ratio = r["ms"][peer]["median"] / r["ms"]["normforge"]["median"]
                where = f"{r['layer']} {'x'.join(map(str, r['shape']))} {pass_name} against {peer}"
                out.append({"what": where, "required": least, "measured": ratio, "holds": ratio >= least})
    for layer, seconds in compiled.items():
        what, holds = f"{layer}: seconds to compile three orders, at most", seconds <= COMPILE_SECONDS
        out.append({"what": what, "required": COMPILE_SECONDS, "measured": seconds, "holds": holds})
    return out


def show(console: Console, report: dict[str, Any]) -> None:
    """Tables of times and of required ratios."""
    columns = list(dict.fromkeys(name for r in report["rows"] for name in r["ms"]))
    table = Table(title="median ms (p20-p80)")
    for head in ("layer", "shape", "pass", *columns):
        table.add_column(head)
    for r in report["rows"]:
        cells = []
        for name in columns:
            t = r["ms"].get(name)
            absent = "n/a" if name in r["missing"] else ""
            cells.append(f"{t['median']:.2f} ({t['p20']:.2f}-{t['p80']:.2f})" if t else absent)
        table.add_row(r["layer"], "x".join(map(str, r["shape"])), r["pass"], *cells)
    console.print(table)
    ratios = Table(title="required")
    for head in ("what", "required", "measured", ""):
        ratios.add_column(head)
    for q in report["required"]:
        verdict = "ok" if q["holds"] else "[red]short[/red]"
        ratios.add_row(q["what"], f"{q['required']:g}", f"{q['measured']:.2f}", verdict)
    console.print(ratios)
    for r in report["rows"]:
        for name, why in r["missing"].items():
            console.print(f"n/a: {name}, {r['layer']}, {r['pass']}: {why}", markup=False)
    console.print(", ".join(f"{k} {v}" for k, v in report["machine"].items()))


def main() -> None:
    """Parse the command line, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more layers, shapes and rounds")
    parser.add_argument("--layers", default="", help="only these, comma-separated")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--compile-one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile_one:
        print(compile_one(options.compile_one))
        return
    layers = tuple(filter(None, options.layers.split(","))) or LAYERS + (MORE_LAYERS if options.full else ())
    shapes = SHAPES + (MORE_SHAPES if options.full else ())
    console = Console(width=None if sys.stdout.isatty() else 240)
    rows, compiled = [], {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("timing", total=len(layers) * (2 * len(shapes) + 1))
        for layer in layers:
            progress.update(task, description=f"compiling {layer}")
            compiled[layer] = compile_seconds(layer)
            progress.advance(task)
            for shape in shapes:
                for name in PASSES:
                    progress.update(task, description=f"{layer} {'x'.join(map(str, shape))} {name}")
                    rows.append(row(layer, shape, name, 8 if options.full else 4))
                    progress.advance(task)
    report = {"machine": machine(), "rows": rows, "compile_seconds": compiled}
    report["required"] = requirements(rows, compiled)
    show(console, report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
