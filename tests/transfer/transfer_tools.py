"""Transfers small enough for a test, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from normforge.train.transfer.config import Config, load_config

SMALL = {
    "detection": (
        "data.drawn.size=64", "data.drawn.train=12", "data.drawn.validation=2", "data.drawn.test=2",
        "model.width=0.0625", "model.depths=1,1,1", "model.channels=16", "model.regions=4", "model.box_fc=16",
        "model.head_channels=16", "model.box_convs=1", "model.mask_convs=1", "model.min_size=64", "model.max_size=64",
        "recipe.images=24", "recipe.batch=4", "run.checkpoint=2", "run.threads=1",
    ),
    "gan": (
        "recipe.steps=6", "recipe.channels=1", "recipe.groups=2", "recipe.batch=8", "recipe.z=4", "recipe.shared=8",
        "recipe.samples=20", "recipe.standing=2", "recipe.ema_start=2", "run.checkpoint=2", "run.threads=1",
    ),
}  # fmt: skip


def config(task: str, *given: str) -> Config:
    """The small transfer, with settings over it."""
    return load_config(task, "small", [*SMALL[task], *given])


def arguments(task: str, out: Path, *more: str) -> list[str]:
    """Those of the small transfer, for `normforge`."""
    return ["transfer", task, "--out", str(out), *(part for s in SMALL[task] for part in ("--set", s)), *more]


def command(task: str, out: Path, *more: str) -> list[str]:
    """The command line of the small transfer."""
    return [sys.executable, "-m", "normforge", *arguments(task, out, *more)]


def normforge(line: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)


def same(one: Path, other: Path) -> bool:
    """Are two checkpoints the same, but for what depends on the clock?"""
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (one, other)]
    for state in states:
        del state["seconds"]
    return equal(*states)


def equal(a: object, b: object) -> bool:
    """Are two trees of tensors and plain values the same, to the bit?"""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)
