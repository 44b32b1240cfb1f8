"""The device on which a network is trained: which it is, data on it, and the memory that a training takes there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from normforge.errors import OptionError
from normforge.train.data import Data


def device_of(asked: str) -> str:
    """The device of a name, `cpu` or `cuda`; `auto` is the latter where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def checked_device(asked: str) -> str:
    """As `device_of`.

    Raises:
        OptionError: a GPU is asked for, and torch finds none.
    """
    kind = device_of(asked)
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError("run.device = cuda: torch finds no GPU here")
    return kind


def on_device(data: Data, device: torch.device) -> Data:
    """The data on a device; a process moves them once, and keeps two data sets there."""
    if device.type == "cpu":
        return data
    key = data.digest, device
    if key not in _MOVED:
        if len(_MOVED) > 1:
            _MOVED.clear()
        _MOVED[key] = data.mapped(lambda part: part.to(device))
    return _MOVED[key]


_MOVED: dict[tuple[str, torch.device], Data] = {}


def peak_memory(device: torch.device, *, reset: bool = False) -> float:
    """The most MiB that this process has held since the last reset: on the GPU, or resident (Linux; else 0)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return round(torch.cuda.max_memory_reserved(device) / 2**20, 1)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return round(int(found.group(1)) / 1024, 1) if found else 0.0
