"""Trainings that are stopped and killed end in the same bits as one that was left alone."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from train_tools import assert_same, command, config, contents, training

from normforge.errors import RunError
from normforge.train.harness import train

# Everything that has a state: the order of images, crops, mixing, random operations, momentum, averages.
STATEFUL = (
    "model=proxy/nf_resnet", "data.crop=8", "data.pad=1", "data.flip=true", "recipe.mixup=0.2", "recipe.cutmix=1",
    "recipe.randaugment=1", "recipe.agc=0.1", "recipe.ema=0.9", "recipe.accumulate=2",
)  # fmt: skip
KILLS = 20


def begin(arguments: list[str], processes: int = 1) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = command(*arguments, processes=processes)
    return subprocess.Popen(
        whole, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait(process: subprocess.Popen, until, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until():
        time.sleep(0.01)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, of all processes at once."""
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.kill()
    process.wait(30)


def test_stopped_and_killed(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert train(config(*STATEFUL, "recipe.steps=40"), alone).whole
    arguments = training(killed, *STATEFUL, "recipe.steps=40")
    process = begin(arguments)
    wait(process, (killed / "checkpoint.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    stopped = torch.load(killed / "checkpoint.pt", weights_only=True)["done"]
    assert 3 <= stopped < 40
    process = begin(arguments)
    wait(process, lambda: torch.load(killed / "checkpoint.pt", weights_only=True)["done"] > stopped)
    kill(process)
    assert begin(arguments).wait(120) == 0
    assert_same(contents(killed), contents(alone))


# Running statistics and their averages too; single numbers, which FSDP2 leaves whole.
PARALLEL = {"ddp": ("model=proxy/resnet", "layer=evonorm-b0", "recipe.agc=none"), "fsdp": ()}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_twenty_kills_of_two_processes(tmp_path, parallel):
    """Of torchrun and both, at random moments: on the way up, between checkpoints, while one is written."""
    rng, file = random.Random(0), tmp_path / "killed" / "checkpoint.pt"
    settings = (
        *STATEFUL, *PARALLEL[parallel], f"run.parallel={parallel}", "recipe.layout=nchw", "recipe.steps=1500",
        "run.evaluate=200", "run.checkpoint=20",
    )  # fmt: skip
    assert begin(training(tmp_path / "alone", *settings), 2).wait(900) == 0
    kept = []
    for k in range(KILLS):
        process = begin(training(file.parent, *settings), 2)
        before = _written(file)
        if k % 2:  # while it trains, not on its way up
            wait(process, lambda before=before: _written(file) != before)
            wait(process, lambda: False, rng.uniform(0.0, 1.5))
        else:
            wait(process, lambda: False, rng.uniform(0.0, 10.0))
        assert process.poll() is None, "it ended before it was killed"
        kill(process)
        kept.append(torch.load(file, weights_only=True)["done"] if file.exists() else 0)
    print(f"steps kept after each kill: {kept}")
    assert kept == sorted(kept) and 0 < kept[-1] < 1500
    assert begin(training(file.parent, *settings), 2).wait(900) == 0
    assert_same(contents(file.parent), contents(tmp_path / "alone"))


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def test_a_training_that_is_done_is_not_done_again(tmp_path):
    first = train(config(), tmp_path)
    before = contents(tmp_path)
    assert train(config(), tmp_path) == first and first.whole and first.test
    assert_same(contents(tmp_path), before)


def test_a_training_goes_on_as_it_began_or_not_at_all(tmp_path):
    train(config(), tmp_path)
    train(config("run.checkpoint=5", "run.loaders=0"), tmp_path)
    for setting, words in (
        ("recipe.rate=0.3", "recipe.rate = 0.2, not 0.3"),
        ("model=proxy/plain", "model = 'proxy/resnet', not 'proxy/plain'"),
        ("data.seed=1", "data.seed = 0, not 1"),
    ):
        with pytest.raises(RunError, match=words):
            train(config(setting), tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(config("recipe.steps=3"), tmp_path)
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint .*checkpoint\.pt cannot be read, it may be damaged"):
            train(config("recipe.steps=3"), tmp_path)
    torch.save({"epoch": 3}, file)
    with pytest.raises(RunError, match="is no checkpoint of normforge"):
        train(config("recipe.steps=3"), tmp_path)
