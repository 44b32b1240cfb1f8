"""Roads out of eager PyTorch: what is traced, scripted or stored computes what the layer does, without normforge."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torchvision.models.feature_extraction import create_feature_extractor

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


@pytest.mark.filterwarnings("ignore")
def test_features_and_quantization_of_a_converted_network() -> None:
    """What traces a network symbolically: torchvision's feature extractors, prepare_fx."""
    model = nf.convert(torchvision.models.resnet18(), "evonorm-s0", backend="eager")[0].eval()
    x = torch.randn(1, 3, 32, 32)
    features = create_feature_extractor(model, {"layer1": "a", "layer2.0.bn1": "b", "fc": "y"})(x)
    assert features["b"].shape == (1, 128, 4, 4) and torch.equal(features["y"], model(x))
    prepared = prepare_fx(model, get_default_qconfig_mapping(), (x,))
    assert prepared(x).shape == (1, 1000)


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


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_onnx(dynamo: bool, tmp_path: Path) -> None:
    """Operators of ONNX alone, for any batch and size, equal to rounding in onnxruntime."""
    import onnxruntime

    class Net(nn.Module):
        def __init__(self, layer: str) -> None:
            super().__init__()
            self.layer = nf.compile(layer, 8)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            return self.layer(*inputs)

    for layer in ("evonorm-b0", "adagn-silu") if dynamo else ("rmsnorm", WORDS):
        net, path = Net(layer).eval(), str(tmp_path / "net.onnx")
        inputs, others = inputs_of(net.layer, (3, 8, 5, 4)), inputs_of(net.layer, (2, 8, 3, 6))
        if dynamo:
            shapes = tuple({i: torch.export.Dim.DYNAMIC for i in range(t.dim()) if i != 1} for t in inputs)
            torch.onnx.export(net, inputs, path, dynamo=True, dynamic_shapes=(shapes,), verbose=False)
        else:
            axes = {"x": {0: "n", 2: "h", 3: "w"}}
            torch.onnx.export(net, inputs, path, dynamo=False, input_names=["x"], dynamic_axes=axes)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for given in (inputs, others):
            named = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)}
            for got, want in zip(session.run(None, named), results_of(net, given), strict=True):
                torch.testing.assert_close(torch.from_numpy(got), want.detach(), msg=layer)


class Custom:
    pass


TRANSFORMED = ["evonorm-s0", "layernorm-gelu", "rmsnorm", "gn-silu"]


@pytest.mark.filterwarnings(
    "ignore:normforge runs on torch", "ignore:There is a performance drop", "ignore::FutureWarning"
)
@pytest.mark.parametrize("layer", TRANSFORMED)
def test_transforms(layer: str) -> None:
    """torch.func, forward mode and batched gradients, of compiled layers, as eager ones have them."""
    m = nf.compile(layer, 4, groups=2, backend="c").double()
    e = nf.compile(layer, 4, groups=2, backend="eager").double()
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    both = torch.stack([x, 2 * x])
    for given in (both, both.transpose(2, 4).contiguous().transpose(2, 4)):  # channels last too
        for one in (m, e):
            torch.testing.assert_close(torch.func.vmap(one)(given), torch.stack([m(x), m(2 * x)]))
    torch.testing.assert_close(torch.func.jacrev(m)(x), torch.autograd.functional.jacobian(e, x))
    torch.testing.assert_close(torch.func.jacfwd(m)(x), torch.autograd.functional.jacobian(e, x))
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(m, x, vectorize=True), torch.autograd.functional.jacobian(e, x)
    )
    parameters = dict(m.named_parameters())

    def loss(p: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(m, p, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        want = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
        for name, g in zip(parameters, want, strict=True):
            torch.testing.assert_close(each[name][i], g)
    inputs = [x.requires_grad_(), *m.parameters()]
    call = lambda x, *p: torch.func.functional_call(m, dict(zip(parameters, p, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_batched_grad=True)


@pytest.mark.filterwarnings("ignore:normforge runs on torch")
def test_running_statistics_under_transforms() -> None:
    """What torch's BatchNorm refuses is refused; in inference nothing stands in the way."""
    m, x = nf.compile("bn-relu", 4), torch.randn(2, 3, 4, 5, 5)
    with pytest.raises(nf.errors.TransformError, match="running statistics"):
        torch.func.vmap(m)(x)
    torch.testing.assert_close(torch.func.vmap(m.eval())(x), torch.stack([m(x[0]), m(x[1])]))


def test_stored_layers_load_as_weights_only(tmp_path: Path) -> None:
    for name in ("bn-relu", "evonorm-s0", "cond-evonorm-b0", "add-rmsnorm"):
        m = nf.freeze(nf.compile(name, 4, momentum=None, eps=1e-3)).eval()
        m.note = "kept"
        with torch.no_grad():
            for t in (*m.parameters(), *m.buffers()):
                t += 1
        torch.save(m, tmp_path / "m.pt")
        found = torch.load(tmp_path / "m.pt", weights_only=True)
        assert type(found) is type(m) and repr(found) == repr(m) and found.note == "kept" and not found.training
        assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), m.state_dict().values(), strict=True))
        code = "import normforge, torch; torch.load('m.pt', weights_only=True)"
        if name == "bn-relu":
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    torch.save(nn.Sequential(m), tmp_path / "net.pt")
    with torch.serialization.safe_globals([nn.Sequential]):
        same(torch.load(tmp_path / "net.pt", weights_only=True)[0], m, inputs_of(m, (2, 4, 3, 3)))
    m.note = Custom  # nothing else is executed
    torch.save(m, tmp_path / "m.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "m.pt", weights_only=True)


def test_exported_programs_load_with_no_more_than_an_import(tmp_path: Path) -> None:
    """Whichever of the two is imported first."""
    x = torch.randn(3, 4, 5, 5)
    for name, training in (("import torch, normforge", False), ("import normforge, torch", True)):
        m = nf.compile("evonorm-b0", 4).train(training)
        torch.export.save(torch.export.export(m, (x,)), tmp_path / "program.pt2")
        torch.save((x, m(x).detach()), tmp_path / "io.pt")
        code = (
            f"{name}\nx, y = torch.load('io.pt')\n"
            "torch.testing.assert_close(torch.export.load('program.pt2').module()(x).detach(), y)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("first", ["codegen.eager", "kernels.job"])
def test_any_module_may_be_the_first(first: str) -> None:
    """Also one that loads torch half way through its own imports."""
    subprocess.run([sys.executable, "-c", f"import normforge.{first}"], check=True)


def test_a_profiler_sees_the_layer_by_name() -> None:
    m, x = nf.compile("evonorm-s0", 4, backend="c"), torch.randn(2, 4, 3, 3, requires_grad=True)
    with torch.profiler.profile() as seen:
        (dx,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        dx.square().sum().backward()
        with torch.no_grad():
            m(x)
    names = [e.name for e in seen.events()]
    assert names.count("evonorm-s0") == 2
    assert names.count("evonorm-s0 backward") == 1 and names.count("evonorm-s0 double backward") == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool) -> None:
    m, x = nf.compile("gn-silu", 4), torch.randn(2, 4, 3, 3, requires_grad=True)
    (want,) = torch.autograd.grad(m(x).square().sum(), x)
    torch.utils.checkpoint.checkpoint(m, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, want)


@pytest.mark.slow
def test_aot_inductor(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nf.compile("evonorm-s0", 8)).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), net(x))
