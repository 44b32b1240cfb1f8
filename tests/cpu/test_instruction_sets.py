"""The same emitted C on other instruction sets: narrower vectors here, NEON under an emulator where there is one."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import compare, tolerance

import normforge as nf
from normforge.codegen.c.driver import driver
from normforge.codegen.c.emit import emit_c
from normforge.ir import evaluate
from normforge.ir.ops import Op
from normforge.ir.types import FULL, B, G, K, S
from normforge.kernels import toolchain

LAYERS = ["evonorm-b0", "gn-silu", "layernorm-gelu", "dyt", "x * exp(-abs(x)) / rms[w,h](log(x)) + beta"]
SHAPE, GROUPS = (2, 12, 5, 7), 3
EXTENTS = {B: 2, G: 3, K: 4, S: 35}
# Reads extents and operands from the standard input, writes the outputs to the standard output.
MAIN = """
#include <stdio.h>
#include <stdlib.h>
int64_t nf_workspace(const Kernel *k, const int64_t *dims);
void nf_run(const Kernel *k, void *const *pointers, const int64_t *dims, int threads);
int main(void) {
  int64_t sizes[64], dims[4], count, given;
  void *p[64];
  if (fread(dims, 8, 4, stdin) != 4 || fread(&count, 8, 1, stdin) != 1 || fread(&given, 8, 1, stdin) != 1) return 1;
  if (fread(sizes, 8, count, stdin) != (size_t)count) return 1;
  for (int64_t i = 0; i < count; ++i) {
    p[i] = aligned_alloc(64, (sizes[i] * sizeof(X) + 63) / 64 * 64);
    if (i < given && fread(p[i], sizeof(X), sizes[i], stdin) != (size_t)sizes[i]) return 1;
  }
  p[count] = aligned_alloc(64, (nf_workspace(&kernel, dims) + 63) / 64 * 64 + 64);
  nf_run(&kernel, p, dims, 1);
  for (int64_t i = given; i < count; ++i) fwrite(p[i], sizeof(X), sizes[i], stdout);
  return 0;
}
"""


def command(machine: str) -> tuple[list[str], list[str]]:
    """Compiler and emulator for a machine; skips where one is missing."""
    common = [f for f in toolchain.flags() if f not in ("-march=native", "-shared", "-fPIC")]
    if machine == "aarch64":
        compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
        if compiler is None or emulator is None:
            pytest.skip("no compiler or no emulator for aarch64")
        return [compiler, *common, "-static"], [emulator]
    if platform.machine() != "x86_64" or toolchain.find_compiler() is None:
        pytest.skip("not an x86-64 machine with a C compiler")
    if machine == "x86-64-v3" and " avx2 " not in toolchain.cpu_features():
        pytest.skip("no AVX2")
    return [str(toolchain.find_compiler()), *common, f"-march={machine}"], []


@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3", "aarch64"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_machine(machine: str, layout: str, tmp_path: Path) -> None:
    build, run = command(machine)
    rng = np.random.default_rng(0)
    (tmp_path / "driver.c").write_text(driver())
    object_ = tmp_path / "driver.o"
    subprocess.run([*build, "-fopenmp", "-c", str(tmp_path / "driver.c"), "-o", str(object_)], check=True)
    for layer in LAYERS:
        values = {"x": rng.standard_normal(SHAPE)}
        for order in range(3):
            plan = nf.plan(nf.parse(layer), order, target="c", layout=layout)
            given = []
            for node in plan.operands:
                extents = [e for axis, e in EXTENTS.items() if node.axes & axis]
                if node.name not in values:
                    start = node.attr[2] if node.op is Op.PARAM else 0.0
                    values[node.name] = start + 0.3 * rng.standard_normal(SHAPE if node.axes == FULL else extents)
                values[node.name] = values[node.name].astype(np.float32).astype(np.float64)
                given.append(flat(values[node.name], layout) if node.axes == FULL else values[node.name])
            expected = evaluate(plan.graph, values, groups=GROUPS)
            values |= {k: v for k, v in expected.items() if k.startswith("saved")}
            sizes = [int(np.prod([e for axis, e in EXTENTS.items() if n.axes & axis])) for _, n in plan.outputs]
            source, program = tmp_path / "kernel.c", tmp_path / "kernel"
            source.write_text(emit_c(plan, "kernel", layer) + MAIN)
            subprocess.run([*build, str(source), str(object_), "-o", str(program), "-lm", "-fopenmp"], check=True)
            head = [*EXTENTS.values(), len(given) + len(sizes), len(given), *(a.size for a in given), *sizes]
            data = np.array(head, np.int64).tobytes() + b"".join(a.astype(np.float32).tobytes() for a in given)
            done = subprocess.run([*run, str(program)], input=data, capture_output=True, check=True)
            made = np.split(np.frombuffer(done.stdout, np.float32), np.cumsum(sizes)[:-1])
            scale = 1 + max(float(np.abs(v).max()) for v in expected.values())
            allowed = tolerance(torch.float32, int(np.prod(SHAPE)), scale, order)
            for (name, node), got in zip(plan.outputs, made, strict=True):
                want = flat(expected[name], layout) if node.axes == FULL else expected[name]
                where = f"{name} of {layer}, order {order}, {layout}, {machine}"
                compare(torch.tensor(got), torch.tensor(want).reshape(-1), allowed, where)


def flat(value: np.ndarray, layout: str) -> np.ndarray:
    """A full tensor in the order of the layout."""
    rows = np.broadcast_to(value, SHAPE).reshape(SHAPE[0], SHAPE[1], -1)
    return (rows.transpose(0, 2, 1) if layout == "nhwc" else rows).reshape(-1)
