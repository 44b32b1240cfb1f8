"""Where candidates are evaluated: processes of this machine, or of a Ray cluster."""

from __future__ import annotations

from normforge.search.workers.local import LocalPool, WorkerPool, run_all
from normforge.search.workers.open import open_pool

__all__ = ["LocalPool", "WorkerPool", "open_pool", "run_all"]
