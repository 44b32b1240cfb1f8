"""Stage "bench": bench/gpu.py for as long as there is time; its own file holds the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from first.rows import Rows

PROCESSES = 14  # that compile torch.compile's graphs, before anything is timed
RESERVED = 12  # seconds for starting it, its table and its plot


def run(rows: Rows, *, rehearse: bool) -> None:
    """One row with the verdicts."""
    output = rows.path.parent / "gpu.json"
    minutes = max(rows.left - RESERVED, 1) / 60
    options = ["--output", str(output)]
    if rehearse:
        from gpu import main

        returned = main([*options, "--rehearse", "--layers", "dyt", "--minutes", "0"])
    else:
        command = [sys.executable, str(Path(__file__).parents[1] / "gpu.py"), *options, "--minutes", f"{minutes:.2f}"]
        command += ["--warm", str(PROCESSES)]
        returned = subprocess.run(command).returncode
    report = json.loads(output.read_text()) if output.exists() else {}
    rows.add(
        "bench", returned=returned, rows=len(report.get("rows", [])), left_out=len(report.get("left_out", [])),
        verdicts=report.get("verdicts", []),
    )  # fmt: skip
