"""The disk cache: real processes, real damage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normforge.kernels import toolchain

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")

PROGRAM = """
import torch, normforge as nf
torch.manual_seed(0)
x = torch.randn(2, 4, 3, 3, requires_grad=True)
y = nf.compile("x * sigmoid(v1 * x) / std[w,h,c/g](x) * gamma + beta * 3", channels=4, backend="c")(x)
y.sum().backward()
print(y.sum().item(), x.grad.sum().item())
"""


def start(cache: Path) -> subprocess.Popen[str]:
    env = os.environ | {"NORMFORGE_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return text


@pytest.mark.slow
def test_concurrent_processes_and_corrupt_entries(tmp_path: Path) -> None:
    together = [start(tmp_path) for _ in range(3)]
    outputs = {finish(p) for p in together}
    assert len(outputs) == 1
    objects = sorted(tmp_path.rglob("*.so"))
    assert len(objects) == 3  # forward, backward and the driver, once each
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".so", ".sum")]
    before = [p.stat().st_mtime_ns for p in objects]
    assert finish(start(tmp_path)) in outputs
    assert [p.stat().st_mtime_ns for p in objects] == before  # found, not built again
    # Whichever is the driver's, each is damaged once and missing once.
    for damaged, missing in ((0, 1), (1, 2), (2, 0)):
        whole = objects[damaged].read_bytes()
        objects[damaged].write_bytes(whole[: len(whole) // 2])
        objects[missing].unlink()
        assert finish(start(tmp_path)) in outputs
        assert objects[damaged].read_bytes() == whole and objects[missing].exists()


def test_unwritable_directory_still_runs(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    finish(start(blocked / "cache"))
