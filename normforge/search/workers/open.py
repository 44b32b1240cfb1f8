"""The pool that a configuration names."""

from __future__ import annotations

from normforge.search.config import Workers
from normforge.search.workers.local import LocalPool
from normforge.search.workers.pool import WorkerPool


def open_pool(work: str, config: Workers) -> WorkerPool:
    """The pool that `config.on` names; its processes start with the first tasks.

    Args:
        work: `module:function` from `Task` to `Outcome`, imported in the workers alone. Where it may use a GPU, its
            module imports torch.
        config: of the workers.

    Raises:
        OptionError: Ray is not installed.
        RunError: the Ray cluster cannot be reached.
    """
    if config.on == "local":
        return LocalPool(work, config)
    from normforge.search.workers.ray_pool import RayPool

    return RayPool(work, config)
