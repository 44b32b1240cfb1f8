"""GPUs of this machine: which there are, and how many tasks at once one has memory for."""

from __future__ import annotations

import os
from dataclasses import dataclass

_USED = 0.9  # share of a GPU's memory that is given out
_CONTEXT = 1024.0  # MiB that a process takes beside its tensors: libraries and kernels


@dataclass(eq=False)
class Gpu:
    """Attributes:
    name: as CUDA_VISIBLE_DEVICES has it.
    memory: MiB in all; 0 until a worker on it has told.
    """

    name: str
    memory: float = 0.0

    def room(self, peak: float) -> int:
        """Tasks at once.

        Args:
            peak: MiB of tensors that a task has taken at most, of all so far; 0 before the first has ended.
        """
        if not self.memory or not peak:
            return 1
        return max(1, int(_USED * self.memory / (peak + _CONTEXT)))


def visible_gpus(device: str) -> list[Gpu]:
    """Those that workers may use; none where they compute on the CPU.

    Args:
        device: `workers.device`.
    """
    if device == "cpu":
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        import torch

        return [Gpu(str(index)) for index in range(torch.cuda.device_count())]
    return [Gpu(name.strip()) for name in given.split(",") if name.strip() not in ("", "-1")]
