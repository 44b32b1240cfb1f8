"""Stages "suite" and "again": pytest tests/gpu, outcome by outcome."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from first.rows import Row, Rows, of, read

ROOT = Path(__file__).parents[2]
PROCESSES = 16
GRACE = 6.0  # seconds before the end of the stage at which tests are stopped
CONFORMANCE = "tests/gpu/test_gpu_conformance.py::test_kernels"


def run(rows: Rows, *, rehearse: bool) -> None:
    """The whole suite; where the cache that was carried here does not fit, without float16."""
    missed = any(row.get("tried") and row["hits"] < row["tried"] for row in of(read(rows.path), "cache"))
    tests(rows, ["tests/gpu", *(["-k", "not float16 or bfloat16"] if missed else [])], rehearse=rehearse)


def again(rows: Rows, *, rehearse: bool) -> None:
    """What failed in the results of the first command, and one case of each kind."""
    before = rows.path.parent / "knowledge.jsonl"
    if not before.exists():
        before = ROOT / "bench" / "results" / "knowledge.jsonl"
    failed = [row["test"] for row in of(read(before), "test") if row["outcome"] == "failed"]
    tests(rows, list(dict.fromkeys([*failed, *one_of_each_kind()])), rehearse=rehearse)


def one_of_each_kind() -> list[str]:
    """Of the table of cases: backward, which has sums, by each kind."""
    found: dict[str, str] = {}
    for line in (ROOT / "tests" / "goldens" / "gpu_cases.txt").read_text().splitlines():
        _, order, kind, *_ = line.split()
        if order == "1":
            found.setdefault(kind, f"{CONFORMANCE}[{line}]")
    return list(found.values())


def tests(rows: Rows, what: list[str], *, rehearse: bool) -> None:
    """Run tests; a row each that did not pass, as it ends, and one with counts. A rehearsal collects only."""
    log = rows.path.with_suffix(".tests.jsonl")
    log.unlink(missing_ok=True)
    usual = ["-q", "-m", "gpu", "-p", "no:cacheprovider", *what]
    if rehearse:
        import pytest as package

        os.chdir(ROOT)
        rows.add(
            "suite", returned=int(package.main([*usual, "--collect-only", "-n", "0"])), **gather(rows, log), tail=""
        )
        return
    command = [sys.executable, "-m", "pytest", *usual, "-n", str(PROCESSES), "--timeout", "60", "--maxfail", "60"]
    environment = os.environ | {"NORMFORGE_GPU_LOG": str(log.absolute()), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=None if math.isinf(rows.left) else max(rows.left - GRACE, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                output, _ = process.communicate(timeout=GRACE / 2)
            except subprocess.TimeoutExpired:
                process.kill()
                output = "stopped"
    rows.add("suite", returned=process.returncode, **gather(rows, log), tail=output.strip()[-300:])


def gather(rows: Rows, log: Path) -> Row:
    """Rows of failed tests and counts by outcome, from what the suite wrote down, of a run that was stopped too."""
    found = read(log)
    for row in found:
        if row["outcome"] == "failed":
            rows.add("test", test=row["test"], outcome="failed", message=row["message"])
    compiled = [row for row in found if row["what"] == "kernels"]
    counts = dict(Counter(row["outcome"] for row in found if row["what"] == "test"))
    log.unlink(missing_ok=True)
    return {
        "counts": counts, "kernels_compiled": sum(r["compiled"] for r in compiled),
        "kernels_from_cache": sum(r["cached"] for r in compiled),
    }  # fmt: skip
