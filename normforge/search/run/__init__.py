"""A run: a session of it, its phases, and the dispatcher that both give their tasks to."""

from __future__ import annotations

from normforge.search.run.loop import run

__all__ = ["run"]
