"""Checkpoints: all that a training is, in one file that is whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normforge.errors import RunError
from normforge.train.harness.processes import Processes, gathered, sharded_as
from normforge.train.loop import Training

FILE = "checkpoint.pt"
VERSION = 1
_STATE = ("params", "steps")  # of a group; the rest is said by the recipe


def save(path: Path, training: Training, among: Processes, about: dict[str, Any]) -> None:
    """Write a checkpoint; all processes call it, and the first one writes.

    Args:
        path: of the file, which is replaced once the new one is on the disk.
        training: weights, optimizer, average.
        among: the processes; each adds where its batches stand, and the state of its random generators.
        about: what else it holds, of plain values.

    Raises:
        RunError: it cannot be written.
    """
    state = {
        "version": VERSION,
        "done": training.done,
        "model": gathered(training.model.state_dict()),
        "optimizer": gathered(training.optimizer.state_dict()),
        "average": gathered(training.average.state_dict()) if training.average else None,
        "batches": among.gathered(training.batches.state_dict()),
        "random": among.gathered(random_state(among.device)),
    }
    if among.first:
        write(path, state | about)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values into a file, which is replaced once the new one is on the disk.

    Raises:
        RunError: it cannot be written.
    """
    fresh = path.with_suffix(".part")
    try:
        with fresh.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # or a loss of power leaves an empty file with the right name
        fresh.replace(path)
    except OSError as e:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)  # what there is of it takes room on a full disk
        raise RunError(
            f"the checkpoint {path} cannot be written ({e.strerror}): make room, or use another --out"
        ) from None


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; nothing in it is run.

    Raises:
        RunError: there is none, or it is none of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"there is no checkpoint {path}") from None
    except Exception as e:  # a damaged file raises whatever its bytes lead to
        reason = (str(e).strip() or type(e).__name__).split("\n")[0]
        raise RunError(f"the checkpoint {path} cannot be read, it may be damaged: {reason[:200]}") from None
    if not isinstance(state, dict) or "version" not in state or "config" not in state:
        raise RunError(f"{path} is no checkpoint of normforge")
    if state["version"] != VERSION:
        raise RunError(f"the checkpoint {path} was written by another version of normforge")
    return state


def restore(state: dict[str, Any], training: Training, among: Processes) -> None:
    """Go on from a checkpoint, exactly where the number of processes is the same.

    Raises:
        RunError: it is of another model.
    """
    load_weights(training.model, state["model"])
    optimizer, own = state["optimizer"], training.optimizer.state_dict()
    params = [p for group in training.optimizer.param_groups for p in group["params"]]
    indices = [index for group in own["param_groups"] for index in group["params"]]
    by_index = dict(zip(indices, params, strict=True))
    for index, kept in optimizer["state"].items():
        optimizer["state"][index] = {k: sharded_as(v, by_index[index]) for k, v in kept.items()}
    settings = [{k: v for k, v in g.items() if k not in _STATE} for g in training.optimizer.param_groups]
    training.optimizer.load_state_dict(optimizer)
    for group, own_settings in zip(training.optimizer.param_groups, settings, strict=True):
        group.update(own_settings)  # among them the tensor with the learning rate that a captured step reads
    if training.average:
        training.average.load_state_dict(state["average"])
    training.done = state["done"]
    mine = among.rank % len(state["random"])  # of as many processes its own
    training.batches.load_state_dict(state["batches"][mine])
    restore_random(state["random"][mine], among.device)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's own generators, of the CPU and of a GPU that is trained on."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"torch": torch.get_rng_state(), **cuda}


def restore_random(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into a model, whole or sharded.

    Raises:
        RunError: they are another model's.
    """
    own = model.state_dict()
    if own.keys() != weights.keys() or any(own[k].shape != v.shape for k, v in weights.items()):
        raise RunError("the checkpoint holds another model's weights: it was written by another version of a library")
    model.load_state_dict({k: sharded_as(v, own[k]) for k, v in weights.items()})
