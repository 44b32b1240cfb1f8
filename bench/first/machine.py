"""Stage "card": versions, the card, what a copy moves a second, and whether the kernels that were carried here fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import machine
from stand_in import Request, compilations, compile_request, use_driver

from first.cache import unpacked
from first.card import Card
from first.rows import Row, Rows
from first.shapes import PLACES, TINY, plans

COPIES = (8_000_000, 67_000_000, 205_000_000, 411_000_000)
TRIED = 20  # kernels that are looked for in the cache
WANTED = "sm_90"  # what they are compiled for


def run(rows: Rows, *, rehearse: bool) -> None:
    """The rows "machine", "unpacked", "copy", "cache"."""
    card = Card.find(rehearse=rehearse)
    rows.attempt("machine", lambda: {**machine(), **about(card)})
    unpacked(rows, rehearse=rehearse)
    for size in COPIES[:1] if rehearse else COPIES:
        rows.attempt("copy", lambda size=size: {"bytes_a_second": card.copy_bandwidth(size)}, bytes=size)  # type: ignore[misc]
    rows.attempt("cache", lambda: hits(2 if rehearse else TRIED, rehearse=rehearse))


def about(card: Card) -> Row:
    """The card in numbers, and the tools that are there."""
    p = card.properties
    found = {
        "processors": p.multi_processor_count, "l2_bytes": p.L2_cache_size,
        "registers": p.regs_per_multiprocessor, "shared": p.shared_memory_per_multiprocessor,
        "capability": f"sm_{getattr(p, 'major', 9)}{getattr(p, 'minor', 0)}", "memory": getattr(p, "total_memory", 0),
        "tools": {tool: shutil.which(tool) is not None for tool in ("gcc", "cc", "ncu", "nvdisasm")},
    }  # fmt: skip
    try:
        command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.limit", "--format=csv,noheader"]
        found["clocks"] = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found["clocks"] = "unknown"
    return found


def hits(count: int, *, rehearse: bool) -> Row:
    """How many kernels of the first places are in the cache. Those that are not are compiled by it, as they would be
    anyway."""
    use_driver()
    with compilations() as made:
        for place in TINY if rehearse else PLACES:
            for plan in plans(place, (0,)):
                if len(made) >= count:
                    break
                compile_request(Request(plan, place.title, place.dims))
                if not made[-1][1] and not rehearse:  # one miss says that the keys differ
                    break
    return {"tried": len(made), "hits": sum(hit for _, hit in made)}
