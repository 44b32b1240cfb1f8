"""Trainings small enough for a test, in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from normforge.train.harness import TrainConfig, load_config

SMALL = (
    "data.fractals.size=8", "data.fractals.train=200", "data.fractals.held_out=90", "networks.resnet.width=0.03125",
    "networks.nf_resnet.width=0.03125", "networks.resnet.depths=1,1", "networks.nf_resnet.depths=1,1",
    "recipe.steps=12", "recipe.batch=20", "run.evaluate=4", "run.checkpoint=3", "run.threads=1",
)  # fmt: skip
TIMES = ("seconds", "images_a_second", "pipeline_images_a_second")


def config(*given: str, recipe: str = "small") -> TrainConfig:
    """The small training, with settings over it."""
    return load_config(recipe, [*SMALL, *given])


def command(*arguments: str, processes: int = 1) -> list[str]:
    """The command line of `normforge`, or of torchrun with it."""
    several = ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    return [sys.executable, "-m", *(several if processes > 1 else []), "normforge", *arguments]


def training(out: Path, *given: str) -> list[str]:
    """The arguments of the small training."""
    return ["train", "--out", str(out), *(part for setting in (*SMALL, *given) for part in ("--set", setting))]


def normforge(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=environment)


def refused(done: subprocess.CompletedProcess) -> str:
    """It ended with one sentence."""
    assert done.returncode == 2 and not done.stdout, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("normforge: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def contents(out: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The checkpoint of a training and its log, without what depends on the clock."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for row in [*state["rows"], *logged]:
        for name in TIMES:
            del row[name]
    del state["seconds"]
    for group in state["optimizer"]["param_groups"]:
        group.pop("differentiable", None)  # torch adds it where a state is loaded
    return state, logged


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Two trees are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for k, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    else:
        assert one == other, where
