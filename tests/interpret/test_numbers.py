"""Emitted Triton kernels under the interpreter, against float64. Triton reads its mode once a process, so each test
runs `interpreted.py` in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import normforge as nf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")

NESTED = ["two-levels", "columns-and-rows", "nested-columns", "columns-by-group", "small-output", "constant"]
NO_INTERPRETER = 77
SMOOTH = ["bn-silu", "gn-silu", "ln-relu", "in-relu", "layernorm-gelu", "evonorm-s0", "evonorm-b0"]


def run(check: str, layers: str, kind: str = "multi-launch") -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, str(script), check, layers, kind], capture_output=True, text=True, env=environment
    )
    if done.returncode == NO_INTERPRETER:
        pytest.skip("the interpreter of this triton does not work with this numpy")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", [*nf.layers, *NESTED])
def test_usual(name: str) -> None:
    run("usual", name)


@pytest.mark.parametrize(
    ("kind", "names"), [("resident", "gn-silu,bn-relu,layernorm-gelu,evonorm-b0"), ("swept", "gn-silu")]
)
def test_slabs(kind: str, names: str) -> None:
    run("usual", names, kind)


@pytest.mark.parametrize("kind", ["resident", "swept"])
def test_slabs_of_extreme_values(kind: str) -> None:
    run("extreme", "gn-silu,in-relu,layernorm-gelu", kind)
    run("not_finite", "gn-relu,bn-relu,frn-tlu", kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("check", ["usual", "more", "low_precision"])
def test_more_slabs(check: str, kind: str) -> None:
    """What no program can hold is left out: layers without sums, and for swept plans moments of several sizes."""
    run(check, ",".join([*nf.layers, *NESTED]), kind)


@pytest.mark.parametrize("name", ["gn-silu", "evonorm-b0"])
def test_chunks_of_several_tiles(name: str) -> None:
    run("chunks", name)


def test_low_precision() -> None:
    run("low_precision", "gn-silu,evonorm-b0")


def test_large_mean() -> None:
    run("extreme", ",".join(SMOOTH))


def test_not_finite() -> None:
    run("not_finite", "gn-relu,bn-relu,frn-tlu,dyt,evonorm-b0")


@pytest.mark.parametrize("name", ["bn-relu", "gn-silu"])
def test_cooperative(name: str) -> None:
    run("cooperative", name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bn-silu", "gn-silu", "in-relu", "ln-relu", "evonorm-b0", "evonorm-s0", "batch-levels"]
)
def test_more_cooperative(name: str) -> None:
    run("more_cooperative", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*nf.layers, *NESTED])
def test_more_shapes(name: str) -> None:
    run("more", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*nf.layers, *NESTED])
def test_more_precision(name: str) -> None:
    run("low_precision", name)
    run("chunks", name)
