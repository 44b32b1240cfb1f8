"""Several processes: real ones, with gloo, beside one process with the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from reference import tolerance
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

import normforge as nf
from normforge.errors import BackendError, OptionError
from normforge.kernels.split import is_exact, split

# Two levels, three moments of one level that share what they exchange, moments over the channels too.
NESTED = "x / std[b,w,h](x - mean[b,w,h](x * sigmoid(v1 * x))) * gamma + rms[b,w,h](x) * mean[b,w,h,c](abs(x)) + beta"
PARTS = (3, 2)  # samples of each process
STEPS = 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nf.compile(name, 6, groups=3, backend="c") for name in ("bn-relu", "evonorm-b0", NESTED)]
    return nn.Sequential(layers[0], nn.Conv2d(6, 6, 1), layers[1], nn.Conv2d(6, 6, 1), layers[2]).double()


def data() -> torch.Tensor:
    return torch.randn(STEPS, sum(PARTS), 6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, batches: list[torch.Tensor], shared: bool) -> dict[str, torch.Tensor]:
    """Steps on a loss with a penalty on its gradient in x, which takes second derivatives."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    outputs = {}
    for step, x in enumerate(batches):
        x = x.clone().requires_grad_()
        y = model(x)
        (dx,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        optimizer.zero_grad()
        (y.tanh().square().sum() + dx.square().sum()).backward()
        if shared:
            for p in model.parameters():
                distributed.all_reduce(p.grad)
        optimizer.step()
        assert y.isfinite().all() and dx.isfinite().all()
        outputs |= {f"y{step}": y.detach(), f"dx{step}": dx.detach()}
    return outputs | {k: v.clone() for k, v in model.state_dict().items()}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(PARTS))
    mine = [part.split(PARTS)[rank] for part in data()]
    model = nf.sync(network())
    torch.save(train(model, mine, shared=True), f"{folder}/{rank}.pt")
    again = train(nf.sync(network()), mine, shared=True)
    first = torch.load(f"{folder}/{rank}.pt")
    assert all(torch.equal(first[k], v) for k, v in again.items())
    stored = copy.deepcopy(model)  # a copy has the group, and inference exchanges nothing
    if rank == 0:
        stored.eval()(mine[0])
    assert split.cache_info().currsize == len(model) - 2  # compiled, in pieces; two of the five are convolutions
    pieces(rank)
    distributed.barrier()
    data_parallel(rank)
    clipped(rank)
    distributed.destroy_process_group()


def pieces(rank: int) -> None:
    """In 16 bits, and where a moment is of less than x, as the formula is in float32."""
    x = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(rank))
    for formula, dtype in (
        ("bn-silu", torch.bfloat16),
        ("x * std[b,w,h](x * sigmoid(x))", torch.bfloat16),
        ("x * std[b,w,h](rms[w,h](x)) * gamma", torch.float32),
    ):
        layer = nf.parse(formula)
        assert (split(layer) is None) == ("rms" in formula)
        assert is_exact(layer, dtype) == (formula == "bn-silu")
        got = nf.sync(nf.compile(layer, 6).to(dtype))(x.to(dtype))
        want = nf.sync(nf.compile(layer, 6, backend="eager"))(x.to(dtype).float())
        assert got.dtype == dtype
        assert (got.float() - want).abs().max() <= tolerance(dtype, 36, float(want.abs().max()))


def data_parallel(rank: int) -> None:
    """DDP and FSDP2 of layers without moments over the batch; DTensors are refused."""

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nf.compile(name, 6, groups=3, backend="c") for name in ("gn-silu", "evonorm-s0")]
        return nn.Sequential(nn.Conv2d(6, 6, 1), layers[0], nn.Conv2d(6, 6, 1), layers[1]).double()

    batch = data()[0][:4]
    alone, mine = model(), batch.chunk(len(PARTS))[rank]
    alone(batch).square().mean().backward()
    want = [p.grad for p in alone.parameters()]
    replicated = nn.parallel.DistributedDataParallel(model())
    replicated(mine).square().mean().backward()
    mesh = init_device_mesh("cpu", (len(PARTS),))
    sharded = model()
    for module in (*sharded, sharded):
        fully_shard(module, mesh=mesh)
    sharded(mine).square().mean().backward()
    for p, q, g in zip(replicated.parameters(), sharded.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, g)
        torch.testing.assert_close(q.grad.full_tensor(), g)
    with pytest.raises(BackendError, match="to_local"):
        model()[1](distribute_tensor(batch, mesh, [Shard(0)]))


class Scaled(nn.Module):
    """Scaled weights, a gain that one process holds alone, rows that do not divide, one output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nf.nn.ScaledConv2d(6, 5, 3, padding=1), nf.nn.ScaledConv2d(5, 1, 3)
        self.gain = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(2, 3)
        nf.nn.together(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x) * (1 + self.gain)).flatten(1))  # type: ignore[no-any-return]


def clipped(rank: int) -> None:
    """Clipped steps of DDP and FSDP2 are those of one process; FSDP of version 1 is refused."""
    mesh = init_device_mesh("cpu", (len(PARTS),))
    makers = {
        "fused": lambda m: nf.optim.SGD(nf.optim.param_groups(m), 0.1, 0.9, True, agc=0.05, ema=0.9),
        "eager": lambda m: nf.optim.SGD(nf.optim.param_groups(m), 0.1, 0.9, True, agc=0.05, ema=0.9, backend="eager"),
        "around": lambda m: nf.optim.AGC(torch.optim.SGD(nf.optim.param_groups(m), 0.1, 0.9, nesterov=True), 0.05),
    }
    for name, make in makers.items():
        alone, replicated, sharded = Scaled().double(), Scaled().double(), Scaled().double()
        for module in (sharded.a, sharded.b, sharded):
            fully_shard(module, mesh=mesh)
        wrapped = nn.parallel.DistributedDataParallel(replicated)
        runs = [(alone, alone, None), (wrapped, replicated, rank), (sharded, sharded, rank)]
        optimizers = [make(own) for _, own, _ in runs]
        for batch in data():
            for (model, _, part), optimizer in zip(runs, optimizers, strict=True):
                optimizer.zero_grad()
                x = batch[:4] if part is None else batch[:4].chunk(len(PARTS))[part]
                (30 * model(x).square().mean()).backward()
                optimizer.step()
        for p, q, r in zip(*(own.parameters() for _, own, _ in runs), strict=True):
            torch.testing.assert_close(q, p, msg=lambda m, name=name: f"DDP, {name}: {m}")
            torch.testing.assert_close(r.full_tensor(), p, msg=lambda m, name=name: f"FSDP2, {name}: {m}")
        if name != "around":
            for model, optimizer in ((alone, optimizers[0]), (sharded, optimizers[2])):
                optimizer.swap_ema()
                assert all(p.isfinite().all() for p in model.parameters())
    flat = FullyShardedDataParallel(nn.Linear(3, 4), device_id=torch.device("cpu"), use_orig_params=True)
    with pytest.raises(OptionError, match="FSDP2"):
        nf.optim.SGD(flat.parameters(), 0.1, agc=0.01)


def test_two_processes_are_one(tmp_path: Path) -> None:
    spawn(process, (str(tmp_path),), nprocs=len(PARTS))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    want = train(network(), list(data()), shared=False)
    for name, value in want.items():
        if name.startswith(("y", "dx")):
            torch.testing.assert_close(torch.cat([f[name] for f in found]), value, rtol=1e-10, atol=1e-10)
        else:
            for f in found:
                torch.testing.assert_close(f[name], value, rtol=1e-10, atol=1e-10)


def test_alone_nothing_changes() -> None:
    model, x = network(), data()[0]
    want = copy.deepcopy(model)(x)
    assert torch.equal(nf.sync(model)(x), want)
    assert not nf.sync(nf.compile("gn-relu", 6)).synced
    synchronised, report = nf.convert(nn.Sequential(nn.SyncBatchNorm(6), nn.ReLU()), "evonorm-b0")
    assert synchronised[0].synced and report.replaced
    with pytest.raises(OptionError, match=r"nf\.sync"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
