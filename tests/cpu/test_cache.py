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


def program(text: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], env={**os.environ, **env}, capture_output=True, text=True)


def wrapped(path: Path, lines: str) -> str:
    """A compiler that does something else first."""
    path.write_text(f'#!/bin/sh\n{lines}\nexec {toolchain.find_compiler()} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_full_disk(tmp_path: Path) -> None:
    """The linker's word for it, in place of a full disk, for what is written under the cache: the disk is named, and
    kernels are built elsewhere."""
    full = tmp_path / "full"
    lines = f'case "$*" in *"{full}"*) echo "ld: final link failed: No space left on device" >&2; exit 1;; esac'
    compiler = wrapped(tmp_path / "cc", lines)
    ran = program(PROGRAM, NORMFORGE_CACHE=str(full), NORMFORGE_CC=compiler)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(f"the disk of {full} is full") == 1 and not list(full.rglob("*.so"))
    plain = program(PROGRAM, NORMFORGE_CACHE=str(tmp_path / "other"), NORMFORGE_CC=compiler)
    assert plain.stdout == ran.stdout and "full" not in plain.stderr


BROKEN = """
import torch, normforge as nf
y = nf.compile("gn-silu", 4)(torch.randn(2, 4, 3))
assert torch.isfinite(y).all()
try:
    nf.compile("gn-silu", 4, backend="c")
except nf.errors.BackendError as e:
    print(e)
"""


def test_a_compiler_that_does_not_work(tmp_path: Path) -> None:
    """`auto` falls back with its message, a backend asked for by name is refused with it."""
    compiler = wrapped(tmp_path / "cc", 'case "$1" in --version) ;; *) exit 3;; esac')
    ran = program(BROKEN, NORMFORGE_CACHE=str(tmp_path / "cache"), NORMFORGE_CC=compiler)
    assert ran.returncode == 0, ran.stderr
    words = "it said nothing, and ended with 3"
    assert "runs without compiled kernels: the C compiler does not work" in ran.stderr and words in ran.stderr
    assert words in ran.stdout
