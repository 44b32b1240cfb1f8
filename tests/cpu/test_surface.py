"""The module in the habits of torch: arguments, statistics averaged or frozen, settings of whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import normforge as nf
from normforge.errors import BackendError, DtypeError, OptionError, ShapeError
from normforge.kernels import toolchain

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")


@pytest.mark.parametrize("backend", ["c", "eager"])
def test_statistics_averaged_over_all_batches(backend: str) -> None:
    """As torch does for `momentum=None`, which `update_bn` uses; layers with running statistics are found by it."""
    m = nf.compile("bn-relu", 4, backend=backend, momentum=None, eps=1e-3)
    theirs = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=None)
    batches = [torch.randn(3, 4, 5, 2) * k for k in (1, 2, 3)]
    for x in batches:
        m(x), theirs(x)
    for name, buffer in m.named_buffers():
        torch.testing.assert_close(buffer, getattr(theirs, name))
    averaged = nf.compile("evonorm-b0", 4, backend=backend)
    averaged(torch.randn(3, 4, 5, 2))
    torch.optim.swa_utils.update_bn(batches, averaged)
    torch.testing.assert_close(averaged.running_var, theirs.running_var)
    assert averaged.momentum == 0.1 and int(averaged.num_batches_tracked) == 3
    averaged.reset_running_stats()
    assert torch.equal(averaged.running_var, torch.ones(4)) and not averaged.num_batches_tracked


def test_frozen_statistics() -> None:
    model = torch.nn.Sequential(nf.compile("bn-relu", 4), torch.nn.Conv2d(4, 4, 1), nf.compile("gn-silu", 4))
    x = torch.randn(3, 4, 5, 2)
    model(x)
    kept = model[0].running_var.clone()
    assert nf.freeze(model) is model and "frozen" in repr(model[0])
    y = model(x)
    assert torch.equal(y, model.eval()(x)) and torch.equal(kept, model[0].running_var)
    y.sum().backward()
    assert model[0].weight.grad.any()
    nf.freeze(model, False).train()(x)
    assert not torch.equal(kept, model[0].running_var)


def test_backend_of_a_whole_model() -> None:
    model = torch.nn.Sequential(nf.compile("bn-relu", 4, backend="c"), nf.compile("cond-evonorm-b0", 4, backend="c"))
    assert nf.set_backend(model, "eager") is model
    assert [layer.backend for layer in model] == ["eager", "eager"]
    with pytest.raises(OptionError, match="did you mean 'triton'"):
        nf.set_backend(model, "trition")


def test_arguments_in_the_habits_of_torch() -> None:
    m = nf.compile("bn-relu", np.int64(8), groups=np.int32(4), eps=1e-3, device="meta", dtype=torch.float64)
    assert (m.num_features, m.groups, m.eps, m.weight.dtype) == (8, 4, 1e-3, torch.float64)
    assert m.running_mean.device.type == "meta" and m.running_mean.dtype == torch.float64
    assert isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    assert not isinstance(nf.compile("gn-relu", 8), torch.nn.modules.batchnorm._BatchNorm)
    assert nf.compile("bn-relu", 8, dtype=torch.bfloat16).running_mean.dtype == torch.float32
    x = torch.randn(3, 4, 5, 2)
    changed = nf.compile("bn-relu", 4)
    before = changed(x)
    changed.eps = 0.5
    assert torch.equal(changed(x), nf.compile("bn-relu", 4, eps=0.5)(x)) and not torch.equal(changed(x), before)


def test_a_convolution_takes_a_batch_norm_in() -> None:
    conv, norm = torch.nn.Conv2d(3, 8, 3), nf.compile("batchnorm", 8)
    norm(conv(torch.randn(4, 3, 6, 6)) * 3)
    model = torch.nn.Sequential(conv, norm).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)(x), model(x))


def test_one_value_a_channel() -> None:
    """What torch refuses is refused: normalization over the batch leaves nothing of it."""
    for name in ("bn-relu", "batchnorm", "cond-bn-relu"):
        m = nf.compile(name, 4)
        for x in (torch.randn(1, 4), torch.randn(1, 4, 1, 1)):
            more = [x.new_ones(1, 4)] * (len(m.graph.inputs) - 1)
            with pytest.raises(ShapeError, match="one value a channel"):
                m.train()(x, *more)
            m.eval()(x, *more)
    nf.compile("evonorm-b0", 4)(torch.randn(1, 4, 1, 1))  # depends on x
    nf.freeze(nf.compile("bn-relu", 4))(torch.randn(1, 4))


def test_errors_say_what_to_do() -> None:
    m = nf.compile("gn-relu", channels=4, backend="c")
    with pytest.raises(ShapeError, match="3 channels"):
        m(torch.randn(2, 3, 4, 4))
    with pytest.raises(ShapeError, match="channel_dim=-1"):
        m(torch.randn(2, 3, 4))
    with pytest.raises(ShapeError, match="axes"):
        m(torch.randn(4))
    with pytest.raises(DtypeError, match="int64"):
        m(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="does not divide"):
        nf.compile("gn-relu", channels=4, groups=3)
    with pytest.raises(OptionError, match="did you mean 'eager'"):
        nf.compile("gn-relu", channels=4, backend="eagre")
    for layer in (None, True, m, 3.0):
        with pytest.raises(OptionError, match="a layer is a formula"):
            nf.compile(layer, channels=4)
    for channels in (None, True, "4", 2.5, 0, torch.randn(3)):
        with pytest.raises(ShapeError, match="positive number"):
            nf.compile("gn-relu", channels)
    for x in (None, True, "x", m, np.zeros((2, 4)), [[1.0] * 4]):
        with pytest.raises(OptionError, match="give a tensor"):
            m(x)
    with pytest.raises(ShapeError, match=r"add a batch axis, as in x\[None\]"):
        m(torch.randn(4, 5, 5))
    for wrong in ({"eps": -1.0}, {"eps": "1"}, {"momentum": 2}, {"momentum": "a"}, {"channel_dim": 2}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            nf.compile("bn-relu", 4, **wrong)
    with pytest.raises(DtypeError, match="int8"):
        nf.compile("gn-relu", 4, dtype=torch.int8)
    with pytest.raises(OptionError, match="convert_sync_batchnorm"):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(nf.compile("bn-relu", 4)))
    with pytest.raises(BackendError, match="GPU"):
        nf.compile("gn-relu", channels=4, backend="triton")(torch.randn(2, 4))
    torch.func.grad(lambda t: nf.compile("gn-relu", channels=4, backend="eager")(t).sum())(torch.randn(2, 4, 3))
