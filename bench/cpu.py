"""Speed of the C backend on this machine, beside what one would use without it.

    python bench/cpu.py            every layer on the shapes that the verdicts are about, about ten minutes
    python bench/cpu.py --full     more shapes, torch.compile's max-autotune too

A row is a layer, a shape and a pass. Each peer is first checked against float64; then the peers take turns by blocks of
calls, the first call of a block untimed, as a training loop would call each of them: call by call, one would pay for
the caches and the heap that another leaves behind. Inputs change from call to call. Three runs are made of every row,
each on tensors of its own; a ratio is the median of three.

Module figures have all that autograd costs and outputs that are dropped from call to call: normforge's from its pool,
and in a second column without it; the peers' as torch allocates them. Another malloc would keep memory for every peer
alike, so a second process a malloc times torch.compile and normforge under glibc told to keep what is freed, and under
jemalloc where it is installed. Kernel figures are of the compiled functions alone, on outputs used again, beside the
time in which `copy_` moves the floor's bytes: 2 S forward, 3 S backward, 5 S double backward, S the bytes of x, and
more where further inputs or results are as large as x. bench/cpu_network.py has whole networks.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch._dynamo
from common import write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import normforge as nf
from normforge.codegen.plan import make_plan
from normforge.kernels import launch_c
from normforge.kernels.execute import allocate
from normforge.kernels.inputs import input_shapes
from normforge.kernels.job import Job
from normforge.kernels.pool import POOL
from normforge.kernels.timing import Step, floors, measure

Shape = tuple[int, ...]

RESULT = Path(__file__).parent / "results" / "cpu.json"
# Two of the layers that a search keeps: moments of what moments have scaled.
NESTED = {
    "nested-1": "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta",
    "nested-2": "tanh(x / rms[w,h](x - mean[b,w,h](x))) / std[w,h,c](x * sigmoid(v1 * x / std[w,h,c/g](x)))"
    " * gamma + beta",
}
# Given more than x.
IMAGE_INPUTS, TOKEN_INPUTS = ("adagn-silu",), ("adaln", "add-rmsnorm", "rmsnorm-gated")
IMAGE_LAYERS = ("evonorm-b0", "evonorm-s0", "bn-relu", "bn-silu", "gn-silu", "frn-tlu", *NESTED, *IMAGE_INPUTS)
TOKEN_LAYERS = ("layernorm-gelu", "rmsnorm", "dyt", *TOKEN_INPUTS)
# Networks on CIFAR, a stage of ResNet-50 at 224. Channels second.
IMAGES: tuple[Shape, ...] = ((128, 64, 16, 16), (128, 256, 8, 8), (16, 64, 56, 56))
# Above 32 MB eager takes seconds a call: some of the layers.
LARGE: Shape = (16, 64, 112, 112)
LARGE_LAYERS = ("evonorm-s0", "bn-relu", "gn-silu", "rmsnorm", *IMAGE_INPUTS, *TOKEN_INPUTS)
MORE_IMAGES: tuple[Shape, ...] = (
    LARGE, (128, 64, 32, 32), (32, 512, 7, 7), (32, 96, 28, 28), (32, 32, 112, 112), (1, 128, 512, 512),
)  # fmt: skip
# Tokens of a transformer, channels last.
TOKENS: tuple[Shape, ...] = ((8, 256, 1024),)
LARGE_TOKENS: Shape = (8, 2048, 1024)
MORE_TOKENS: tuple[Shape, ...] = (LARGE_TOKENS, (64, 197, 768), (8, 2048, 4096))
TWICE = (IMAGES[0], TOKENS[0])  # shapes of double backward
SETS = 3  # of inputs, taken in turns
RUNS = 3
SECONDS = 0.12  # of each peer and run, about
SMALL = 32 << 20  # bytes of x
WRONG = {
    "normforge": 1e-3
}  # largest error, relative to the largest value; peers may be less exact (kinks of a maximum)
COMPILE_SECONDS = 0.6
OFF = "normforge, no pool"
PLAIN = "BatchNorm+ReLU"  # of torch: another function, which one would use otherwise
POOL_LIMIT = POOL.limit
# Environments in which freed memory stays with the process. jemalloc's is that of PyTorch's tuning guide.
HUGE = {"THP_MEM_ALLOC_ENABLE": "1"}
GLIBC = HUGE | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
JEMALLOC = HUGE | {
    "MALLOC_CONF": "oversize_threshold:1,background_thread:true,metadata_thp:auto,"
    "dirty_decay_ms:9000000000,muzzy_decay_ms:9000000000"
}


def graph_of(layer: str) -> nf.Graph:
    """The graph of a row's layer."""
    return nf.parse(NESTED.get(layer, layer))


# -- the passes


def results(module: nn.Module, *given: Tensor) -> list[Tensor]:
    """All that a module returns."""
    found = module(*given)
    return [*found] if isinstance(found, tuple) else [found]


def forward_backward(module: nn.Module, x: Tensor, dy: Tensor, _: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The results, and the gradients of x, of further inputs and of the parameters; dy is the cotangent of each."""
    y = results(module, x, *inputs)
    return [*y, *torch.autograd.grad(y, [x, *inputs, *module.parameters()], [dy] * len(y))]


def double_backward(module: nn.Module, x: Tensor, dy: Tensor, v: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients of <dx, v> with respect to x, the parameters and dy; forward and backward are part of the time."""
    y = results(module, x, *inputs)
    (dx,) = torch.autograd.grad(y, [x], [dy] * len(y), create_graph=True)
    operands = [x, *inputs, *module.parameters(), dy]
    return list(torch.autograd.grad(dx, operands, v, allow_unused=True, materialize_grads=True))


PASSES = {"forward+backward": forward_backward, "double backward": double_backward}


# -- peers


def library(layer: str, channels: int) -> nn.Module | None:
    """The same function from torch or timm, where there is one."""
    act = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
    kind, _, activation = layer.partition("-")
    if kind == "bn":
        return nn.Sequential(nn.BatchNorm2d(channels), act[activation]())
    if kind == "gn":
        return nn.Sequential(nn.GroupNorm(32, channels, eps=1e-5), act[activation]())
    if kind == "layernorm":
        return nn.Sequential(nn.LayerNorm(channels), act[activation]())
    if layer == "rmsnorm":
        return nn.RMSNorm(channels, eps=1e-5)
    if layer == "frn-tlu":
        return timm.layers.FilterResponseNormTlu2d(channels, eps=1e-5)
    if layer == "evonorm-b0":
        return timm.layers.EvoNorm2dB0(channels, eps=1e-5)
    return timm.layers.EvoNorm2dS0(channels) if layer == "evonorm-s0" else None


def modules(layer: str, shape: Shape, pass_name: str, *, full: bool) -> dict[str, nn.Module]:
    """Everything that is a module, by column."""
    graph, tokens = graph_of(layer), layer in TOKEN_LAYERS
    channels = shape[-1 if tokens else 1]
    where = {"channels": channels, "channel_dim": -1 if tokens else 1}
    made: dict[str, nn.Module] = {
        "normforge": nf.compile(graph, backend="c", **where),
        "eager": nf.compile(graph, backend="eager", **where),
    }
    modes = ("", "max-autotune-no-cudagraphs") if full else ("",)
    if pass_name == "forward+backward":  # torch.compile refuses to be differentiated twice
        for mode in modes:
            eager = nf.compile(graph, backend="eager", **where)
            made[f"torch.compile {mode}".strip()] = torch.compile(eager, dynamic=False, mode=mode or None)
    same = library(layer, channels)
    if same is not None:
        made["library"] = same
    if not tokens and layer != "bn-relu" and graph.is_plain:
        made[PLAIN] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    return made


def kernels(layer: str, inputs: list[tuple[Tensor, ...]]) -> list[Step]:
    """The compiled functions of the three orders alone, called with outputs that are used again."""
    module = nf.compile(graph_of(layer), inputs[0][0].shape[1], backend="c")
    x, dy, v, *further = inputs[0]
    n, c = x.shape[:2]
    dims = (n, module.groups, c // module.groups, x[0, 0].numel())
    layout = "nchw" if x.is_contiguous() else "nhwc"
    job = Job(0, True, module.groups, module.graph)
    given = [x, *further, *(p.detach() for p in module.parameters())]
    steps: list[Step] = []
    saved: list[Tensor] = []
    seeds: list[Tensor] = []
    for order in range(3):
        operands = [*given, *seeds, *saved]
        outputs = allocate(job, operands)
        kernel = launch_c.load(make_plan(job.program, "c", "float32", layout), layer)
        kernel([*operands, *outputs], dims)

        def step(
            k: int, kernel: Any = kernel, operands: list[Tensor] = operands, outputs: list[Tensor] = outputs
        ) -> None:
            swap = dict(zip(map(id, inputs[0]), inputs[k % SETS], strict=True))
            kernel([*(swap.get(id(t), t) for t in operands), *outputs], dims)

        steps.append(step)
        if order == 0:
            saved = outputs[len(outputs) - len(job.program.saved) :]
        seeds = [dy] * len(module.graph.outputs) + [v] * (order > 0)
        job = job.after((0,))
    return steps


# -- checks and times


def deviation(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest error of a list of tensors, relative to the largest magnitude of each."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        scale = float(w.detach().abs().max()) + 1e-3 * w.numel() ** 0.5
        worst = max(worst, float((g.double() - w).detach().abs().max()) / scale)
    return worst


def draw(layer: str, shape: Shape, pass_name: str) -> list[tuple[Tensor, ...]]:
    """SETS of x, dy, v and further inputs."""
    inputs = []
    channel_dim = -1 if layer in TOKEN_LAYERS else 1
    for _ in range(SETS):
        x, dy, v = (torch.randn(shape) for _ in range(3))
        shapes = [input_shapes(node.axes, x, channel_dim)[0] for node in graph_of(layer).inputs[1:]]
        further = [(1 + 0.5 * torch.randn(s)).requires_grad_() for s in shapes]
        inputs.append((x.requires_grad_(), dy.requires_grad_(pass_name == "double backward"), v, *further))
    return inputs


def steps_of(layer: str, shape: Shape, pass_name: str, made: dict[str, nn.Module]) -> dict[str, Step]:
    """What is timed of a row, on new tensors."""
    inputs, run = draw(layer, shape, pass_name), PASSES[pass_name]

    def call(k: int, module: nn.Module, limit: int) -> None:
        POOL.limit = limit
        run(module, *inputs[k % SETS])

    steps: dict[str, Step] = {OFF: lambda k: call(k, made["normforge"], 0)}
    for name, module in made.items():
        steps[name] = lambda k, module=module: call(k, module, POOL_LIMIT)
    target = torch.empty(shape)
    steps["copy of x"] = lambda k: target.copy_(inputs[k % SETS][0].detach())
    if pass_name == "forward+backward" and "eager" in made:
        flat = [tuple(t.detach() for t in one) for one in inputs]
        if layer in TOKEN_LAYERS:
            flat = [tuple(t.movedim(-1, 1) if t.shape == shape else t for t in one) for one in flat]
        for order, step in enumerate(kernels(layer, flat)):
            steps[f"kernel {order}"] = step
    return steps


def row(layer: str, shape: Shape, pass_name: str, *, full: bool, runs: int) -> dict[str, Any]:
    """One row of the table: every peer checked, then timed."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = draw(layer, shape, pass_name)
    run = PASSES[pass_name]
    made = modules(layer, shape, pass_name, full=full)
    truth = nf.compile(
        graph_of(layer), made["eager"].channels, channel_dim=made["eager"].channel_dim, backend="eager"
    ).double()
    wide = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in inputs[0])
    want = run(truth, *wide)
    errors, first = {}, {}
    for name, module in made.items():
        start = time.perf_counter()
        got = run(module, *inputs[0])
        first[name] = time.perf_counter() - start
        if name in ("normforge", "eager") or name.startswith("torch.compile"):
            errors[name] = deviation(got, want)
            if not errors[name] < WRONG.get(name, 1e-2):
                raise SystemExit(f"{name} is wrong for {layer} {shape} {pass_name}: error {errors[name]:.1e}")
    del want, wide, got
    measured = [measure(steps_of(layer, shape, pass_name, made), SECONDS) for _ in range(runs)]
    times = {name: statistics.median(m[name] for m in measured) for name in measured[0]}
    ratios = {
        name: statistics.median(m[name] / m["normforge"] for m in measured)
        for name in (OFF, *made)
        if name != "normforge"
    }
    least = floors(graph_of(layer))
    by_order = (least[0], least[1] - least[0], least[2] - least[1])
    cold = statistics.median(2 * m["normforge"] / (least[1] * m["copy of x"]) for m in measured)
    shares = {
        f"kernel {k}": statistics.median(2 * m[f"kernel {k}"] / (m["copy of x"] * by_order[k]) for m in measured)
        for k in range(3)
        if f"kernel {k}" in times
    }
    # Below the time that its bytes take, a peer has not done its work.
    fastest = min(m["normforge"] / m["copy of x"] for m in measured)
    if fastest < 0.7:
        raise SystemExit(f"error in the benchmark: {layer} {shape} {pass_name} takes {fastest:.2f} copies of x")
    return {
        "layer": layer, "shape": list(shape), "pass": pass_name, "megabytes": math.prod(shape) * 4 / 1e6,
        "ms": times, "ratio": ratios, "cold_copies": cold, "floor": shares, "error": errors,
        "first_call_seconds": first,
    }  # fmt: skip


# -- under another malloc


def mallocs(jemalloc: str) -> dict[str, dict[str, str]]:
    """Environments by name; see `GLIBC`."""
    return {"tuned glibc": GLIBC} | ({"jemalloc": JEMALLOC | {"LD_PRELOAD": jemalloc}} if jemalloc else {})


def under_malloc(environment: dict[str, str], rows: list[tuple[str, Shape]]) -> list[dict[str, Any]]:
    """Forward and backward of some rows in a process with an environment: milliseconds by peer, and ratios."""
    given = json.dumps({"rows": rows, "threads": torch.get_num_threads()})
    command = [sys.executable, __file__, "--under-malloc", given]
    ran = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout)


def time_rows(given: dict[str, Any]) -> list[dict[str, Any]]:
    """What `under_malloc` asks of its process."""
    torch.set_num_threads(given["threads"])
    both, out = "forward+backward", []
    for layer, shape in given["rows"]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        made = {k: m for k, m in modules(layer, shape, both, full=False).items() if k in ("normforge", "torch.compile")}
        ms = measure(steps_of(layer, shape, both, made), SECONDS)
        out.append({"layer": layer, "shape": shape, "ms": ms, "ratio": ms["torch.compile"] / ms["normforge"]})
    return out


# -- compile time, recompiles


def compile_seconds(layer: str) -> float:
    """Seconds from a new layer to all three orders compiled, in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NORMFORGE_CACHE": cache}
        command = [sys.executable, __file__, "--compile-one", layer]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def compile_one(layer: str) -> float:
    """The first double backward of a layer less the second; median of three layers that differ in ε alone."""
    x, dy, v = (torch.randn(4, 32, 4, 4) for _ in range(3))
    x.requires_grad_(), dy.requires_grad_()
    double_backward(nf.compile("derf", 32, backend="c"), x, dy, v)  # imports and first uses
    found = []
    for eps in (1e-5, 1.1e-5, 1.2e-5):
        graph = graph_of(layer)
        module = nf.compile(nf.Graph(graph.outputs, graph.inputs, eps), 32, backend="c")
        further = [torch.ones(input_shapes(node.axes, x)[0], requires_grad=True) for node in graph.inputs[1:]]
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            double_backward(module, x, dy, v, *further)
            seconds.append(time.perf_counter() - start)
        found.append(seconds[0] - seconds[1])
    return statistics.median(found)


def recompiles(layer: str) -> int:
    """Objects that 20 shapes need beyond those of the first."""
    generator = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(20):
        n, c, h, w = (int(torch.randint(2, high, (), generator=generator)) for high in (9, 17, 20, 20))
        x, dy, v = (torch.randn(n, 4 * c, h, w) for _ in range(3))
        further = [torch.ones(input_shapes(node.axes, x)[0], requires_grad=True) for node in graph_of(layer).inputs[1:]]
        module = nf.compile(graph_of(layer), 4 * c, backend="c")
        double_backward(module, x.requires_grad_(), dy.requires_grad_(), v, *further)
        counts.append(len(launch_c._objects))
    return counts[-1] - counts[0]


# -- report


def machine() -> dict[str, str]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().split("\n") if line.startswith("model name")]
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    from normforge.kernels import toolchain

    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "compiler": toolchain.identity()[1],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "commit": commit.stdout.strip(),
    }


def verdicts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What is required, what was measured, and whether it holds; `required` is None of what is only reported."""
    rows: list[dict[str, Any]] = report["rows"]
    out: list[dict[str, Any]] = []

    def add(what: str, required: float | None, measured: float | None, *, most: bool = False) -> None:
        if measured is not None:
            holds = required is None or (measured <= required if most else measured >= required)
            out.append({"what": what, "required": required, "most": most, "measured": measured, "holds": holds})

    def is_small(r: dict[str, Any]) -> bool:
        return math.prod(r["shape"]) * 4 <= SMALL

    def mean(pass_name: str, peer: str, small: bool | None = None) -> float | None:
        found = [
            r["ratio"][peer]
            for r in rows
            if r["pass"] == pass_name and peer in r["ratio"] and small in (None, is_small(r))
        ]
        return statistics.geometric_mean(found) if found else None

    both = "forward+backward"
    for small, size in ((True, "up to"), (False, "above")):
        add(f"forward+backward against torch.compile, x {size} 32 MB", 3.0, mean(both, "torch.compile", small))
        add(f"forward+backward against normforge without its pool, x {size} 32 MB", None, mean(both, OFF, small))
        for name, found in report["mallocs"].items():
            ratios = [r["ratio"] for r in found if is_small(r) is small]
            if ratios:
                what = f"forward+backward against torch.compile, both under {name}, x {size} 32 MB"
                add(what, None, statistics.geometric_mean(ratios))
    add("forward+backward against eager", 10.0, mean(both, "eager"))
    add("double backward against eager", 15.0, mean("double backward", "eager"))
    for r in rows:
        if r["pass"] == both and not is_small(r):
            what = f"{r['layer']} {'x'.join(map(str, r['shape']))} forward+backward, cold copies of its least bytes"
            add(what, 1.5, r["cold_copies"], most=True)
    peers = [(ratio, peer, r) for r in rows for peer, ratio in r["ratio"].items() if peer not in (OFF, PLAIN)]
    ratio, peer, r = min(peers, key=lambda found: found[0])
    add(f"worst row ({r['layer']} {'x'.join(map(str, r['shape']))} {r['pass']} against {peer})", 0.95, ratio)
    for r in rows:
        if r["layer"] in ("evonorm-s0", "gn-silu") and r["floor"] and r["megabytes"] * 1e6 > SMALL:
            for order, name in enumerate(("forward", "backward")):
                what = f"{r['layer']} {'x'.join(map(str, r['shape']))} {name} kernel, copies of its floor's bytes"
                add(what, 1.8, r["floor"][f"kernel {order}"], most=True)
    for layer, seconds in report["compile_seconds"].items():
        add(f"{layer}: seconds to compile three orders", COMPILE_SECONDS, seconds, most=True)
    for layer, count in report["recompiles"].items():
        add(f"{layer}: objects compiled for 20 shapes beyond the first", 0, count, most=True)
    return out


def show(console: Console, report: dict[str, Any]) -> None:
    """Tables of times, kernels and verdicts."""
    rows = report["rows"]
    columns = [c for c in dict.fromkeys(name for r in rows for name in r["ms"]) if not c.startswith(("kernel", "copy"))]
    columns.remove("normforge")
    columns.insert(0, "normforge")
    table = Table(title="modules: median ms (times normforge's)")
    for head in ("layer", "shape", "pass", *columns):
        table.add_column(head)
    for r in rows:
        cells = []
        for name in columns:
            ratio = r["ratio"].get(name)
            colour = "red" if ratio is not None and ratio < 0.95 else "default"
            times = f" ([{colour}]{ratio:.2f}[/])" if ratio is not None else ""
            cells.append(f"{r['ms'][name]:.2f}{times}" if name in r["ms"] else "")
        table.add_row(r["layer"], "x".join(map(str, r["shape"])), r["pass"], *cells)
    console.print(table)
    table = Table(title="kernels alone, outputs used again: median ms (times the copy of the floor's bytes)")
    for head in ("layer", "shape", "forward", "backward", "double backward", "copy of x"):
        table.add_column(head)
    for r in rows:
        if r["floor"]:
            cells = [f"{r['ms'][k]:.2f} ({r['floor'][k]:.2f})" for k in r["floor"]]
            table.add_row(r["layer"], "x".join(map(str, r["shape"])), *cells, f"{r['ms']['copy of x']:.2f}")
    console.print(table)
    table = Table(title="verdicts")
    for head in ("what", "required", "measured", ""):
        table.add_column(head)
    for q in report["verdicts"]:
        required = "" if q["required"] is None else f"{'≤' if q['most'] else '≥'} {q['required']:g}"
        verdict = "" if q["required"] is None else "ok" if q["holds"] else "[red]short[/red]"
        table.add_row(q["what"], required, f"{q['measured']:.2f}", verdict)
    console.print(table)
    console.print(", ".join(f"{k} {v}" for k, v in report["machine"].items()))


def plot(report: dict[str, Any], path: Path) -> None:
    """Each kernel's share of the copy's bandwidth at the floor's bytes, by size of x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    marks = dict(zip(dict.fromkeys(r["layer"] for r in report["rows"]), "osD^vP*Xph<>", strict=False))
    for order, name in enumerate(("forward", "backward", "double backward")):
        colour = f"C{order}"
        for layer, mark in marks.items():
            found = [r for r in report["rows"] if r["layer"] == layer and r["floor"]]
            xs = [r["megabytes"] * (1 + 0.06 * (order - 1)) for r in found]
            axes.plot(xs, [100 / r["floor"][f"kernel {order}"] for r in found], mark, color=colour, alpha=0.7)
        axes.plot([], [], "s", color=colour, label=name)
    for layer, mark in marks.items():
        axes.plot([], [], mark, color="grey", label=layer)
    axes.axhline(100, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="MB of x", ylabel="% of the bandwidth of copy, at the floor's bytes", ylim=(0, None))
    axes.legend(ncols=2, fontsize=8)
    axes.set_title(f"C kernels, float32, {report['machine']['cpu']}, {report['machine']['threads']} threads")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more shapes, max-autotune (half an hour)")
    parser.add_argument("--layers", default="", help="only these, comma-separated")
    parser.add_argument("--shapes", default="", help="only these, such as 128x64x16x16,8x256x1024")
    parser.add_argument("--passes", default=",".join(PASSES), help="only these, comma-separated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every peer")
    parser.add_argument("--runs", type=int, default=RUNS, help="of every row, of which the median counts")
    installed = ctypes.util.find_library("jemalloc") or ""
    parser.add_argument("--jemalloc", default=installed, help="its library, where it is installed")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes, and beside it the plot")
    parser.add_argument("--compile-one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--under-malloc", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.under_malloc:
        print(json.dumps(time_rows(json.loads(options.under_malloc))))
        return
    if options.compile_one:
        print(compile_one(options.compile_one))
        return
    torch.set_num_threads(options.threads)
    layers = tuple(filter(None, options.layers.split(","))) or (*IMAGE_LAYERS, *TOKEN_LAYERS)
    chosen = [tuple(map(int, s.split("x"))) for s in filter(None, options.shapes.split(","))]
    images = [s for s in chosen if len(s) == 4] if chosen else IMAGES + (MORE_IMAGES if options.full else ())
    tokens = [s for s in chosen if len(s) == 3] if chosen else TOKENS + (MORE_TOKENS if options.full else ())
    work = []
    for layer in layers:
        shapes = [*(tokens if layer in TOKEN_LAYERS else images)]
        if not chosen and not options.full and layer in LARGE_LAYERS:
            shapes.append(LARGE_TOKENS if layer in TOKEN_LAYERS else LARGE)
        for shape in shapes:
            for name in options.passes.split(","):
                if name == "forward+backward" or options.full or chosen or shape in TWICE:
                    work.append((layer, shape, name))
    console = Console(width=None if sys.stdout.isatty() else 200)
    report: dict[str, Any] = {"machine": machine(), "rows": [], "mallocs": {}, "compile_seconds": {}, "recompiles": {}}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("timing", total=len(work) + len(mallocs(options.jemalloc)) + 3 * len(layers))
        for layer in () if chosen else layers:
            progress.update(task, description=f"compiling {layer}")
            report["compile_seconds"][layer] = compile_seconds(layer)
            report["recompiles"][layer] = recompiles(layer)
            progress.advance(task, 3)
        for layer, shape, name in work:
            progress.update(task, description=f"{layer} {'x'.join(map(str, shape))} {name}")
            report["rows"].append(row(layer, shape, name, full=options.full, runs=options.runs))
            progress.advance(task)
        compared = [(layer, shape) for layer, shape, name in work if name == "forward+backward"]
        for malloc, environment in mallocs(options.jemalloc).items() if compared else ():
            progress.update(task, description=f"under {malloc}")
            report["mallocs"][malloc] = under_malloc(environment, compared)
            progress.advance(task)
    report["verdicts"] = verdicts(report)
    show(console, report)
    write(options.output, report)
    plot(report, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
