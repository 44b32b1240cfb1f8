"""Roads out of eager PyTorch: what is traced, scripted or stored computes what the layer does, without normforge."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import normforge as nf
from normforge.kernels.inputs import input_shapes

LAYERS = ["evonorm-s0", "bn-relu", "evonorm-b0", "layernorm-gelu", "frn-tlu", "adagn-silu", "add-rmsnorm"]
WORDS = "where(x > 0, log(x), sqrt(x)) + sign(x) + rms[b,w,h](x) - clamp(x, -1, v1)"


def inputs_of(layer: nf.Layer, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    x = torch.randn(shape)
    return (x, *(torch.randn(input_shapes(i.axes, x)[0]) for i in layer.graph.inputs[1:]))


def results_of(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    made = layer(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


def same(one: nn.Module, other: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(results_of(one, inputs), results_of(other, inputs), strict=True):
        torch.testing.assert_close(a, b)


def stored(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", [*LAYERS, WORDS])
def test_scripted_and_traced(layer: str) -> None:
    m = nf.compile(layer, 8)
    inputs, others = inputs_of(m, (3, 8, 5, 4)), inputs_of(m, (2, 8, 3, 6))
    for training in (True, False):
        m.train(training)
        before = copy.deepcopy(m)
        scripted = stored(torch.jit.script(copy.deepcopy(m)))
        assert list(scripted.state_dict()) == list(m.state_dict())
        same(scripted, before, inputs)
        for name, buffer in before.named_buffers():
            torch.testing.assert_close(dict(scripted.named_buffers())[name], buffer)
    with torch.no_grad():
        traced = stored(torch.jit.trace(m, inputs, check_trace=False))
    for given in (inputs, others):
        same(traced, m, given)
    if leaves := list(m.parameters()):
        first = torch.autograd.grad(results_of(scripted, inputs)[0].sum(), list(scripted.parameters()))
        want = torch.autograd.grad(results_of(m, inputs)[0].sum(), leaves)
        for a, b in zip(first, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_scripted_needs_no_normforge(tmp_path: Path) -> None:
    m = nf.compile("evonorm-s0", 8)
    x = torch.randn(3, 8, 5, 4)
    torch.jit.save(torch.jit.script(nn.Sequential(m)), str(tmp_path / "m.pt"))
    torch.save((x, m(x).detach()), tmp_path / "io.pt")
    code = (
        "import torch, sys; m = torch.jit.load('m.pt'); x, y = torch.load('io.pt');"
        "torch.testing.assert_close(m(x).detach(), y); assert 'normforge' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_layer_is_a_leaf_of_a_symbolic_trace() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.add = nf.compile("bn-relu", 4), nf.compile("add-rmsnorm", 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, h = self.add(self.norm(x), r=x)
            return y + h

    net = Net()
    traced = torch.fx.symbolic_trace(net)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["norm", "add"]
    same(traced, net, (torch.randn(3, 4, 5, 5),))
    assert not hasattr(net.norm, "affine")
