"""Work functions that the tests plant in worker processes."""

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task

KEPT: list[np.ndarray] = []
# A process that has freed itself of the worker's limit.
GROW = """
import resource, time
resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
kept = []
while True:
    kept.append(bytearray(b"1") * 2**27)
    time.sleep(0.05)
"""


def by_key(task: Task) -> Outcome:
    """Does what the task's key says: `fault` or `fault:path`, where process ids are left for the test."""
    fault, _, path = task.key.partition(":")
    run = _note(path, os.getpid()) if "/" in path else 0
    match fault:
        case "raise":
            raise ValueError("a fault that was planted")
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "suicide":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_host":  # the process that the worker's guard belongs to
            os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
            time.sleep(3600)
        case "cuda":
            raise RuntimeError("CUDA error: device-side assert triggered\nand more")
        case "hang":
            time.sleep(3600)
        case "spin":
            while True:
                pass
        case "locked":
            ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter lock during the call
        case "held":  # until the test lets go
            while not Path(path).with_suffix(".go").exists():
                time.sleep(0.05)
        case "wait":  # to be killed, but for the second time
            time.sleep(3600 if run == 1 else 0)
        case "numpy":
            _numpy_bomb(path)
        case "fill":
            KEPT.append(np.ones(10**7))  # 76 MiB
        case "torch":
            import torch

            torch.ones(2**30)  # 4 GiB
        case "grow":
            subprocess.run([sys.executable, "-c", GROW], start_new_session=True)
        case "leave" | "orphan" | "keep":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
            _note(path, child.pid)
            if fault == "orphan":
                os._exit(3)
            if fault == "keep":
                time.sleep(3600)
        case "gpu":  # takes a third of the 6000 MiB that the test gives to each
            time.sleep(0.3)
            return Outcome(Fate.SCORED, os.environ["CUDA_VISIBLE_DEVICES"], seconds={"quality": 0.3}, peak=1000.0)
        case "large":  # needs a GPU for itself
            beside = [p for p in map(int, Path(path).read_text().split()) if p != os.getpid() and psutil.pid_exists(p)]
            if beside:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return Outcome(Fate.SCORED, os.environ["CUDA_VISIBLE_DEVICES"], seconds={"quality": 0.1}, peak=5000.0)
        case "pid":
            return Outcome(Fate.SCORED, reason=str(os.getpid()))
        case "threads":
            import torch

            return Outcome(Fate.SCORED, reason=f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}")
    return Outcome(Fate.SCORED, loss={"resnet": 1.0}, accuracy={"resnet": 0.5})


def _note(path: str, *numbers: int) -> int:
    with Path(path).open("a") as f:
        f.write(" ".join(map(str, numbers)) + "\n")
    return len(Path(path).read_text().splitlines())


def _numpy_bomb(path: str) -> None:
    kept = []
    try:
        while True:
            kept.append(np.ones(2**22))
    except MemoryError:
        _note(path, 0)  # it was the worker's own limit and not the guard
        raise


def at_once(task: Task) -> Outcome:
    """Scores that are a function of the layer, without training, for runs whose draws are what matters."""
    loss = dict.fromkeys(task.config.networks.use, 1 + int(task.graph.hash[:8], 16) / 2**32)
    half = dict.fromkeys(task.config.networks.use, 0.5)
    return Outcome(Fate.SCORED, scores=loss, loss=loss, accuracy=half, holdout=loss, test=half)


def real_but_for_one(task: Task) -> Outcome:
    """The real evaluation, but for one candidate."""
    from normforge.search.evaluate import run_task

    if not task.final and task.key == "6":
        raise ValueError("a fault that was planted")
    return run_task(task)


def real_and_noted(task: Task) -> Outcome:
    """The real evaluation, whose key is left in the file that NOTES names."""
    from normforge.search.evaluate import run_task

    with Path(os.environ["NOTES"]).open("a") as f:
        f.write(f"{task.key}\n")
    return run_task(task)


def made_up(task: Task) -> Outcome:
    """An outcome made of the layer's hash, which costs nothing; a worker takes a moment, not the same for each."""
    rungs, networks = task.config.ladder.use, task.config.networks.use
    drawn = np.random.default_rng(int(task.graph.content_hash[:8], 16))
    time.sleep(int(task.key.partition("/")[0].strip("#"), 36) % 3 / 200)
    scores = {n: round(float(s), 6) for n, s in zip(("micro", *networks), drawn.random(3), strict=True)}
    if task.final:
        noise = 0.2 * np.random.default_rng([int(task.graph.content_hash[:8], 16), task.repeat]).random(len(networks))
        losses = {n: round(scores[n] + float(e), 6) for n, e in zip(networks, noise, strict=True)}
        right = dict.fromkeys(networks, 0.9)
        return Outcome(Fate.SCORED, "", losses, loss=losses, accuracy=right, holdout=losses, test=right)
    rung = rungs.index(task.rung)
    trained = (1.0, 2.0, 4.0, 0.0)[rung]
    refused = (Fate.MICRO, Fate.QUALITY, Fate.FULL, Fate.STABILITY)[rung]
    if drawn.random(4)[rung] < 0.25:
        return Outcome(refused, "made up", seconds={refused.value: trained}, trained=trained)
    fate = Fate.SCORED if task.rung == rungs[-1] else Fate.PASSED
    own = ({"micro": scores["micro"]}, *[{n: scores[n] for n in networks}] * 2, {})[rung]
    loss = {} if task.rung in ("quality", "stability") else own
    return Outcome(fate, "", own, loss=loss, seconds={refused.value: trained}, rung=task.rung, trained=trained)


def made_up_to_300(task: Task) -> Outcome:
    """The same, but for a run that is to be killed: candidates from 300 on never end."""
    if int(task.key.partition("/")[0]) >= 300:
        time.sleep(600)
    return made_up(task)


# By candidate: the layers that `STARTS` begins with.
PLANTED = {"0": "spin", "1": "bomb", "2": "segfault", "3": "nan", "4": "data", "5": "raise"}
STARTS = ",".join(f"{op}(x) * gamma + beta" for op in ("tanh", "sigmoid", "exp", "square", "abs", "log", "sqrt"))


def real_but_for_six(task: Task) -> Outcome:
    """The real evaluation, but for one candidate of each fault."""
    import normforge as nf
    from normforge.search import evaluate
    from normforge.train import setup

    fault = "" if task.final else PLANTED.get(task.key, "")
    match fault:
        case "bomb":
            while True:
                KEPT.append(np.ones(2**24))
        case "segfault":
            ctypes.string_at(0)
        case "nan":
            task = dataclasses.replace(task, graph=nf.parse("x / max(0, -abs(x)) * gamma + beta"))
        case "data":
            load_data = setup.load_data
            try:
                setup.load_data = _damaged
                return evaluate.run_task(task)
            finally:
                setup.load_data = load_data
        case "spin" | "raise":
            return by_key(dataclasses.replace(task, key=fault))
    return evaluate.run_task(task)


def _damaged(*_: object) -> None:
    raise OSError("images/17.png is damaged")
