"""Stage "profile": Nsight Compute on a few kernels, without control of the clocks."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from first.card import Card
from first.rows import Rows
from first.shapes import Place

# Plans whose kernels are looked at: place, order, kind.
PROFILED = (
    (("bn-relu", (128, 256, 56, 56), "nhwc"), 0, "multi-launch"),
    (("gn-silu", (128, 64, 112, 112), "nchw"), 0, "swept"),
    (("bn-relu", (128, 256, 56, 56), "nchw"), 1, "cooperative"),
    (("evonorm-b0", (128, 256, 56, 56), "nchw"), 2, "multi-launch"),
)
KERNELS = 5  # of all of them, the first that move full tensors
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed", "lts__t_sector_hit_rate.pct",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum", "launch__registers_per_thread", "launch__occupancy_limit_registers",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio",
)  # fmt: skip
SECONDS = 28  # that the tool may take


def run(rows: Rows, *, rehearse: bool) -> None:
    """A row a kernel; one that says why there is none, where the tool is missing or is refused the counters."""
    tool = shutil.which("ncu")
    if rehearse or tool is None:
        rows.add("profile", error="rehearsed" if rehearse else "no ncu")
        return
    command = [
        tool, "--clock-control", "none", "--csv", "--kernel-name", "regex:^nf_.*(sweep|slabs|cooperative)",
        "--launch-count", str(KERNELS), "--metrics", ",".join(METRICS),
        sys.executable, str(Path(__file__).parents[1] / "first_gpu.py"), "--stage", "profiled",
        "--output", str(rows.path.parent),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=min(SECONDS, max(rows.left - 2, 1)))
        text, why = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        text, why = _text(error.stdout), "took too long"
    found = parse(text)
    for row in found:
        rows.add("profile", **row)
    if not found:
        rows.add("profile", error=(why.strip() or text.strip())[-300:])


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def parse(text: str) -> list[dict[str, str | dict[str, str]]]:
    """Kernel and metrics of each launch in the tool's CSV, which follows lines of its own."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    found: dict[str, dict[str, str | dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if "Kernel Name" not in row or not row.get("Metric Name"):
            continue
        launch = found.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
        metrics = launch["metrics"]
        assert isinstance(metrics, dict)
        metrics[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def profiled(rows: Rows, *, rehearse: bool) -> None:
    """What the tool watches: each plan once."""

    card = Card.find(rehearse=rehearse)
    for about, order, kind in PROFILED:
        place = Place(*about)
        plan = place.plan(order, kind)
        if plan is None:
            continue
        given, made = card.tensors(plan, place.dims)
        card.load(plan, place.title)([*given, *made], place.dims)
        card.clock.wait()
        del given, made
