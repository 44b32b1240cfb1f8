"""Emitted Triton kernels under the interpreter, against float64. Triton reads its mode once a process, so each test
runs `interpreted.py` in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from named import LAYERS, WITH_INPUTS

import normforge as nf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")

# One of each structure that no other test here has; starting a process takes as long as a layer, so those of a test
# share one.
STRUCTURES = "bn-relu,evonorm-b0,two-levels,nested-columns,mish,periodic"
NESTED = ["two-levels", "columns-and-rows", "nested-columns", "columns-by-group", "small-output", "constant"]
SMOOTH = "bn-silu,gn-silu,ln-relu,in-relu,layernorm-gelu,evonorm-s0,evonorm-b0"


def run(*checks: str, kind: str = "multi-launch") -> None:
    """Checks of `interpreted.py`, each as `check:layer,layer`."""
    here = str(Path(nf.__file__).parents[1])  # the process tests the package that this one has imported
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(script), kind, *checks], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_usual() -> None:
    run(f"usual:{STRUCTURES}")


@pytest.mark.parametrize("kind", ["resident", "swept"])
def test_slabs(kind: str) -> None:
    layers = {"resident": "gn-silu,layernorm-gelu", "swept": "gn-silu"}[kind]
    run(f"usual:{layers}", "extreme:gn-silu", "not_finite:bn-relu", kind=kind)


@pytest.mark.parametrize("kind", ["multi-launch", "swept"])
def test_variances_of_large_means(kind: str) -> None:
    run("outlier:gn-silu", kind=kind)


def test_special_values_and_types() -> None:
    """Large means, NaN and infinities, 16 bits, chunks of several tiles."""
    run("extreme:gn-silu", "not_finite:gn-relu,bn-relu,dyt", "low_precision:gn-silu", "chunks:bn-relu")


def test_cooperative() -> None:
    run("cooperative:bn-relu")


@pytest.mark.parametrize("kind", ["multi-launch", "resident", "swept"])
def test_further_inputs_and_results(kind: str) -> None:
    """Operands along all axes that an input may have, and several results."""
    layers = {"multi-launch": "masked,all-axes,branches", "resident": "add-layernorm,all-axes", "swept": "all-axes"}[
        kind
    ]
    run(f"usual:{layers}", kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *NESTED, *WITH_INPUTS])
def test_more_usual(name: str) -> None:
    run(f"usual:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi-launch", "resident", "swept"])
def test_more_special_values(kind: str) -> None:
    run(f"extreme:{SMOOTH}", "not_finite:gn-relu,bn-relu,frn-tlu,evonorm-b0", kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("check", ["usual", "more", "low_precision"])
def test_more_slabs(check: str, kind: str) -> None:
    """What no program can hold is left out: layers without sums, and for swept plans moments of several sizes."""
    run(f"{check}:{','.join([*LAYERS, *NESTED, *WITH_INPUTS])}", kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["bn-silu", "gn-silu", "in-relu", "ln-relu", "evonorm-b0", "evonorm-s0", "batch-levels", "cond-bn-relu"],
)
def test_more_cooperative(name: str) -> None:
    run(f"cooperative:{name}", f"more_cooperative:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *NESTED])
def test_more_shapes(name: str) -> None:
    run(f"more:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *NESTED])
def test_more_precision(name: str) -> None:
    run(f"low_precision:{name}", f"chunks:{name}")
