"""Workers, where candidates are evaluated: processes of this machine, or of a Ray cluster."""

from __future__ import annotations

from normforge.search.workers.local import LocalPool
from normforge.search.workers.open import open_pool
from normforge.search.workers.pool import WorkerPool, run_all

__all__ = ["LocalPool", "WorkerPool", "open_pool", "run_all"]
