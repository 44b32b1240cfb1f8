"""Small runs in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from normforge.errors import RunError
from normforge.search.config import load
from normforge.search.run import run
from normforge.search.store import FILE, Store

# Every part of a run, small: a few candidates, two steps each, no threshold that they could miss.
TINY = [
    "networks.resnet.width=0.03125",
    "networks.resnet.depths=1",
    "recipe.steps=2",
    "quality.steps=1",
    "quality.threshold=0",
    "stability.steps=1",
    "evolution.lag=2",
    "final.candidates=2",
    "final.best=1",
    "final.seeds=1",
    "final.baselines=bn-relu",
    "budget.candidates=150",
    "budget.minutes=60",
]
FAULTY = "search_faults:real_but_for_one"


def quiet() -> Console:
    return Console(file=StringIO(), width=120)


def events(directory: Path) -> list[tuple[tuple[str, str], dict]]:
    """Everything but times and sessions, in the order in which it was stored."""
    changing = {"seconds", "peak", "cached"}
    store = Store(directory)
    found = [((e.type, e.key), {k: v for k, v in e.data.items() if k not in changing}) for e in store.records()]
    store.close()
    return [(key, data) for key, data in found if key[0] != "session"]


def contents(directory: Path) -> dict[tuple[str, str], dict]:
    return dict(events(directory))


def start(directory: Path, *settings: str, work: str = FAULTY) -> subprocess.Popen:
    """The tiny run in a process of its own, with one faulty candidate: exit code 0 when finished, 130 when stopped."""
    arguments = json.dumps([str(directory), work, *TINY, *settings])
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, __file__, arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_candidates(directory: Path, evaluated: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (directory / FILE).exists():
            try:
                found = contents(directory)
            except RunError:  # it is being made
                continue
            if sum("hash" in data for data in found.values()) >= evaluated:
                return
        time.sleep(0.02)
    raise TimeoutError


if __name__ == "__main__":
    out, work, *options = json.loads(sys.argv[1])
    sys.exit(0 if run(load("digits", options), Path(out), Console(), work=work) else 130)
