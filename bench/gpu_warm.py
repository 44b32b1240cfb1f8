"""What torch.compile makes for the rows of bench/gpu.py, made ahead by several processes at once: Inductor keeps its
graphs on the disk, and with 16 cores most of the time of a run would be spent on waiting for one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch._functorch.config
from gpu_peers import INDUCTOR, Case, peers, run


def warm(cases: Sequence[Case], jobs: int, seconds: float) -> int:
    """Compile for as many cases as the time allows, the first first; how many were."""
    end = time.monotonic() + seconds
    waiting, running, done = list(cases), [], 0
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < jobs:
            command = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(waiting.pop(0)))]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        ended = [process for process in running if process.poll() is not None]
        done += sum(process.returncode == 0 for process in ended)
        running = [process for process in running if process not in ended]
        time.sleep(0.1)
    for process in running:
        process.kill()
        process.wait()
    return done


def compile_peers(case: Case, device: str) -> None:
    """Forward and backward of each of torch.compile's variants, as the rows will ask for them."""
    torch._functorch.config.donated_buffer = False  # as there: it is part of the key
    for name, make in peers(case, "eager").items():
        if name in INDUCTOR:
            x, dy, v = (case.tensor(seed, device).requires_grad_(seed < 2) for seed in range(3))
            for order in range(2):
                run(make().to(device), order, x, dy, v)


if __name__ == "__main__":
    found = json.loads(sys.argv[1])
    compile_peers(Case(**(found | {"shape": tuple(found["shape"])})), "cuda")
