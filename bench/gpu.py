"""Speed of the Triton backend on one GPU, beside what one would use without it.

    python bench/gpu.py            the layers and shapes that the verdicts are about, as many as 8 minutes allow
    python bench/gpu.py --full     every layer, shape, dtype and layout
    python bench/gpu.py --plan     what would be run, in which order and for how long; needs no GPU

A row is a layer, a shape, a dtype, a layout and an order, timed alone: forward, backward given forward, double backward
given both; beside it the kernels alone of every kind of plan that can run it, so that a wrong choice shows. Each peer
is first checked against float64 on the device; one that is wrong is reported and not timed. Peers take turns by blocks
of calls. `device` is the time between two CUDA events with a cold level-2 cache while Python runs ahead; `wall` the
time of calls one after the other, Python included. The ceiling is what `copy_` of the same tensor moves a second in the
same run.

The results file is written after every row: a run that is stopped keeps what it has. Exits with 2 where there is no
CUDA GPU, with 1 where a part of the run failed. Peers that are not installed (Liger, Quack) are left out; timm and
matplotlib come with normforge.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from common import Clock, machine, write
from first.card import Card
from first.kinds import measure as measure_kind
from first.shapes import plans
from gpu_cases import (
    LATER,
    NETWORK,
    NETWORKS,
    REHEARSED,
    TOKEN_LAYERS,
    WARM,
    cases,
    expected,
    place_of,
    planned,
    wanted,
)
from gpu_cases import seconds as seconds_of
from gpu_network import train
from gpu_peers import INDUCTOR, Case, Results, compiled, deviation, inductor, peers, run
from gpu_report import plot, show, verdicts
from gpu_warm import warm
from rich.console import Console
from rich.progress import Progress

import normforge as nf

RESULT = Path(__file__).parent / "results" / "gpu.json"
TWENTY = [(2 + i % 3, 32 * (1 + i % 2), 8 + 3 * i, 8 + 2 * i) for i in range(20)]
COMPILED_COLD = ("gn-silu", "evonorm-s0")
RESERVED = 0.2  # share of the limit that is kept for what comes after the rows


def rows_of(case: Case, clock: Clock, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Three rows of the table: every peer checked, then timed."""
    device = "cuda" if clock.cuda else "cpu"
    torch._dynamo.reset()
    x, dy, v = (case.tensor(seed, device) for seed in range(3))
    x.requires_grad_(), dy.requires_grad_()
    limit = max(4 * torch.finfo(x.dtype).eps, 1e-3)
    modules: dict[str, torch.nn.Module] = {}
    missing: dict[str, str] = {}
    for name, make in peers(case, options.backend).items():
        try:
            modules[name] = make().to(device)
        except Exception as error:
            missing[name] = words(error)
    copied = torch.empty_like(x)
    rows = []
    for order in range(3):
        want = reference(case, order, (x, dy, v), device)
        steps, errors, absent = {}, {}, dict(missing)
        first: dict[str, float] = {}
        for name, module in modules.items():
            if order == 2 and name in INDUCTOR:
                absent[name] = "torch.compile refuses to be differentiated twice"
                continue
            try:
                clock.wait()
                start = time.perf_counter()
                step, got = run(module, order, x, dy, v)
                clock.wait()
                first[name] = time.perf_counter() - start
                if name != "BatchNorm+ReLU":  # another function
                    errors[name] = deviation(got, want)
                    if not errors[name] <= limit:
                        absent[name] = f"wrong: relative error {errors[name]:.1e}"
                        continue
                step()
                steps[name] = step
            except Exception as error:  # a peer may refuse an order, a dtype or a shape; normforge's absence shows
                absent[name] = words(error)
        del want
        steps["copy of x"] = lambda: copied.copy_(x.detach())
        ms = clock.compare(steps, options.seconds)
        rows.append({
            "layer": case.layer, "shape": list(case.shape), "dtype": case.dtype, "layout": case.layout, "order": order,
            "plan": planned(case, order), "ms": ms, "error": errors, "first_call_seconds": first, "missing": absent,
        })  # fmt: skip
        steps.clear()
        if clock.cuda:
            speed = 2 * case.bytes / (1e-3 * ms["copy of x"]["device"]["median"])
            rows[-1]["kinds"] = kinds_of(case, order, clock, speed)
    del modules
    gc.collect()
    if clock.cuda:
        torch.cuda.empty_cache()
    return rows


def kinds_of(case: Case, order: int, clock: Clock, copy: float) -> dict[str, Any]:
    """The kernels alone by every kind of plan that can run them: time, registers, blocks an SM, workspace, refusals."""
    card, where = Card("cuda", clock, torch.cuda.get_device_properties(0)), place_of(case)
    found: dict[str, Any] = {}
    for plan in plans(where, (order,)):
        try:
            found[plan.kind] = measure_kind(card, where, plan, copy, [])
        except Exception as error:  # one kind must not cost the others
            found[plan.kind] = {"error": words(error)}
    return found


def reference(case: Case, order: int, inputs: tuple[torch.Tensor, ...], device: str) -> Results:
    """By torch in float64, or in float32 where the device has no room for that.

    Raises:
        MemoryError: it has none for that either.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            module = compiled(case, "eager").to(device, dtype)
            wide = [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in inputs]
            return {name: t.detach() for name, t in run(module, order, *wide)[1].items()}
        except torch.cuda.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
    raise MemoryError(f"no room for a reference of order {order}")


def words(error: Exception) -> str:
    """The first line of a message."""
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0][:140]}"


def _tiny(layer: str) -> Case:
    if layer in TOKEN_LAYERS:
        return Case(layer, (2, 4, 64), "float32", "nhwc")
    return Case(layer, (2, 64, 8, 8), "float32", "nchw")


def host_times(clock: Clock, backend: str) -> list[dict[str, Any]]:
    """Microseconds of Python for a call where the device has next to nothing to do."""
    device = "cuda" if clock.cuda else "cpu"
    rows = []
    for layer in ("evonorm-s0", "bn-relu", "gn-silu", "rmsnorm"):
        case = _tiny(layer)
        x, dy, v = (case.tensor(seed, device) for seed in range(3))
        x.requires_grad_(), dy.requires_grad_()
        found: dict[str, Any] = {}
        for name, make in peers(case, backend).items():
            torch._dynamo.reset()
            try:
                module = make().to(device)
                for order in range(2):
                    step = run(module, order, x, dy, v)[0]
                    for _ in range(20):
                        step()
                    found.setdefault(name, []).append(1e6 * min(clock.wall(step, 50) for _ in range(5)))
            except Exception as error:
                found[name] = words(error)
        launches = [planned(case, order)["launches"] for order in range(2)]
        rows.append({"layer": layer, "launches": launches, "us_forward_backward": found})
    return rows


def recompiles(clock: Clock, backend: str) -> dict[str, Any]:
    """Twenty shapes one after the other: kernels or graphs compiled, and seconds, forward and backward."""
    device = "cuda" if clock.cuda else "cpu"
    made: list[str] = []
    if clock.cuda:
        from triton import knobs

        knobs.runtime.jit_post_compile_hook = lambda **about: made.append(about["repr"]) or None
    out: dict[str, Any] = {}
    for peer in ("normforge", "torch.compile"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        made.clear()
        modules: dict[int, torch.nn.Module] = {}
        seconds, counts = [], []
        for shape in TWENTY:
            if shape[1] not in modules:
                module: Any = nf.compile("gn-silu", shape[1], backend=backend if peer == "normforge" else "eager")
                modules[shape[1]] = torch.compile(module) if peer == "torch.compile" else module
                modules[shape[1]].to(device)
            x = torch.randn(shape, device=device, requires_grad=True)
            clock.wait()
            start = time.perf_counter()
            modules[shape[1]](x).sum().backward()
            clock.wait()
            seconds.append(time.perf_counter() - start)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            counts.append(graphs if peer == "torch.compile" else len(made))
        out[peer] = {"seconds": seconds, "compiled_after": counts}
    if clock.cuda:
        knobs.runtime.jit_post_compile_hook = None
    return out


def compile_seconds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The first forward and backward of a new process, with empty caches on disk and with those of the run before."""
    rows = []
    for layer in COMPILED_COLD[:1] if options.rehearse else COMPILED_COLD:
        for peer in ("normforge", "torch.compile"):
            with tempfile.TemporaryDirectory() as cache:
                names = ("NORMFORGE_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
                environment = os.environ | {name: f"{cache}/{name}" for name in names}
                command = [sys.executable, __file__, "--compile-one", layer, peer]
                command += ["--rehearse"] if options.rehearse else []
                found: list[float | None] = []
                for _ in ("cold", "warm"):
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                    found.append(json.loads(done.stdout.split("\n")[-2]) if done.returncode == 0 else None)
                rows.append({"layer": layer, "peer": peer, "cold": found[0], "warm": found[1]})
    return rows


def compile_one(layer: str, peer: str, clock: Clock, backend: str) -> float:
    """Seconds of the first step of a layer less the second, after another layer has paid for first uses."""
    device = "cuda" if clock.cuda else "cpu"
    seconds = []
    for name in ("dyt", layer):
        module: torch.nn.Module = nf.compile(name, 64, backend=backend if peer == "normforge" else "eager").to(device)
        if peer == "torch.compile":
            module = inductor(module, None)
        x = torch.randn(8, 64, 16, 16, device=device, requires_grad=True)
        for _ in range(2):
            clock.wait()
            start = time.perf_counter()
            module(x).sum().backward()
            clock.wait()
            seconds.append(time.perf_counter() - start)
    return seconds[2] - seconds[3]


def measure(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Run everything that the limit allows, writing after each part."""
    torch._functorch.config.donated_buffer = False  # backward is timed alone, so its inputs stay
    clock = Clock("cpu" if options.rehearse else "cuda")
    end = time.monotonic() + 60 * options.minutes
    console = Console(stderr=True)
    todo = chosen(options)
    with Progress(console=console) as progress:
        task = progress.add_task("", total=len(todo) + len(NETWORKS) + len(LATER))

        def part(name: str) -> None:
            progress.update(task, description=name, advance=1)
            save(options.output, report)

        def train_network(variant: str) -> None:
            part(f"ResNet-50, {variant}")
            small = options.rehearse
            size = {"batch": 2 if small else 128, "side": 32 if small else 224, "small": small}
            try:
                report["network"][variant] = train(variant, options.backend, clock, **size)  # type: ignore[arg-type]
            except Exception as error:
                report["network"][variant] = {"error": words(error)}
            gc.collect()

        def late(name: str, seconds: float) -> bool:
            """Is there no time for this any more?"""
            over = not options.full and time.monotonic() + seconds > end
            report["left_out"] += [name] if over else []
            return over

        if options.warm and clock.cuda:
            part("torch.compile's graphs")
            report["warmed"] = warm(todo, options.warm, WARM)
        report["network"] = {}
        for i, variant in enumerate(NETWORKS[:3]):
            if i == 0 or not late(f"ResNet-50, {variant}", NETWORK):
                train_network(variant)
        for case in todo:
            if late(str(case), seconds_of(case, warm=bool(options.warm)) / 2 + RESERVED * 60 * options.minutes):
                continue
            part(str(case))
            try:
                report["rows"] += rows_of(case, clock, options)
            except Exception as error:  # one row must not cost the others
                console.print_exception()
                report["failed"].append(f"{case}: {words(error)}")
        later: dict[str, Callable[[], Any]] = {
            "host": lambda: host_times(clock, options.backend),
            "recompiles": lambda: recompiles(clock, options.backend),
            "compile_seconds": lambda: compile_seconds(options),
        }
        for key, what in later.items():
            if late(key, LATER[key]):
                continue
            part(key)
            try:
                report[key] = what()
            except Exception as error:
                console.print_exception()
                report["failed"].append(f"{key}: {words(error)}")
        for variant in NETWORKS[3:]:
            if not late(f"ResNet-50, {variant}", NETWORK):
                train_network(variant)
    report["status"] = "rehearsed on a CPU: no figure means anything" if options.rehearse else "measured"


def chosen(options: argparse.Namespace) -> list[Case]:
    """The rows of this run, in order."""
    layers = frozenset(filter(None, options.layers.split(",")))
    return wanted(list(REHEARSED) if options.rehearse else cases(full=options.full), options.max_autotune, layers)


def plan_only(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """The rows with what their plans say, and no times; the order of a run and the seconds that are expected of it."""
    total = 0.0
    layers = frozenset(filter(None, options.layers.split(",")))
    for what, seconds in expected(
        full=options.full, autotune=options.max_autotune, layers=layers, warm=bool(options.warm)
    ):
        total += seconds
        print(f"{total:6.0f} s  {what} ({seconds:.0f} s)")
        report.setdefault("expected", []).append({"what": what, "seconds": seconds, "until": total})
    for case in chosen(options):
        for order in range(3):
            report["rows"].append({
                "layer": case.layer, "shape": list(case.shape), "dtype": case.dtype, "layout": case.layout,
                "order": order, "plan": planned(case, order), "ms": {}, "error": {}, "missing": {},
            })  # fmt: skip
    report["status"] = "not run: no GPU" if not torch.cuda.is_available() else "not run: planned only"


def save(path: Path, report: dict[str, Any]) -> None:
    """Write the rows that were run; of a plan, how many would be."""
    ran = [row for row in report["rows"] if row["ms"] or row["error"] or row["missing"]]
    write(path, report | {"rows": ran, "rows_not_run": len(report["rows"]) - len(ran)})


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line (or what is given in its place), run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="everything, without a limit of time")
    parser.add_argument("--plan", action="store_true", help="print and write what would be run; keeps measured results")
    rehearse = (
        "every code path on the CPU with tiny tensors and the C backend: shows that the script works, and no speed"
    )
    parser.add_argument("--rehearse", action="store_true", help=rehearse)
    parser.add_argument("--layers", default="", help="only these, comma-separated")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile's slowest mode is a peer too")
    warm_help = "processes that first compile torch.compile's graphs, 40 s at most; its first calls are then not cold"
    parser.add_argument("--warm", type=int, default=0, help=warm_help)
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of a run that is not --full")
    parser.add_argument("--seconds", type=float, default=0.05, help="of device time for each peer of a row, about")
    parser.add_argument("--output", type=Path, help="where the JSON goes, and plots beside it")
    parser.add_argument("--compile-one", nargs=2, metavar=("LAYER", "PEER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.backend = "c" if options.rehearse else "triton"
    if options.compile_one:
        clock = Clock("cpu" if options.rehearse else "cuda")
        print(json.dumps(compile_one(*options.compile_one, clock, options.backend)))
        return 0
    if not (options.plan or options.rehearse or torch.cuda.is_available()):
        print(
            "bench/gpu.py needs a CUDA GPU, and torch sees none here; --plan shows what it would run", file=sys.stderr
        )
        return 2
    if options.output is None:
        options.output = Path(tempfile.mkdtemp()) / "gpu.json" if options.rehearse else RESULT
        if options.plan and RESULT.exists() and json.loads(RESULT.read_text()).get("status") == "measured":
            print(f"{RESULT} holds a measured run and stays; name another file with --output", file=sys.stderr)
            options.output = None
    if options.rehearse:
        options.seconds = 0.001
    report: dict[str, Any] = {"status": "stopped", "machine": machine(), "left_out": [], "failed": [], "rows": []}
    try:
        (plan_only if options.plan else measure)(options, report)
    finally:
        report["verdicts"] = verdicts(report)
        if options.output is not None:
            save(options.output, report)
    console = Console(width=None if sys.stdout.isatty() else 220)
    show(console, report)
    if not options.plan and options.output is not None:
        plot(report, options.output.with_suffix(".png"))
    console.print(f"written: {options.output}", markup=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
