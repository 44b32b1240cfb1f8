"""What benchmarks on a GPU share: the machine in words, times, and files that are written as a run goes on."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], Any]
FLUSH_BYTES = 256 << 20  # several times any level-2 cache
CYCLES_A_SECOND = 2e9  # of a GPU, about
ROUNDS = 4  # of blocks; peers take turns


def machine() -> dict[str, str]:
    """What the figures depend on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    said = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": _driver(),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }
    for package in ("torch", "triton", "timm", "liger-kernel", "quack-kernels"):
        try:
            said[package] = version(package)
        except PackageNotFoundError:
            said[package] = "none"
    return said


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def figures(seconds: list[float]) -> dict[str, float]:
    """Median, p20 and p80 in milliseconds."""
    p = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else seconds * 4
    return {"median": statistics.median(seconds) * 1e3, "p20": p[0] * 1e3, "p80": p[3] * 1e3}


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def write(path: Path, report: dict[str, Any]) -> None:
    """A whole file or none, so that a run that is stopped leaves what it has. A row is a line, for people and diffs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(_lines(report, 2) + "\n")
    fresh.replace(path)


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON that is broken into lines `depth` levels down, and only around what holds more than numbers and words."""
    inner = indent + " "
    if depth and isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
        rows = [f"{inner}{json.dumps(str(k))}: {_lines(v, depth - 1, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if depth and isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return "[\n" + ",\n".join(f"{inner}{_lines(v, 0)}" for v in value) + f"\n{indent}]"
    return json.dumps(value)


class Clock:
    """Times of steps, on a GPU or, to rehearse, on the CPU.

    Before each timed step of a GPU the level-2 cache is filled with something else, by reading: written lines would
    have to be written back on the step's time. Then the GPU sleeps for as long as Python needs to enqueue the step,
    so that its time is the device's alone.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.buffer = torch.zeros(FLUSH_BYTES // 4 if self.cuda else 16, device=device)

    def wait(self) -> None:
        """Until everything enqueued is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def enqueue(self, step: Step) -> float:
        """Seconds that Python takes for a step whose result nobody waits for; median of five after one."""
        times = []
        for _ in range(6):
            self.wait()
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        self.wait()
        return statistics.median(times[1:])

    def wall(self, step: Step, calls: int) -> float:
        """Seconds a call of calls one after the other."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        self.wait()
        return (time.perf_counter() - start) / calls

    def block(self, step: Step, calls: int, host: float) -> list[float]:
        """Seconds of the device for each of some calls with a cold cache; `host` as `enqueue` measures it."""
        if not self.cuda:
            return [self.wall(step, 1) for _ in range(calls)]
        events = []
        for _ in range(calls):
            self.buffer.amax()
            torch.cuda._sleep(int((2 * host + 20e-6) * CYCLES_A_SECOND))
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            events.append((start, end))
        self.wait()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    def compare(self, steps: dict[str, Step], seconds: float) -> dict[str, dict[str, Any]]:
        """For each step its time on the device, its wall time a call, and Python's part, in milliseconds.

        Args:
            steps: what to time, by name; each is warm.
            seconds: to spend on each, about.
        """
        host = {name: self.enqueue(step) for name, step in steps.items()}
        wall = {name: self.wall(step, 3) for name, step in steps.items()}
        calls = {name: max(2, min(40, int(seconds / ROUNDS / max(wall[name], 1e-6)))) for name in steps}
        device: dict[str, list[float]] = {name: [] for name in steps}
        walls: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                step()
                device[name] += self.block(step, calls[name], host[name])
                walls[name].append(self.wall(step, calls[name]))
        return {
            name: {"device": figures(device[name]), "wall": figures(walls[name]), "host": host[name] * 1e3}
            for name in steps
        }
