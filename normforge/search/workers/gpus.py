"""GPUs of this machine: which there are, and how many tasks at once one has memory for."""

from __future__ import annotations

import os
from dataclasses import dataclass

_USED = 0.9  # share of a GPU's memory that is given out
_CONTEXT = 1024.0  # MiB that a process takes beside its tensors: libraries and kernels


@dataclass(eq=False)
class Gpu:
    """A GPU that workers share, and what is known of its memory.

    Attributes:
        name: as CUDA_VISIBLE_DEVICES has it.
        memory: MiB in all; 0 until a worker on it has told.
        trained: tasks that trained a network on it to some end; each is reason to admit one more at once.
    """

    name: str
    memory: float = 0.0
    trained: int = 0

    def room(self, peak: float) -> int:
        """The number of tasks that the GPU has memory for at once.

        Args:
            peak: MiB of tensors that a task has taken at most, of all so far.
        """
        return max(1, min(1 + self.trained, int(_USED * self.memory / (peak + _CONTEXT))))


def visible_gpus(device: str) -> list[Gpu]:
    """The GPUs that workers may use; none where they compute on the CPU.

    Args:
        device: `workers.device`.
    """
    if device == "cpu":
        return []
    import torch

    return [Gpu(name) for name in names(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())]


def names(given: str | None, count: int) -> list[str]:
    """The value of CUDA_VISIBLE_DEVICES for each GPU that it shows now.

    Args:
        given: its value, if it is set.
        count: of the GPUs that it shows, which are its first ones; there may be fewer than it names.
    """
    return [str(i) for i in range(count)] if given is None else [n.strip() for n in given.split(",")][:count]
