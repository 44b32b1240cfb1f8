"""These tests need a GPU that runs a kernel, not merely a torch built for one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOG = os.environ.get("NORMFORGE_GPU_LOG", "")  # a file that gets a line a test, as it ends, and one a process


def working_gpu() -> str | None:
    """None when a device works; else why not."""
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        return None if (torch.ones(8, device="cuda") * 2).sum().item() == 16 else "the device computes wrongly"
    except RuntimeError as e:
        return f"the device does not work: {e}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = working_gpu() if mine else None
    for item in mine:
        item.add_marker("gpu")
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def note(**row: Any) -> None:
    if LOG:
        with Path(LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that gives out the tests; a skip in setup and a failure anywhere count too."""
    if "PYTEST_XDIST_WORKER" not in os.environ and (report.when == "call" or report.outcome != "passed"):
        message = str(report.longrepr).strip().split("\n")[-1][:300] if report.failed else ""
        note(what="test", test=report.nodeid, outcome=report.outcome, message=message, seconds=report.duration)


@pytest.fixture(scope="session", autouse=True)
def count_kernels() -> Iterator[None]:
    """How many kernels Triton compiled and found in its cache, in each process."""
    if not LOG:
        yield
        return
    from triton import knobs

    hits: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    yield
    note(what="kernels", compiled=len(hits) - sum(hits), cached=sum(hits))
