"""Layers as files of their own: in a process that cannot import normforge they compute what normforge's modules do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import compare, tolerance

import normforge as nf
from normforge.errors import OptionError
from normforge.kernels import toolchain
from normforge.kernels.inputs import input_shapes
from normforge.kernels.module import Layer

# Words that named layers have not, numbers under functions, a constant alone, names that Python or the file uses.
FORMULAS = {
    "words": "where(x > v1, log(x), sqrt(x) * 2) + sign(x) * softplus(x) - clamp(x, -1, 2) + rsqrt(1 + x**3 * x)",
    "moments": "sum[w,h](x) / 7 + var[c](x) * sin(x) + std[w,h,c](v1 - x) + mean[b,w,h](x) * rms[b,w,h](1 / 3)",
    "names": "param lambda = 0.3; param momentum scalar = 2; input count[b]; input shape[b,w,h]; "
    "x * lambda + momentum * count - shape / std[w,h](x) + (1 / 3)",
    "epsilon": "eps = 1e-3; (x - mean[b,w,h,c](x)) / std[b,w,h,c](x) * gamma, abs(tanh(x)) - exp(-x) * erf(x)",
}
# What the child does: every file with its state and inputs, in training and inference, and what came out, stored.
CHILD = """
import importlib.util, sys
import torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("normforge", "timm", "torchvision", "jinja2", "scipy"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
found = {}
for name, case in torch.load("cases.pt").items():
    spec = importlib.util.spec_from_file_location(name, case["file"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (cls,) = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, torch.nn.Module)]
    layer = cls(case["channels"], case["groups"], case["channel_dim"]).to(case["inputs"][0].dtype)
    layer.load_state_dict(case["state"])
    outcomes = []
    for training in (True, False):
        layer.train(training).zero_grad()
        inputs = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in case["inputs"]]
        ys = layer(*inputs)
        ys = ys if isinstance(ys, tuple) else (ys,)
        leaves = [*inputs, *layer.parameters()]
        total = sum((y * w).sum() for y, w in zip(ys, case["weights"]))
        first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        ys2 = layer(*inputs)
        ys2 = ys2 if isinstance(ys2, tuple) else (ys2,)
        total = sum((y * w).sum() for y, w in zip(ys2, case["weights"]))
        plain = torch.autograd.grad(total, leaves, allow_unused=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs[0], allow_unused=True)
        outcomes.append([*ys, *first, *plain, *second])
    assert not case["kernels"] or module.compiled("nchw", True) is not None
    strides = [y.stride() == case["inputs"][0].stride() for y in ys]
    found[name] = {"outcomes": outcomes, "state": layer.state_dict(), "strides": strides}
torch.save(found, "found.pt")
"""


def outcomes_of(layer: Layer, given: list[torch.Tensor], weights: list[torch.Tensor]) -> list[list[Any]]:
    """The same as the child's."""
    made = []
    for training in (True, False):
        layer.train(training).zero_grad()
        inputs = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
        ys = layer(*inputs)
        ys = ys if isinstance(ys, tuple) else (ys,)
        leaves = [*inputs, *layer.parameters()]
        total = sum((y * w).sum() for y, w in zip(ys, weights, strict=True))
        first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        layer(*inputs)
        second = torch.autograd.grad(first[0].square().sum(), inputs[0], allow_unused=True)
        made.append([*ys, *first, *first, *second])
    return made


def case_of(
    name: str, folder: Path, dtype: torch.dtype, last: bool = False, dim: int = 1, kernels: bool = False
) -> tuple[dict[str, Any], Layer]:
    graph = nf.parse(FORMULAS.get(name, name))
    file = nf.export(graph, folder / f"case{len(list(folder.glob('*.py')))}.py", kernels=kernels)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 8, 5, 4) if dim == 1 else (3, 5, 4, 8), generator=generator, dtype=dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    shapes = [input_shapes(i.axes, x, dim)[0] for i in graph.inputs[1:]]
    inputs = [x, *(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)]
    layer = nf.compile(graph, 8, 4, dim, backend="eager").to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=dtype) * 0.3)
    weights = [torch.randn(x.shape, generator=generator, dtype=dtype) for _ in graph.outputs]
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    return {
        "file": str(file), "channels": 8, "groups": 4, "channel_dim": dim, "state": state, "inputs": inputs,
        "weights": weights, "kernels": kernels,
    }, layer  # fmt: skip


def test_files_need_torch_alone(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], Layer]] = {}
    for name in [*nf.layers, *FORMULAS]:
        cases[name] = case_of(name, tmp_path, torch.float64)
    for name in ("layernorm-gelu", "adaln", "names"):
        cases[f"{name}, channels last axis"] = case_of(name, tmp_path, torch.float64, dim=-1)
    compiler = toolchain.find_compiler() is not None
    for name, last in (("evonorm-b0", False), ("adagn-silu", True), ("add-rmsnorm", True)) if compiler else ():
        cases[f"{name}, kernels {last}"] = case_of(name, tmp_path, torch.float32, last, kernels=True)
    torch.save({name: case for name, (case, _) in cases.items()}, tmp_path / "cases.pt")
    ran = subprocess.run([sys.executable, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    for name, (case, layer) in cases.items():
        got, dtype = found[name], case["inputs"][0].dtype
        want = outcomes_of(layer, case["inputs"], case["weights"])
        for order, (mine, theirs) in enumerate(zip(got["outcomes"], want, strict=True)):
            for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                assert (a is None) == (b is None), (name, i)
                if a is not None:
                    scale = 1 + float(b.abs().max())
                    compare(a, b, tolerance(dtype, b.numel(), scale, 2), f"{name}, mode {order}, value {i}")
        assert all(got["strides"]), name
        if not case["kernels"]:
            continue
        state = layer.state_dict()
        assert list(got["state"]) == list(state)


def test_statistics_take_the_same_steps(tmp_path: Path) -> None:
    for momentum in (0.1, None):
        names: dict[str, Any] = {"__name__": "exported"}
        exec(nf.export("bn-relu", tmp_path / "layer.py").read_text(), names)
        theirs, ours = names["BnRelu"](4, momentum=momentum), nf.compile("bn-relu", 4, momentum=momentum)
        for _ in range(3):
            x = torch.randn(3, 4, 5, 5)
            theirs(x), ours(x)
        for name, b in ours.named_buffers():
            torch.testing.assert_close(getattr(theirs, name), b)


def test_what_a_file_says(tmp_path: Path) -> None:
    text = nf.export("evonorm-s0", tmp_path).read_text()
    assert "x * sigmoid(v1 * x) / std[w,h,c/g](x) * gamma + beta" in text and "arXiv 2004.02967" in text
    assert "Apache-2.0" in text and "class EvonormS0(nn.Module)" in text and (tmp_path / "evonorm_s0.py").exists()
    assert "results = [x * torch.sigmoid(v1 * x) / std * gamma + beta]" in text and "import normforge" not in text
    found = nf.export("tanh(x)", tmp_path, origin="Found by a search: runs/demo#17.").read_text()
    assert "Found by a search: runs/demo#17." in found and "class Layer" in found
    for wrong in (None, 3):
        with pytest.raises(OptionError, match="a layer is a formula"):
            nf.export(wrong, tmp_path)
    with pytest.raises(OptionError, match="cannot write"):
        nf.export("bn-relu", tmp_path / "no" / "such" / "folder.py")
