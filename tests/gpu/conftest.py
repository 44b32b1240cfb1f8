"""These tests need a GPU that runs a kernel, not merely a torch built for one."""

from __future__ import annotations

from pathlib import Path

import pytest


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
