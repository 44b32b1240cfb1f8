"""Two processes of torchrun train what one trains, to rounding."""

import os
import subprocess
from contextlib import ExitStack

import pytest
import torch
from rich.console import Console
from train_tools import command, config, contents, training

from normforge.errors import OptionError
from normforge.train.harness import evaluate_checkpoint, train
from normforge.train.harness.processes import Processes
from normforge.train.harness.run import Running

# Moments over the batch of all processes; every kind of clipping's units, whole numbers among them.
WAYS = {
    "ddp": ("layer=bn-relu", "run.sync=true", "recipe.accumulate=2"),
    "fsdp": (
        "run.parallel=fsdp", "model=proxy/nf_resnet", "networks.nf_resnet.width=0.5", "recipe.agc=0.1",
        "recipe.ema=0.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_one(way, tmp_path):
    settings = (*WAYS[way], "recipe.layout=nchw", "recipe.steps=6", "run.evaluate=3", "recipe.rate=0.02")
    several = command(*training(tmp_path / "two", *settings), processes=2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(several, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("test after 6 steps") == 1  # the first alone prints
    alone = train(config(*(s for s in settings if "parallel" not in s)), tmp_path / "one")
    (two, logged), (one, rows) = contents(tmp_path / "two"), contents(tmp_path / "one")
    assert two["model"].keys() == one["model"].keys()
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(logged, rows, strict=True):
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-3)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert two["test"] == pytest.approx(alone.test, rel=1e-3)
    assert evaluate_checkpoint(tmp_path / "two") == done.stdout.splitlines()[-1]  # by one process again


def test_a_batch_is_shared_evenly_or_not_at_all(tmp_path):
    among = Processes(0, 2, torch.device("cpu"))
    with pytest.raises(OptionError, match=r"recipe\.batch = 21 cannot be shared by 2 processes .* a multiple of 2"):
        Running(config("recipe.batch=21"), tmp_path, among, Console(quiet=True), ExitStack())
