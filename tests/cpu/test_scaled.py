"""Scaled weight standardization: kernels against the formula in float64, layers, what they keep, and folding."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from reference import tolerance
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normforge as nf
from normforge.errors import OptionError
from normforge.kernels.rows import launch_c
from normforge.kernels.rows.formula import RULES, Standardization, standardize
from normforge.kernels.rows.standardize import standardize_all, target_of
from normforge.nn.kept import forget, together

SHAPES = [(16, 3, 3, 3), (5, 7), (9, 130), (4, 1), (1, 33), (8, 2, 5), (3, 4097), (2, 3, 2, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def paper(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """Ŵ as the authors' code has it: (W − mean) · gain · rsqrt(max(var · N, ε))."""
    axes = tuple(range(1, weight.dim()))
    count = weight[0].numel()
    shape = (-1, *[1] * len(axes))
    scale = torch.rsqrt(torch.clamp(weight.var(axes, correction=0) * count, min=eps)) * gain
    return (weight - weight.mean(axes, keepdim=True)) * scale.reshape(shape)


def weights(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gains in float64, that float16 can hold; one row below the clamp, one constant."""
    torch.manual_seed(seed)
    ws, gs = [torch.randn(s).half().double() for s in SHAPES], [torch.randn(s[0]).half().double() for s in SHAPES]
    ws[1][2] *= 2.0**-10
    ws[2][0] = 0.25
    return ws, gs


def orders(dtype: torch.dtype, target: str | None, rule: str, last: bool = False) -> list[Tensor]:
    """Ŵ, first and second derivatives, one list."""
    ws, gs = weights()
    if last:
        ws = [w.to(memory_format=torch.channels_last) if w.dim() == 4 else w for w in ws]
    ws, gs = [w.to(dtype).requires_grad_() for w in ws], [g.to(dtype).requires_grad_() for g in gs]
    target = target or target_of(ws, gs)
    how = Standardization(rule, RULES[rule], 1.5)
    made, _ = standardize_all(ws, gs, [how] * len(ws), target)
    torch.manual_seed(1)
    us = [torch.randn(w.shape).half().to(dtype).requires_grad_() for w in ws]
    first = torch.autograd.grad(made, [*ws, *gs], us, create_graph=True)
    cotangents = [torch.randn(t.shape).half().to(dtype) for t in first]
    second = torch.autograd.grad(first, [*us, *ws, *gs], cotangents)
    return [*made, *first, *second]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels(dtype: torch.dtype, rule: str) -> None:
    expected = orders(torch.float64, "eager", rule)
    for got in (orders(dtype, "c", rule), orders(dtype, "c", rule, last=True)):
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            order = 0 if i < len(SHAPES) else 1 if i < 3 * len(SHAPES) else 2
            error = (a.double() - b).abs().max().item()
            scale = b.abs().max().item()
            assert error <= tolerance(dtype, b[0].numel(), scale, order), f"{i} of order {order}: {error} of {scale}"


def test_target() -> None:
    ws, gs = weights()
    assert target_of(ws, gs) == "c"
    assert target_of([ws[0].float()], gs[:1]) == "eager"  # of two dtypes
    assert target_of([torch.randn(6, 4).t()], [torch.ones(4)]) == "eager"  # rows that do not lie together
    with torch.device("meta"):
        assert target_of([torch.empty(3, 3)], [torch.empty(3)]) == "eager"


def test_formula_is_the_paper_s() -> None:
    for w, g in zip(*weights(), strict=True):
        torch.testing.assert_close(standardize(w, g, Standardization()), paper(w, g), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_derivatives(rule: str) -> None:
    """Numerically, to second order; and a third, which no kernel has, against the formula's."""
    torch.manual_seed(0)
    w, g = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    w[1] *= 1e-3  # below the clamp, where it has another derivative
    w.requires_grad_(), g.requires_grad_()
    how = Standardization(rule, RULES[rule])

    def made(w: Tensor, g: Tensor) -> Tensor:
        return standardize_all([w], [g], [how], "c")[0][0]

    assert torch.autograd.gradcheck(made, (w, g))
    assert torch.autograd.gradgradcheck(made, (w, g))

    def third(function: Callable[[Tensor, Tensor], Tensor]) -> Sequence[Tensor]:
        value = function(w, g).sin().sum()
        for _ in range(2):
            value = sum(d.sin().sum() for d in torch.autograd.grad(value, (w, g), create_graph=True))  # type: ignore
        return torch.autograd.grad(value, (w, g))

    expected = third(lambda w, g: standardize(w, g, how))
    for a, b in zip(third(made), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_transforms() -> None:
    """torch.func, batched gradients and forward mode run on the formula."""
    w, g = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    layer = nf.nn.ScaledLinear(6, 4).double()

    def call(w: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w, "gain": g}, (torch.eye(6, dtype=torch.float64),))

    jacobian = torch.func.jacrev(call)(w)
    torch.testing.assert_close(torch.func.jacfwd(call)(w), jacobian)
    w.requires_grad_()
    y = call(w)
    batched = torch.autograd.grad(y, w, torch.eye(24, dtype=torch.float64).view(24, 6, 4), is_grads_batched=True)[0]
    torch.testing.assert_close(batched.view(jacobian.shape), jacobian)
    both = torch.func.vmap(call)(torch.stack([w, 2 * w]))
    torch.testing.assert_close(both[1], call(2 * w))


LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nf.nn.ScaledConv1d(4, 6, 3, stride=2, groups=2), (2, 4, 9)),
    (lambda: nf.nn.ScaledConv2d(4, 6, 3, stride=2, padding="same"), (2, 4, 8, 7)),
    (lambda: nf.nn.ScaledConv2d(4, 6, (3, 2), padding=1, dilation=2, padding_mode="reflect", bias=False), (2, 4, 8, 7)),
    (lambda: nf.nn.ScaledConv2d(4, 6, 1, scale=1.7, rule="timm", gain_init=0.5), (2, 4, 3, 3)),
    (lambda: nf.nn.ScaledConv3d(4, 6, 3, stride=2, padding="same"), (1, 4, 5, 4, 6)),
    (lambda: nf.nn.ScaledLinear(4, 6, eps=1e-2), (3, 4)),
]


@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_layers(case: int) -> None:
    make, shape = LAYERS[case]
    layer = make().double()
    assert layer.gain.shape == (6,) and all((layer.gain == layer.gain_init).tolist())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    folded = nf.nn.fold(layer)
    assert "Scaled" not in repr(folded) and torch.equal(folded(x), y)
    if layer.how.rule == "paper" and layer.how.eps == 1e-4:
        expected = paper(layer.weight, layer.gain) * layer.how.scale
        torch.testing.assert_close(layer.standardized(), expected, rtol=1e-12, atol=1e-12)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y) and repr(other) == repr(layer)
    assert "_kept" not in pickle.dumps(layer).decode("latin1")
    layer.reset_parameters()
    assert layer(x).shape == y.shape


def test_same_padding() -> None:
    """As TensorFlow pads: at stride 2 and an even size the odd row of zeros comes last."""
    x = torch.randn(1, 3, 6, 6)
    layer = nf.nn.ScaledConv2d(3, 4, 3, stride=2, padding="same")
    plain = F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.standardized(), layer.bias, 2)
    torch.testing.assert_close(layer(x), plain)
    symmetric = F.conv2d(x, layer.standardized(), layer.bias, 2, 1)
    assert (plain - symmetric).abs().max() > 0.1


@pytest.mark.parametrize("rule", RULES)
def test_timm_s_variance(rule: str) -> None:
    """timm adds 1e-5 to the variance, the authors clamp N times the variance: smaller by √(1 + 1e-5 N) at the start."""
    torch.manual_seed(0)
    theirs = ScaledStdConv2d(64, 8, 3, eps=1e-5, bias=False).double()
    nn.init.normal_(theirs.weight, 0.0, 576**-0.5)
    layer = nf.nn.ScaledConv2d(64, 8, 3, padding=1, bias=False, rule=rule).double()
    layer.load_state_dict(theirs.state_dict())  # whose gain is (8, 1, 1, 1)
    x = torch.randn(2, 64, 5, 5, dtype=torch.float64)
    ratio = (theirs(x) / layer(x)).detach()
    q = theirs.weight.flatten(1).var(1, correction=0) * 576
    expected = torch.ones(8, dtype=torch.float64) if rule == "timm" else (1 + 1e-5 * 576 / q).rsqrt().detach()
    torch.testing.assert_close(ratio, expected[:, None, None].expand_as(ratio))


def test_same_as_timm() -> None:
    theirs = ScaledStdConv2dSame(4, 8, 3, stride=2, eps=1e-5, gamma=1.7).double()
    ours = nf.nn.ScaledConv2d(4, 8, 3, stride=2, padding="same", rule="timm", scale=1.7).double()
    ours.load_state_dict(theirs.state_dict())
    for size in (7, 8):
        x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))


def test_errors() -> None:
    with pytest.raises(OptionError, match="did you mean 'timm'"):
        nf.nn.ScaledConv2d(3, 4, 3, rule="tim")


# -- what is kept


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The kernels that are run from here on, and the tensors of each."""
    made: list[tuple[str, int]] = []
    real = launch_c.call

    def counted(name: str, dtype: torch.dtype, table: Any) -> None:
        made.append((name.removeprefix("nf_"), len(table)))
        real(name, dtype, table)

    monkeypatch.setattr(launch_c, "call", counted)
    return made


def test_kept_while_unchanged(calls: list[tuple[str, int]]) -> None:
    layer, x = nf.nn.ScaledLinear(6, 4), torch.randn(3, 6)

    def fresh() -> bool:
        calls.clear()
        y = layer(x)
        torch.testing.assert_close(y, F.linear(x, paper(layer.weight, layer.gain), layer.bias))
        return bool(calls)

    assert fresh() and not fresh()
    layer(x).sum().backward()  # gradients accumulate
    calls.clear()
    layer(x).sum().backward()
    assert calls == [("standardize_backward", 1)]
    for optimizer in (torch.optim.SGD(layer.parameters(), 0.1), nf.optim.SGD(layer.parameters(), 0.1)):
        optimizer.step()
        assert fresh() and not fresh()
    with torch.no_grad():
        layer.gain.mul_(2)
    assert fresh() and not fresh()
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
    assert fresh() and not fresh()
    layer.weight.data = layer.weight.data * 2
    assert fresh() and not fresh()
    layer.eval()
    with torch.no_grad():
        assert fresh() and not fresh()
    layer.weight.data.mul_(2)  # which counts no version
    forget(layer)
    assert fresh() and not fresh()


def test_moved_by_swapping() -> None:
    """torch swaps tensors that nothing refers to weakly."""
    layer, x = nf.nn.ScaledLinear(6, 4), torch.randn(3, 6)
    with torch.no_grad():
        y = layer(x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    torch.testing.assert_close(layer(x.double()).float(), y)


def test_numerical_derivatives() -> None:
    """They change single elements through `.data`."""
    layer, x = nf.nn.ScaledConv2d(2, 3, 3).double(), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: layer(x), tuple(layer.parameters()))


def test_other_hands_at_the_memory() -> None:
    """Parameters that are parts of a vector, and such that are in shared memory, are not kept; nor what is written."""
    model, x = nn.Sequential(nf.nn.ScaledConv2d(3, 4, 3)).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        vector = nn.utils.parameters_to_vector(model.parameters()).clone()
        for _ in range(2):
            nn.utils.vector_to_parameters(vector, model.parameters())
            y = model(x)
            forget(model)
            assert torch.equal(y, model(x))
            vector += torch.randn_like(vector)
        shared = nf.nn.ScaledLinear(6, 4)
        shared.share_memory()
        shared.standardized()
        assert "_kept" not in shared.__dict__
        layer = nf.nn.ScaledLinear(6, 4)
        layer.standardized().zero_()
        assert layer.standardized().abs().max() > 0
        with torch.inference_mode():
            layer.gain = nn.Parameter(torch.ones(4))
        layer(torch.randn(2, 6))


def test_what_an_interrupt_leaves() -> None:
    """torch calls no hook after it: what was ready then is not taken for other weights."""
    model, x = network(), torch.randn(2, 3, 8, 8)
    together(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    with torch.no_grad():
        model[2].weight.normal_()
    got = model[2](torch.ones(1, 8, 4, 4))
    forget(model)
    torch.testing.assert_close(got, model[2](torch.ones(1, 8, 4, 4)))


def test_without_a_batch() -> None:
    layer, x = nf.nn.ScaledConv2d(3, 4, 3, stride=2, padding="same"), torch.randn(3, 7, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


class _ThroughData(torch.optim.Optimizer):
    """As several published optimizers write."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.data, alpha=-group["lr"])


def test_optimizers_that_write_through_data() -> None:
    layer, x = nf.nn.ScaledLinear(6, 4), torch.randn(3, 6)
    optimizer = _ThroughData(layer.parameters(), {"lr": 0.5})
    for _ in range(3):
        optimizer.zero_grad()
        y = layer(x)
        torch.testing.assert_close(y, F.linear(x, paper(layer.weight, layer.gain), layer.bias))
        y.square().sum().backward()
        optimizer.step()


def test_other_tensors_at_an_old_address() -> None:
    """functional_call puts in tensors that the allocator may give the memory of the last."""
    layer, x = nf.nn.ScaledLinear(64, 64), torch.randn(2, 64)
    for i in range(20):
        with torch.no_grad():
            w = torch.randn(64, 64, generator=torch.Generator().manual_seed(i))
            y = torch.func.functional_call(layer, {"weight": w}, (x,))
            torch.testing.assert_close(y, F.linear(x, paper(w, layer.gain), layer.bias))
            del w


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nf.nn.ScaledConv2d(i, o, 3, padding="same", stride=s) for i, o, s in ((3, 8, 2), (8, 8, 1), (8, 4, 2))]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2], nn.Flatten(), nf.nn.ScaledLinear(16, 5))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_all_in_one_call(calls: list[tuple[str, int]]) -> None:
    x = torch.randn(2, 3, 8, 8)
    alone = gradients(network(), x)
    calls.clear()
    model = network()
    together(model)
    made = gradients(model, x)
    assert calls == [("standardize", 4), ("standardize_backward", 4)]
    assert all(torch.equal(a, b) for a, b in zip(made, alone, strict=True))
    calls.clear()
    gradients(model, x)
    assert calls == [("standardize_backward", 4)]
    with torch.no_grad():
        model[2].gain.mul_(2)
    calls.clear()
    model(x)
    assert calls == [("standardize", 1)]
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4, 8, 8))
    assert not [m for m in model.modules() if "_ready" in m.__dict__]
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))


def test_checkpointed() -> None:
    x = torch.randn(2, 3, 8, 8)
    expected = gradients(network(), x)
    model = network()
    together(model)
    middle = model[:3]
    body = model[3:]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return body(checkpoint(middle, x, use_reentrant=False))  # type: ignore[no-any-return]

    whole = Whole()
    together(whole)
    for a, b in zip(gradients(whole, x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_and_shared() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = network()
    together(model)
    model[0].requires_grad_(False)
    model[2].gain.requires_grad_(False)
    gradients(model, x)
    assert model[0].weight.grad is None and model[2].gain.grad is None and model[2].weight.grad is not None
    shared = nn.Sequential(model[2], nn.ReLU(), model[2])
    together(shared)
    once = gradients(shared, torch.randn(1, 8, 4, 4))
    assert len(once) == 2  # weight and bias


def test_autocast() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    together(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("how", ["compile", "export", "trace", "fx", "fold"])
def test_other_roads(how: str) -> None:
    model, x = network().eval(), torch.randn(2, 3, 8, 8)
    together(model)
    expected = model(x)
    roads: dict[str, Callable[[], Any]] = {
        "compile": lambda: torch.compile(model, backend="aot_eager", fullgraph=True),
        "export": lambda: torch.export.export(model, (x,)).module(),
        "trace": lambda: torch.jit.trace(model, x),
        "fx": lambda: torch.fx.symbolic_trace(model),
        "fold": lambda: nf.nn.fold(model),
    }
    made = roads[how]()
    torch.testing.assert_close(made(x), expected)
    if how == "fold":
        assert not any(isinstance(m, nf.nn.ScaledConv2d) for m in made.modules())
        assert nf.nn.fold(model, inplace=True) is model
        torch.testing.assert_close(model(x), expected)
        torch.save(model.state_dict(), file := io.BytesIO())
        assert file.tell()
    if how == "compile":
        model.train()
        for a, b in zip(gradients(made, x), gradients(network(), x), strict=True):
            torch.testing.assert_close(a, b)
