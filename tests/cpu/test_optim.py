"""Adaptive gradient clipping and the fused step, against a float64 reference written from the paper."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reference import tolerance
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

import normforge as nf
from normforge.errors import BackendError, OptionError
from normforge.kernels.rows.units import count_units
from normforge.nn import ScaledConv2d

SHAPES = [
    (16, 3, 3, 3), (5, 7), (40, 130), (4, 1), (1, 33), (8, 2, 5), (3, 9000), (), (1,), (77,), (64, 1, 1, 1), (1, 1, 5),
    (2, 40000),
]  # fmt: skip
LR, DECAY = 0.1, 2e-3
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def unit_rows(t: Tensor) -> Tensor:
    """A row for each unit: of one axis, or of one that is longer than 1, there is one unit."""
    return t.reshape(1 if sum(n > 1 for n in t.shape) <= 1 else t.shape[0], -1)


def reference(state: list[Tensor], momentum: float, nesterov: bool, clip: float | None, share: float | None) -> Any:
    """W, M and E after a step, in float64; and the magnitudes that take part."""
    w, g, m, e = (t.double() for t in state)
    rows, grads = unit_rows(w), unit_rows(g)
    if clip is not None:
        limit = clip * rows.norm(dim=1).clamp(min=1e-3)
        norm = grads.norm(dim=1)
        grads = torch.where((norm > limit)[:, None], grads * (limit / norm.clamp(min=1e-6))[:, None], grads)
    clipped = grads.reshape(g.shape)
    m = momentum * m + clipped + DECAY * w
    step = clipped + DECAY * w + momentum * m if nesterov else m
    size = w.abs().max() + clipped.abs().max() + m.abs().max()
    w = w - LR * step
    if share is not None:
        e = share * e + (1 - share) * w
    return w, m, e, size


def parameters(dtype: torch.dtype, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]
    with torch.no_grad():
        made[min(7, len(made) - 1)].zero_()  # as a skip gain starts
    return made


def draw_gradients(params: Sequence[Tensor], seed: int) -> None:
    """Of some above the limit, of some below."""
    torch.manual_seed(seed)
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape).to(p.dtype) * (0.03 if i % 3 else 3e-4)


CASES = [
    (backend, dtype, clip, momentum, share)
    for backend, dtype, clip, momentum, share in itertools.product(
        ("c", "eager"), DTYPES, (None, 0.01), ((0.0, False), (0.9, False), (0.9, True)), (None, 0.9)
    )
    if (clip is None) + (momentum != (0.9, True)) + (share is None) < 2  # one thing taken away at a time
]


@pytest.mark.parametrize(("backend", "dtype", "clip", "momentum", "share"), CASES)
def test_step(backend: str, dtype: torch.dtype, clip: Any, momentum: tuple[float, bool], share: Any) -> None:
    params = parameters(dtype)
    optimizer = nf.optim.SGD(params, LR, *momentum, DECAY, clip, share, backend=backend)
    for step in range(3):
        draw_gradients(params, step)
        before = [
            [
                t.detach().clone()
                for t in (p, p.grad, s.get("momentum_buffer", torch.zeros_like(p)), s.get("ema", p.double()))
            ]
            for p, s in ((p, optimizer.state[p]) for p in params)
        ]
        versions = [p._version for p in params]
        optimizer.step()
        for p, start, version in zip(params, before, versions, strict=True):
            w, m, e, size = reference(start, *momentum, clip, share)
            length, where = unit_rows(p).shape[1], f"{tuple(p.shape)} at step {step}"
            state = optimizer.state[p]
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert (p.double() - w).abs().max() <= tolerance(dtype, length, float(size)), where
            assert p._version > version and torch.equal(p.grad, start[1]), where
            if momentum[0]:
                assert state["momentum_buffer"].dtype == wide
                assert (state["momentum_buffer"].double() - m).abs().max() <= tolerance(wide, length, float(size)), (
                    where
                )
            if share is not None:
                assert state["ema"].dtype == wide
                # Of the weights as they are stored.
                stored = share * start[3].double() + (1 - share) * p.double()
                assert (state["ema"].double() - stored).abs().max() <= tolerance(wide, 1, float(size)), where
                assert (state["ema"].double() - e).abs().max() <= tolerance(dtype, length, float(size)), where


def test_same_on_any_number_of_threads() -> None:
    made = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        params = parameters(torch.float32)
        optimizer = nf.optim.SGD(params, LR, 0.9, True, DECAY, 0.01, "paper", backend="c")
        for step in range(3):
            draw_gradients(params, step)
            optimizer.step()
        made.append([*params, *(optimizer.state[p]["ema"] for p in params)])
    torch.set_num_threads(1)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("backend", ["c", "eager"])
def test_not_finite_and_missing(backend: str) -> None:
    """NaN and infinity stay in their unit; what has no gradient stays as it is."""
    params = parameters(torch.float32, [(4, 5), (6,), (3, 3), (2, 2)])
    draw_gradients(params, 0)
    grads: list[Any] = [p.grad for p in params]
    grads[0][1, 2], grads[0][3, 0], grads[1][0], params[2].grad = float("nan"), float("inf"), float("nan"), None
    start = [p.detach().clone() for p in params]
    optimizer = nf.optim.SGD(params, LR, 0.9, True, agc=0.01, backend=backend)
    optimizer.step()
    assert params[0][[0, 2]].isfinite().all() and not params[0][1, 2].isfinite() and not params[0][3, 0].isfinite()
    assert params[0][1, [0, 1, 3, 4]].isfinite().all()  # a norm that is NaN exceeds no limit
    assert params[1].isnan()[0] and params[1][1:].isfinite().all()
    assert torch.equal(params[2], start[2]) and params[2] not in optimizer.state


def test_layouts() -> None:
    """Channels last, transposed weights, views, gradients of other strides: the same numbers."""
    torch.manual_seed(0)
    base = [torch.randn(6, 4, 3, 3), torch.randn(5, 7), torch.randn(8, 3)]
    grads = [torch.randn(t.shape) for t in base]

    def stepped(params: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        made = [nn.Parameter(p) for p in params]
        for p, g in zip(made, given, strict=True):
            p.grad = g
        optimizer = nf.optim.SGD(made, LR, 0.9, True, DECAY, 0.01, 0.9, backend="c")
        for _ in range(2):
            optimizer.step()
        return [t for p in made for t in (p, *optimizer.state[p].values())]

    expected = stepped([t.clone() for t in base], grads)
    last = base[0].clone(memory_format=torch.channels_last)
    wide = torch.zeros(8, 6)
    wide[:, ::2] = base[2]
    got = stepped([last, base[1].t().clone().t(), wide[:, ::2]], grads)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    got = stepped([t.clone() for t in base], [grads[0].to(memory_format=torch.channels_last), *grads[1:]])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_units() -> None:
    shapes = {
        (): 1,
        (9,): 1,
        (9, 1, 1, 1): 1,
        (1, 1, 5): 1,
        (1, 7, 3, 3): 1,
        (9, 1, 3, 3): 9,
        (9, 4): 9,
        (2, 3, 1, 1, 1, 4): 2,
    }
    assert [count_units(s) for s in shapes] == [*shapes.values()]
    assert count_units((9, 1, 1, 1), "timm") == 9 and count_units((9,), "timm") == 1


@pytest.mark.parametrize("units", ["paper", "timm"])
def test_timm_s_units(units: str) -> None:
    """timm clips gains (C, 1, 1, 1) by channel; everything else is clipped alike."""
    ours = [p.double().detach().requires_grad_() for p in parameters(torch.float32)]
    torch.manual_seed(1)
    for p in ours:
        p.grad = torch.randn_like(p)  # all of them above the limit
    theirs = copy.deepcopy(ours)
    for p, q in zip(ours, theirs, strict=True):
        q.grad = p.grad.clone()
    adaptive_clip_grad(theirs, 0.01)
    group = {"params": ours, "agc_units": units}
    nf.optim.AGC(torch.optim.SGD([group], 0.0)).clip()
    for p, q in zip(ours, theirs, strict=True):
        same = torch.allclose(p.grad, q.grad, rtol=1e-12, atol=0)
        assert same == (units == "timm" or sum(n > 1 for n in p.shape) != 1 or p.dim() < 2 or len(p) == 1), p.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipped_norms(dtype: torch.dtype) -> None:
    """A clipped unit has the norm that is allowed, up to one rounding; one within the limit keeps its bits."""
    params = parameters(dtype)
    draw_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    nf.optim.AGC(torch.optim.SGD(params, 0.0), 0.01).clip()
    for p, g in zip(params, before, strict=True):
        limit = 0.01 * unit_rows(p.detach().double()).norm(dim=1).clamp(min=1e-3)
        was, now = unit_rows(g.double()).norm(dim=1), unit_rows(p.grad.double()).norm(dim=1)
        allowed = torch.minimum(was, limit)
        assert ((now - allowed).abs() <= allowed * max(torch.finfo(dtype).eps, 1e-6) + 1e-7).all(), p.shape
        within = was < 0.999 * limit
        assert torch.equal(unit_rows(p.grad)[within], unit_rows(g)[within])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        ScaledConv2d(3, 8, 3), nn.GroupNorm(2, 8), nf.compile("evonorm-s0", 8, groups=2), nn.Flatten(), nn.Linear(32, 5)
    )


def names_of(groups: list[dict[str, Any]], model: nn.Module, chosen: Any) -> set[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for g in groups if chosen(g) for p in g["params"]}


def test_groups_of_the_paper() -> None:
    model = network()
    groups = nf.optim.param_groups(model, weight_decay=1e-4)
    assert names_of(groups, model, lambda g: g.get("agc", 1) is None) == {"4.weight"}
    assert names_of(groups, model, lambda g: g["weight_decay"] == 1e-4) == {"0.weight", "4.weight"}
    assert names_of(groups, model, lambda g: True) == {n for n, _ in model.named_parameters()}
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in names_of(nf.optim.param_groups(model), model, lambda g: True)
    named = nf.optim.param_groups(model, classifier="0")
    assert names_of(named, model, lambda g: g.get("agc", 1) is None) == set()  # it is frozen
    for wrong in ("nosuch", nn.Linear(2, 2)):
        with pytest.raises(OptionError, match=r"no module|not in the model"):
            nf.optim.param_groups(model, classifier=wrong)
    with pytest.raises(OptionError, match="did you mean 'timm'"):
        nf.optim.param_groups(model, "tim")


def test_several_classifiers() -> None:
    model = network()
    model.get_classifier = lambda: (model[4], model[0])  # type: ignore[assignment]
    groups = nf.optim.param_groups(model)
    assert names_of(groups, model, lambda g: g.get("agc", 1) is None) == {"0.weight", "4.weight"}


def test_groups_of_timm() -> None:
    """The head by position, its bias left out too; decay by the number of axes, so that gains (C, 1, 1, 1) decay."""
    model = network()
    model[0].gain = nn.Parameter(torch.ones(8, 1, 1, 1))
    groups = nf.optim.param_groups(model, "timm", weight_decay=1e-4)
    assert names_of(groups, model, lambda g: g.get("agc", 1) is None) == {"4.weight", "4.bias"}
    assert names_of(groups, model, lambda g: g["weight_decay"] == 1e-4) == {"0.weight", "0.gain", "4.weight"}
    assert all(g["agc_units"] == "timm" for g in groups)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 4, 4)).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_wrapper_is_the_fused_step() -> None:
    fused, wrapped = network(), network()
    groups = [nf.optim.param_groups(m, weight_decay=1e-3) for m in (fused, wrapped)]
    a = train(fused, nf.optim.SGD(groups[0], 0.1, 0.9, True, agc=0.01))
    b = train(wrapped, nf.optim.AGC(torch.optim.SGD(groups[1], 0.1, 0.9, nesterov=True), 0.01))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)
    free = train(network(), torch.optim.SGD(network().parameters(), 0.1))
    assert len(free) == len(a)


def test_wrapper_around_the_fused_step() -> None:
    """It tells groups that say nothing; a refused one leaves the optimizer as it was."""

    def made() -> nn.Parameter:
        p = nn.Parameter(torch.ones(2, 3))
        p.grad = torch.full((2, 3), 100.0)
        return p

    free = {"params": [made()], "agc": None}
    optimizer = nf.optim.AGC(nf.optim.SGD([{"params": [made()]}, free], 0.1), 0.01, eps=1e-2)
    optimizer.clip()
    clipped, other = (g["params"][0].grad[0, 0] for g in optimizer.param_groups)
    torch.testing.assert_close(clipped, torch.tensor(0.01))
    assert other == 100 and optimizer.param_groups[0]["agc_eps"] == 1e-2
    inner = torch.optim.SGD([made()], 0.1)
    with pytest.raises(OptionError):
        nf.optim.AGC(inner, clipping=0)
    wrapped = nf.optim.AGC(inner, clipping=0.01)
    with pytest.raises(OptionError):
        wrapped.add_param_group({"params": [made()], "agc": -1})
    assert len(inner.param_groups) == 1 and inner.param_groups[0]["agc"] == 0.01


def test_states_that_cannot_be_loaded() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = nf.optim.SGD([p], 0.1, ema=0.9)
    with pytest.raises(OptionError, match="maximize"):
        optimizer.load_state_dict(torch.optim.SGD([p], 0.1, maximize=True).state_dict())
    p.grad = torch.ones(3)
    optimizer.step()
    saved, weights = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    optimizer.swap_ema()
    optimizer.load_state_dict(saved)  # puts the weights back
    assert torch.equal(p, weights)
    optimizer.step()


def test_wrapper() -> None:
    """It is an optimizer to schedulers, checkpoints, closures, copies and new groups."""
    model = network()
    inner = torch.optim.AdamW(nf.optim.param_groups(model), 1e-2)
    optimizer = nf.optim.AGC(inner, 0.02, eps=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        train(model, optimizer)
        scheduler.step()
    assert inner.param_groups[0]["lr"] < 1e-2 and optimizer.state is inner.state
    assert {g["agc"] for g in inner.param_groups} == {0.02, None} and optimizer.param_groups[0]["agc_eps"] == 1e-2
    saved = copy.deepcopy(optimizer.state_dict())
    other = nf.optim.AGC(torch.optim.AdamW(nf.optim.param_groups(model), 1e-3))
    other.load_state_dict(saved)
    assert other.param_groups[0]["agc_eps"] == 1e-2 and other.param_groups[0]["lr"] == inner.param_groups[0]["lr"]
    plain = torch.optim.AdamW(nf.optim.param_groups(model), 1e-3)
    other.load_state_dict(
        {"state": {}, "param_groups": [{**g, "agc": None} for g in plain.state_dict()["param_groups"]]}
    )
    extra = nn.Parameter(torch.randn(3, 3))
    optimizer.add_param_group({"params": [extra], "agc": None})
    extra.grad = torch.full((3, 3), 1e3)
    optimizer.clip()
    assert extra.grad.max() == 1e3
    again = pickle.loads(pickle.dumps(copy.deepcopy(optimizer)))
    assert isinstance(again, nf.optim.AGC) and again.param_groups[-1]["agc"] is None and "AdamW" in repr(again)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 1e4 * model(torch.ones(2, 3, 4, 4)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    norms = [(unit_rows(p.grad).norm(dim=1), unit_rows(p).norm(dim=1)) for p in model.parameters()]
    assert all((g <= 0.03 * w.clamp(min=0.02)).all() for g, w in norms[:-2])  # weights had moved after that


def test_scheduler_and_checkpoints_of_the_fused_step() -> None:
    def made(dtype: torch.dtype) -> tuple[list[nn.Parameter], nf.optim.SGD]:
        params = parameters(dtype)
        return params, nf.optim.SGD(params, 0.1, 0.9, True, DECAY, 0.01, "paper")

    for dtype in (torch.float32, torch.bfloat16):
        params, optimizer = made(dtype)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        for step in range(4):
            if step == 2:  # goes on in another process
                weights, saved = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
            draw_gradients(params, step)
            optimizer.step()
            scheduler.step()
        others, resumed = made(dtype)
        with torch.no_grad():
            for p, w in zip(others, weights, strict=True):
                p.copy_(w)
        resumed.load_state_dict(saved)
        assert resumed.state[others[0]]["ema"].dtype == torch.float32
        for step in (2, 3):
            draw_gradients(others, step)
            resumed.step()
            for group in resumed.param_groups:
                group["lr"] = 0.1 / (2 + step)
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_loads_torch_s_state() -> None:
    params = parameters(torch.float32)
    theirs = torch.optim.SGD(params, 0.1, 0.9)
    draw_gradients(params, 0)
    theirs.step()
    ours = nf.optim.SGD(params, 0.5, 0.9)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.1 and ours.param_groups[0].get("agc") is None
    mine = [p.detach().clone() for p in params]
    draw_gradients(params, 1)
    ours.step()
    after = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, w in zip(params, mine, strict=True):
            p.copy_(w)
    theirs.step()  # with the momentum that ours has written on
    assert not all(torch.equal(p, q) for p, q in zip(params, after, strict=True))


def test_average() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = nf.optim.SGD([p], 1.0, ema="paper")
    with pytest.raises(OptionError, match="take a step"):
        optimizer.swap_ema()
    expected = torch.zeros(3)
    for t in range(3):
        p.grad = torch.full((3,), -1.0)
        optimizer.step()
        share = min(0.99999, (1 + t) / (10 + t))
        expected = share * expected + (1 - share) * p.detach()
        torch.testing.assert_close(optimizer.state[p]["ema"], expected)
    weights = p.detach().clone()
    optimizer.swap_ema()
    torch.testing.assert_close(p.detach(), expected)
    with pytest.raises(OptionError, match="swap_ema"):
        optimizer.step()
    optimizer.swap_ema()
    assert torch.equal(p, weights) and set(optimizer.state[p]) == {"ema"}


def test_own_epsilon() -> None:
    """A gain that starts at 0 moves by λ·ε a step at most, until it is as large as ε."""
    slow, fast = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    optimizer = nf.optim.SGD([{"params": [slow]}, {"params": [fast], "agc_eps": 1.0}], 1.0, agc=0.01)
    for _ in range(10):
        slow.grad, fast.grad = torch.tensor(-1.0), torch.tensor(-1.0)
        optimizer.step()
    torch.testing.assert_close(slow.detach(), torch.tensor(1e-4))
    torch.testing.assert_close(fast.detach(), torch.tensor(0.1))


def test_scaler() -> None:
    """A GradScaler's scale is gone before norms are taken, and a step with infinities is left out."""
    made = []
    for scale in (1.0, 2.0**14):
        model = network()
        optimizer = nf.optim.SGD(nf.optim.param_groups(model), 0.1, 0.9, True, agc=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 3, 4, 4)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        before = [p.detach().clone() for p in model.parameters()]
        made.append(before)
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b)
    model[0].weight.grad.fill_(float("inf"))
    scaler.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_errors() -> None:
    p = nn.Parameter(torch.ones(3, 3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1}, "lr is a number that is not negative"), ({"agc": 0}, "agc is a positive number or None"),
        ({"nesterov": True}, "takes a momentum"), ({"ema": 1.0}, "ema is a number"), ({"ema": "papier"}, "ema is"),
        ({"agc": 0.1, "agc_eps": 0}, "agc_eps is a positive number"), ({"agc": "x"}, "agc is a positive number"),
        ({"momentum": None}, "momentum is a number"), ({"backend": "cc"}, "backend is one of .* not 'cc'"),
    ]  # fmt: skip
    for settings, said in wrong:
        with pytest.raises(OptionError, match=said):
            nf.optim.SGD([p], **{"lr": 0.1, **settings})
    optimizer = nf.optim.SGD([p], 0.1)
    with pytest.raises(OptionError, match="there is no rule"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "agc_units": "row"})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(OptionError, match="floating-point"):
        nf.optim.SGD([torch.ones(3, dtype=torch.complex64, requires_grad=True)], 0.1)
    flat = nn.Parameter(torch.ones(9))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="FSDP2"):
        nf.optim.AGC(torch.optim.SGD([flat], 0.1))
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    for sparse in (nf.optim.SGD(table.parameters(), 0.1), nf.optim.AGC(torch.optim.SGD(table.parameters(), 0.1))):
        with pytest.raises(OptionError, match="sparse"):
            sparse.step()
    named = nf.optim.SGD([p], 0.1, backend="triton")
    p.grad = torch.ones(3, 3)
    with pytest.raises(BackendError, match="triton"):
        named.step()


def test_learning_rates_that_are_tensors() -> None:
    made = []
    for lr in (0.1, torch.tensor(0.1)):
        params = parameters(torch.float32)
        draw_gradients(params, 0)
        nf.optim.SGD(params, lr, 0.9, agc=0.01, ema="paper", capturable=True).step()
        made.append(params)
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_step() -> None:
    model, other = network(), network()
    a = train(model, nf.optim.SGD(model.parameters(), 0.1, 0.9, agc=0.01))
    optimizer = nf.optim.SGD(other.parameters(), 0.1, 0.9, agc=0.01)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")  # type: ignore[method-assign]
    for x, y in zip(a, train(other, optimizer), strict=True):
        torch.testing.assert_close(x, y)


# -- sharpness-aware minimization


def test_sam() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    start = [p.detach().clone() for p in model.parameters()]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().mean()

    optimizer = nf.optim.SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.3)
    value = optimizer.step(loss, x, y)
    # By hand: up along the gradient of the first two, a step from the start with that of all up there.
    again = copy.deepcopy(model)
    for p, w in zip(again.parameters(), start, strict=True):
        p.data = w.clone()
    up = torch.autograd.grad((again(x[:2]) - y[:2]).square().mean(), [*again.parameters()])
    norm = torch.cat([g.flatten() for g in up]).norm()
    for p, g in zip(again.parameters(), up, strict=True):
        p.data += 0.3 * g / norm
    there = (again(x) - y).square().mean()
    down = torch.autograd.grad(there, [*again.parameters()])
    torch.testing.assert_close(value, there.detach())
    for p, w, g in zip(model.parameters(), start, down, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g)
    before = [p.detach().clone() for p in model.parameters()]
    calls = iter([lambda x, y: loss(x, y), lambda x, y: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda x, y: next(calls)(x, y), x, y)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert optimizer.step(lambda: loss(x, y)) > 0
    for settings in ({"rho": 0}, {"share": 0}, {"share": 1.5}):
        with pytest.raises(OptionError):
            nf.optim.SAM(torch.optim.SGD(model.parameters(), 0.1), **settings)
    with pytest.raises(OptionError, match="as many samples"):
        optimizer.step(loss, x, y[:3])


def test_sam_around_clipping() -> None:
    model = network()
    optimizer = nf.optim.SAM(nf.optim.SGD(nf.optim.param_groups(model), 0.1, 0.9, agc=0.01))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    x = torch.randn(10, 3, 4, 4)
    losses = []
    for _ in range(4):
        losses.append(float(optimizer.step(lambda x: model(x).square().mean(), x)))
        scheduler.step()
    assert losses[-1] < losses[0]
