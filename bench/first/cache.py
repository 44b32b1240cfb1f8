"""Stages "cache" and "unpack": kernels compiled ahead, from the archive that was carried here or by every core."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from carry import unpack

from first.rows import Rows, of, read

ARCHIVE = Path(__file__).parents[1] / "kernels.tar.xz"


def archive() -> Path | None:
    """$NORMFORGE_KERNELS, else bench/kernels.tar.xz; None where there is none."""
    path = Path(os.environ.get("NORMFORGE_KERNELS", ARCHIVE))
    return path if path.exists() else None


def unpacked(rows: Rows, *, rehearse: bool) -> None:
    """Unpack the archive into Triton's cache."""
    found = archive()
    if found is None:
        rows.add("unpacked", kernels=0, error="there is no archive")
        return
    rows.attempt("unpacked", lambda: {"kernels": unpack(found, Path(os.environ["TRITON_CACHE_DIR"]))})


def run(rows: Rows, *, rehearse: bool) -> None:
    """Where the carried kernels do not fit, compile those of the stages that have one process, then the suite's."""
    tried = of(read(rows.path), "cache")
    if tried and tried[-1].get("tried") and tried[-1]["hits"] == tried[-1]["tried"] and not rehearse:
        rows.add("compiled", kernels=0)
        return
    from precompile import build, requests

    jobs = 1 if rehearse else os.cpu_count() or 1
    wanted = requests(("tiny",) if rehearse else ("launches", "kinds", "suite"))
    rows.attempt("compiled", lambda: {"kernels": build(wanted, jobs, seconds=rows.left - 4)})
