"""The Triton kernels over rows: under the interpreter, in a process of its own, and compiled for GPUs that are not
there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normforge as nf
from normforge.kernels.launch_triton import resources
from normforge.kernels.rows import launch_triton

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")


def test_interpreted() -> None:
    here = str(Path(nf.__file__).parents[1])
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = Path(__file__).with_name("interpreted_rows.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter")
@pytest.mark.parametrize("target", [90, *(pytest.param(t, marks=pytest.mark.slow) for t in (80, 100)), "gfx942"])
@pytest.mark.parametrize("name", launch_triton.VARIANTS)
def test_compiled(name: str, target: int | str) -> None:
    """No spills, float64 or atomics; loads and stores of 16 bytes where rows allow them."""
    for dtype in ("float32", "bfloat16"):
        kernel = launch_triton.compile_aot(name, dtype, target)
        found = resources(kernel)
        assert found.spills == 0 and not found.float64 and not found.atomics, f"{name} {dtype}: {found}"
        if isinstance(target, int) and name != "again":
            ptx = kernel.asm["ptx"]
            assert re.search(r"ld\.global[.\w]*v4", ptx) and re.search(r"st\.global[.\w]*v4", ptx), f"{name} {dtype}"


@pytest.mark.parametrize("capturable", [False, True])
def test_captured_step_compiles(capturable: bool) -> None:
    kernel = launch_triton.compile_aot("step", FROM_DEVICE=capturable, PAPER=capturable)
    assert resources(kernel).spills == 0


def test_launches_of_the_largest_network() -> None:
    """A group of parameters is a launch: three of nfnet_f6's 1457 tensors."""
    with torch.device("meta"):
        model = nf.nn.nfnet("nfnet_f6")
    groups = nf.optim.param_groups(model)
    assert len(groups) == 3 and sum(len(g["params"]) for g in groups) == 1457
    assert {p.dtype for g in groups for p in g["params"]} == {torch.float32}
