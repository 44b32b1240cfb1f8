"""The kernels over rows on a device: the clipped step and standardized weights, against float64, in graphs, again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import tolerance
from torch import Tensor, nn

import normforge as nf
from normforge.kernels.rows.formula import RULES, Standardization, standardize
from normforge.kernels.rows.standardize import standardize_all, target_of

SHAPES = [(16, 3, 3, 3), (5, 7), (64, 576), (3, 9000), (), (1,), (77,), (64, 1, 1, 1), (1000, 512)]
WEIGHTS = [s for s in SHAPES if len(s) > 1]


def parameters(dtype: torch.dtype, device: str) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s).to(device=device, dtype=dtype)) for s in SHAPES]


def draw_gradients(params: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for i, p in enumerate(params):
        g = (torch.randn(p.shape) * (0.03 if i % 3 else 3e-4)).to(p)
        if p.grad is None:
            p.grad = g
        else:
            p.grad.copy_(g)  # in place, for graphs


def stepped(dtype: torch.dtype, device: str, backend: str, steps: int = 3, **settings: Any) -> list[Tensor]:
    params = parameters(dtype, device)
    optimizer = nf.optim.SGD(params, 0.1, 0.9, True, 2e-3, 0.01, "paper", backend=backend, **settings)
    for step in range(steps):
        draw_gradients(params, step)
        optimizer.step()
    return [t.detach() for p in params for t in (p, optimizer.state[p]["momentum_buffer"], optimizer.state[p]["ema"])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_step(dtype: torch.dtype) -> None:
    """As on a CPU, and the same bits every time."""
    got = stepped(dtype, "cuda", "triton")
    for a, b in zip(got, stepped(dtype, "cpu", "c"), strict=True):
        scale = b.abs().max().item() + 0.1
        assert (a.cpu().double() - b.double()).abs().max() <= 4 * tolerance(dtype, 9000, scale, 1)
    assert all(torch.equal(a, b) for a, b in zip(got, stepped(dtype, "cuda", "auto"), strict=True))


def test_captured_step() -> None:
    """A graph reads the learning rate and the step from the device, and gradients where they lie."""
    made = []
    for captured in (True, False):
        params = parameters(torch.float32, "cuda")
        lr = torch.tensor(0.1, device="cuda")
        optimizer = nf.optim.SGD(params, lr, 0.9, True, 2e-3, 0.01, "paper", capturable=True)
        draw_gradients(params, 0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in (1, 2, 3):
            draw_gradients(params, step)
            lr.fill_(0.1 / step)
            graph.replay() if captured else optimizer.step()
        made.append([t.clone() for p in params for t in (p, optimizer.state[p]["ema"])])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def orders(device: str, dtype: torch.dtype, rule: str, target: str | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    ws = [torch.randn(s).half().to(device=device, dtype=dtype).requires_grad_() for s in WEIGHTS]
    gs = [torch.randn(s[0]).half().to(device=device, dtype=dtype).requires_grad_() for s in WEIGHTS]
    us = [torch.randn(s).half().to(device=device, dtype=dtype).requires_grad_() for s in WEIGHTS]
    how = Standardization(rule, RULES[rule], 1.5)
    made, _ = standardize_all(ws, gs, [how] * len(ws), target or target_of(ws, gs))
    first = torch.autograd.grad(made, [*ws, *gs], us, create_graph=True)
    cotangents = [torch.randn(t.shape).half().to(device=device, dtype=dtype) for t in first]
    return [*made, *first, *torch.autograd.grad(first, [*us, *ws, *gs], cotangents)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_standardize(dtype: torch.dtype, rule: str) -> None:
    assert target_of([torch.randn(3, 3, device="cuda")], [torch.ones(3, device="cuda")]) == "triton"
    got, count = orders("cuda", dtype, rule), len(WEIGHTS)
    for i, (a, b) in enumerate(zip(got, orders("cpu", torch.float64, rule, "eager"), strict=True)):
        order = 0 if i < count else 1 if i < 3 * count else 2
        error, scale = (a.cpu().double() - b).abs().max().item(), b.abs().max().item()
        assert error <= 2 * tolerance(dtype, b[0].numel(), scale, order), f"{i} of order {order}: {error} of {scale}"
    again = orders("cuda", dtype, rule)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_kept_weights_are_not_captured() -> None:
    """A graph computes Ŵ at every replay, from the weights as they are then."""
    layer = nf.nn.ScaledLinear(32, 16, device="cuda")
    x = torch.randn(4, 32, device="cuda")
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        layer.weight.mul_(-1)
        graph.replay()
        expected = nn.functional.linear(x, standardize(layer.weight, layer.gain, layer.how), layer.bias)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_network() -> None:
    """A small network trains on the device as on the CPU."""
    made = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nf.nn.ScaledConv2d(3, 8, 3, padding="same", stride=2), nn.SiLU(), nn.Flatten())
        model.append(nf.nn.ScaledLinear(8 * 16, 5))
        nf.nn.together(model)
        x = torch.randn(4, 3, 8, 8)
        model, x = model.to(device), x.to(device)
        optimizer = nf.optim.SGD(nf.optim.param_groups(model), 0.1, 0.9, True, agc=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        made.append([p.detach().cpu() for p in model.parameters()])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
