"""The pool of CPU outputs: nothing that anybody can still reach is handed out; bounded, emptied, switched off."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import normforge as nf
from normforge.errors import OptionError
from normforge.kernels import pool as pool_module
from normforge.kernels import toolchain
from normforge.kernels.pool import MIN_BYTES, PROBES, SHELVES, Form, Pool, form_of

SIDE = MIN_BYTES // 4 // 128  # of a row of float32: 128 rows are just large enough
compiled_only = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")


def form(rows: int = 128, dtype: torch.dtype = torch.float32) -> Form:
    return form_of(torch.Size((rows, SIDE)), (SIDE, 1), dtype)


@pytest.fixture
def pool() -> Pool:
    made = Pool(1 << 30)
    assert made._alone is not None  # or every test here would be one of malloc
    return made


@pytest.fixture
def shared_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """The pool that layers use, empty before and after."""
    nf.empty_pool()
    monkeypatch.setattr(pool_module.POOL, "limit", 1 << 30)
    yield pool_module.POOL
    nf.empty_pool()


def addresses(pool: Pool, count: int = 3 * PROBES, kind: Form | None = None) -> set[int]:
    """Where the next tensors would lie, more than the pool looks at in one call."""
    return {t.data_ptr() for t in [pool.take(kind or form()) for _ in range(count)]}


def test_a_storage_is_used_again_once_nobody_holds_it(pool: Pool) -> None:
    t = pool.take(form())
    address = t.data_ptr()
    assert address not in addresses(pool)
    del t
    assert address in addresses(pool)


def test_what_is_handed_out_is_like_a_new_tensor(pool: Pool) -> None:
    for _ in range(2):
        t = pool.take(form())
        assert t.shape == (128, SIDE) and t.stride() == (SIDE, 1) and t.dtype == torch.float32
        assert t.is_leaf and not t.requires_grad and t._base is None and t._version == 0
        assert t.untyped_storage().nbytes() == t.nbytes and t.untyped_storage().resizable() and not t.is_inference()
        t.fill_(1)
        with torch.inference_mode():
            assert pool.take(form()).is_inference()
    other = form_of(torch.Size((SIDE, 2, 128)), (1, 128 * SIDE, SIDE), torch.bfloat16)
    address = t.data_ptr()
    del t
    found = [pool.take(other) for _ in range(2)]
    assert address in {t.data_ptr() for t in found}
    assert all((t.shape, t.stride(), t.dtype) == other[:3] for t in found)


def graph_of(t: Tensor) -> Tensor:
    return torch.ones_like(t, requires_grad=True) * t  # saves t


# Everything that can still read the memory of a tensor when the tensor itself is gone.
HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "view": lambda t: t[3:5, 7:9],
    "detached": lambda t: t.detach(),
    "data": lambda t: t.data,
    "storage": lambda t: t.untyped_storage(),
    "typed storage": lambda t: t.storage(),
    "storage from a weak pointer": lambda t: torch.UntypedStorage._new_with_weak_ptr(t.untyped_storage()._weak_ref()),
    "set_": lambda t: torch.empty(0).set_(t.untyped_storage()),
    "numpy": lambda t: t.numpy(),
    "numpy view": lambda t: t.numpy()[5:],
    "memoryview": lambda t: memoryview(t.numpy()),
    "numpy's dlpack": lambda t: np.from_dlpack(t),
    "capsule": torch.utils.dlpack.to_dlpack,
    "torch's dlpack": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
    "frombuffer": lambda t: torch.frombuffer(t.numpy(), dtype=torch.float32),
    "saved for backward": graph_of,
    "saved as an output": lambda t: t.requires_grad_().sigmoid(),
    "grad of a parameter": lambda t: setattr(p := torch.nn.Parameter(torch.ones_like(t)), "grad", t) or p,
    "in a list of itself": lambda t: (a := [t], a.append(a)),
    "parameter": torch.nn.Parameter,
    "module": lambda t: torch.nn.ParameterList([t]),
    "generator": lambda t: (x for x in (t,)),
    "closure": lambda t: lambda: t,
    "lazy clone": torch._lazy_clone,
    "shared memory": lambda t: t.share_memory_(),
    "shrunk": lambda t: t.resize_(3, 5),
    "grown": lambda t: t.resize_(1000, SIDE),
}


def read(thing: Any) -> np.ndarray | None:
    """A copy of the bytes that a holder can see, where it can be asked for them."""
    if type(thing).__name__ == "PyCapsule":
        thing = torch.from_dlpack(thing)
    if isinstance(thing, Tensor):
        return thing.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy()
    return np.array(thing).view(np.uint8) if isinstance(thing, np.ndarray | memoryview) else None


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_holder_keeps_its_memory(pool: Pool, name: str) -> None:
    t = pool.take(form())
    t.fill_(7)
    address = t.untyped_storage().data_ptr()
    held = HOLDERS[name](t)
    if name != "lazy clone":  # which keeps the memory: whoever asks its source for an address moves the source
        address = t.untyped_storage().data_ptr()
    del t
    gc.collect()
    before = None if name == "capsule" else read(held)  # a capsule can be read once
    for _ in range(3):
        others = [pool.take(form()) for _ in range(3 * PROBES)]
        assert address not in {o.data_ptr() for o in others}
        for o in others:
            o.fill_(8)
    after = read(held)
    assert before is None or (before == after).all()
    if name == "capsule":
        assert (after.view(np.float32) == 7).all()
    if name == "saved for backward":
        held.sum().backward()
        assert (held.grad_fn.next_functions[0][0].variable.grad == 7).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.share_memory_(),
        lambda t: t.untyped_storage().resize_(0),
        lambda t: (t.untyped_storage().resize_(0), t.untyped_storage().resize_(t.nbytes // 2)),
        lambda t: t.resize_(1000, SIDE),
        lambda t: t.numpy(),  # forbids to resize
    ],
)
def test_a_changed_storage_is_let_go(pool: Pool, change: Callable[[Tensor], object]) -> None:
    t = pool.take(form())
    change(t)
    gone = weak(t)
    del t
    made = [pool.take(form()) for _ in range(2)]
    assert all(m.untyped_storage().resizable() and m.untyped_storage().nbytes() == m.nbytes for m in made)
    assert not any(m.is_shared() for m in made)
    gc.collect()
    assert gone.expired()


def weak(t: Tensor) -> torch.multiprocessing.reductions.StorageWeakRef:
    return torch.multiprocessing.reductions.StorageWeakRef(t.untyped_storage())


def test_copies_are_apart(pool: Pool) -> None:
    t = pool.take(form()).fill_(3)
    written = io.BytesIO()
    torch.save(t, written)
    assert written.tell() < t.nbytes + 4096  # the storage has no more than the tensor
    written.seek(0)
    copies = [copy.deepcopy(t), pickle.loads(pickle.dumps(t)), torch.load(written)]
    address = t.data_ptr()
    del t
    again = [pool.take(form()).fill_(4) for _ in range(3)]
    assert address in {a.data_ptr() for a in again}
    assert all((c == 3).all() for c in copies)


def test_random_holding_and_dropping(pool: Pool) -> None:
    """A held tensor never changes, whatever is taken, held through something else, and dropped around it."""
    rng = random.Random(0)
    kinds = [form(), form(256), form(256, torch.bfloat16), form(128, torch.float64)]
    ways = [w for n, w in HOLDERS.items() if n in ("tensor", "view", "numpy", "memoryview", "capsule", "set_")]
    held: list[tuple[Any, int]] = []
    reused, seen = 0, set()
    for stamp in range(2000):
        kind = rng.choice(kinds[: 1 + stamp // 500])
        t = pool.take(kind)
        reused += t.data_ptr() in seen
        seen.add(t.data_ptr())
        t.untyped_storage().copy_(torch.full((t.nbytes // 2,), stamp, dtype=torch.int16).untyped_storage())
        way = rng.choice(ways) if t.dtype == torch.float32 else ways[0]
        held.append((way(t), stamp))
        while held and rng.random() < (0.45 if len(held) < 40 else 0.9):
            thing, want = held.pop(rng.choice((0, -1, rng.randrange(len(held)))))
            assert (read(thing).view(np.int16) == want).all()
    assert reused > 500


def test_threads(pool: Pool) -> None:
    failed: list[str] = []

    def work(number: int) -> None:
        rng, held = random.Random(number), []
        for step in range(400):
            t = pool.take(form(rng.choice((128, 129))))
            stamp = number * 1000 + step
            t.fill_(stamp)
            held.append((t, stamp))
            while len(held) > rng.randrange(6):
                t, want = held.pop(rng.randrange(len(held)))
                if not (t == want).all():
                    failed.append(f"{want} became {t.unique().tolist()}")
            if step % 100 == 99:
                pool.empty()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


def test_the_limit_holds(pool: Pool) -> None:
    nbytes = form().nbytes
    pool.limit = 10 * nbytes
    held = [pool.take(form()) for _ in range(30)]
    assert pool.kept() == 10 * nbytes
    held += [pool.take(form(256)) for _ in range(30)]
    assert pool.kept() == 10 * nbytes
    assert pool.take(form(128 * 11)).shape[0] == 128 * 11  # larger than the limit: not kept
    assert pool.kept() == 10 * nbytes
    del held
    assert pool.empty() == 10 * nbytes and pool.kept() == 0


def test_idle_memory_of_other_sizes_goes_first(pool: Pool) -> None:
    """Sizes that come once each do not pile up, and neither do their shelves."""
    for rows in range(128, 128 + 2 * SHELVES):
        pool.take(form(rows))
        assert pool.kept() <= 2 * form(rows).nbytes
    held = [pool.take(form(rows)) for rows in range(128, 128 + 2 * SHELVES)]
    assert len(pool._shelves) <= SHELVES + 1
    del held


def test_many_held_tensors_do_not_hide_a_free_one(pool: Pool) -> None:
    held = [pool.take(form()) for _ in range(8 * PROBES)]
    free = held.pop(4 * PROBES).data_ptr()  # in the middle
    assert free in {t.data_ptr() for t in [pool.take(form()) for _ in range(8)]}


def test_training_reuses_everything(pool: Pool) -> None:
    """A forward that keeps its outputs and a backward that frees the newest first need no memory in the second step."""

    def step() -> None:
        outputs = [pool.take(form()) for _ in range(50)]
        grad = pool.take(form())
        while outputs:
            outputs.pop()
            grad = pool.take(form())  # while the one before is alive
        del grad

    step()
    kept = pool.kept()
    step()
    assert pool.kept() == kept <= 53 * form().nbytes


def test_short_memory_empties_the_pool(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.take(form())
    monkeypatch.setattr(pool_module, "LOOK_BYTES", 0)
    total = pool_module.system_memory()[0]
    monkeypatch.setattr(pool_module, "RESERVE", 1.0)  # everything is to be left to others
    held = pool.take(form(256))
    assert pool.kept() == 0 and total > 0 and held.shape[0] == 256
    gc.collect()


def test_a_failed_allocation_empties_the_pool(pool: Pool) -> None:
    pool.limit = 1 << 62
    pool.take(form())
    with pytest.raises(RuntimeError):
        pool.take(form_of(torch.Size((1 << 50,)), (1,), torch.float32))
    assert pool.kept() == 0


def test_modes_that_watch_allocations_get_their_own(pool: Pool) -> None:
    t = pool.take(form()).fill_(5)
    address = t.data_ptr()
    del t
    torch.use_deterministic_algorithms(True)
    try:
        assert pool.take(form()).isnan().all()  # torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
    with torch._subclasses.FakeTensorMode():
        assert isinstance(pool.take(form()), torch._subclasses.FakeTensor)
    torch.func.vmap(lambda x: pool.take(form()).fill_(6) + x)(torch.zeros(2))
    assert address in addresses(pool)


@pytest.mark.parametrize("count", [None, lambda number: 2])
def test_a_torch_that_counts_otherwise_gets_no_pool(monkeypatch: pytest.MonkeyPatch, count: object) -> None:
    monkeypatch.setattr(pool_module, "_count_owners", count)
    other = Pool(1 << 30)
    other.take(form())
    assert other.kept() == 0


@pytest.mark.parametrize(("said", "want"), [("0", 0), ("250", 250_000_000), (" 1.5 ", 1_500_000)])
def test_the_environment_sets_the_limit(monkeypatch: pytest.MonkeyPatch, said: str, want: int) -> None:
    monkeypatch.setenv(pool_module.VARIABLE, said)
    assert pool_module.default_limit() == want


@pytest.mark.parametrize("said", ["-1", "much", "nan", "inf"])
def test_a_limit_without_meaning(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(pool_module.VARIABLE, said)
    with pytest.raises(OptionError, match=pool_module.VARIABLE):
        pool_module.default_limit()


def test_the_default_limit_is_a_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pool_module.VARIABLE, raising=False)
    total, available = pool_module.system_memory()
    assert 0 < pool_module.default_limit() < total and 0 < available <= total


def test_a_container_s_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 200000\n")
    monkeypatch.setattr(pool_module, "_GROUPS", ((str(tmp_path), "memory.max", "memory.current", "inactive_file"),))
    assert pool_module.system_memory() == (1000000, 500000)
    (tmp_path / "memory.max").write_text("max\n")
    assert pool_module.system_memory()[0] > 1000000


# -- layers

SHAPE = (4, 32, 32, 32)


def everything(layer: str, *, channels_last: bool = False) -> list[Tensor]:
    """All tensors of all orders, while some of them are held and some are gone; the graph is walked twice."""
    torch.manual_seed(0)
    module = nf.compile(layer, SHAPE[1], backend="c")
    made: list[Tensor] = []
    for _ in range(3):
        memory = torch.channels_last if channels_last else torch.contiguous_format
        x, dy, v = (torch.randn(SHAPE).contiguous(memory_format=memory).requires_grad_() for _ in range(3))
        y = module(x)
        z = module(y)
        torch.autograd.grad(z, [x], dy, retain_graph=True)
        dx, *rest = torch.autograd.grad(z, [x, *module.parameters()], dy, create_graph=True)
        second = torch.autograd.grad(dx, [x, dy], v, retain_graph=True)
        torch.autograd.grad(z, [x], dy.transpose(2, 3), retain_graph=True)
        again = torch.autograd.grad(dx, [x, dy], v)
        made += [y, *rest, *second[:1], *again, *module.buffers()]
        with torch.inference_mode():
            made.append(module(x[:2]).clone())
    return [t.detach() for t in made]


@compiled_only
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layer", ["evonorm-s0", "bn-relu"])
def test_the_same_bits_without_the_pool(shared_pool: Pool, layer: str, channels_last: bool) -> None:
    pooled = everything(layer, channels_last=channels_last)
    assert shared_pool.kept() >= torch.Size(SHAPE).numel() * 4
    checks = [t.clone() for t in pooled]
    everything(layer)
    shared_pool.limit = 0
    nf.empty_pool()
    plain = everything(layer, channels_last=channels_last)
    assert shared_pool.kept() == 0
    for a, b, c in zip(pooled, plain, checks, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and a.stride() == b.stride()


@compiled_only
def test_an_exception_in_backward_loses_nothing(shared_pool: Pool) -> None:
    module = nf.compile("evonorm-s0", SHAPE[1], backend="c")
    x = torch.randn(SHAPE, requires_grad=True)
    want = torch.autograd.grad(module(x).square().sum(), [x])[0].clone()

    def fail(grad: Tensor) -> Tensor:
        raise KeyError("in the middle")

    for _ in range(3):
        y = module(x)
        y.register_hook(fail)
        with pytest.raises(KeyError):
            y.square().sum().backward()
        assert torch.equal(torch.autograd.grad(module(x).square().sum(), [x])[0], want)


@compiled_only
def test_compiled_by_torch(shared_pool: Pool) -> None:
    module = nf.compile("gn-silu", SHAPE[1], backend="c")

    def twice(x: Tensor) -> Tensor:
        return module(module(x) * 2)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    x = torch.randn(SHAPE, requires_grad=True)
    for _ in range(3):
        y = compiled(x)
        assert torch.equal(y, twice(x))
        (dx,) = torch.autograd.grad(y, [x], y.detach())
        assert torch.equal(dx, torch.autograd.grad(twice(x), [x], y.detach())[0])


def run(code: str, **environment: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | environment
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_starts_with_an_empty_pool() -> None:
    """And neither process writes into what the other holds."""
    code = """
import os, torch
from normforge.kernels.pool import POOL, form_of
form = form_of(torch.Size((1 << 18,)), (1,), torch.float32)
held, free = POOL.take(form).fill_(1), POOL.take(form).fill_(2)
del free
child = os.fork()
if not child:
    empty = POOL.kept() == 0
    mine = [POOL.take(form).fill_(3) for _ in range(4)]
    os._exit(0 if empty and (held == 1).all() and POOL.kept() == 4 * form.nbytes else 1)
mine = [POOL.take(form).fill_(4) for _ in range(4)]
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (held == 1).all() and all((m == 4).all() for m in mine)
"""
    run(code)


NETWORK = """
import resource, torch, normforge as nf
from normforge.kernels.pool import POOL
torch.set_num_threads(1); torch.manual_seed(0)
layers = []
for width in (32, 64):
    for _ in range(5):
        layers += [torch.nn.LazyConv2d(width, 1), nf.compile("evonorm-s0", width)]
    layers.append(torch.nn.AvgPool2d(2))
model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.LazyLinear(10))
x = torch.randn(32, 3, 64, 64)
model(x[:1])
optimiser = torch.optim.SGD(model.parameters(), 1e-3)
for step in range(3):
    torch.nn.functional.cross_entropy(model(x), torch.arange(32) % 10).backward()
    optimiser.step(); optimiser.zero_grad()
    with torch.no_grad():
        model(x[:11])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(float(p.detach().sum()) for p in model.parameters()),
      POOL.kept())
"""


@pytest.mark.slow
@compiled_only
@pytest.mark.skipif(sys.platform != "linux", reason="unit of ru_maxrss")
def test_peak_memory_of_training() -> None:
    """The pool may add a tenth to the peak, and changes no result; 0 switches it off."""
    off, on = run(NETWORK, NORMFORGE_POOL="0").split(), run(NETWORK).split()
    assert int(off[2]) == 0 < int(on[2]) and off[1] == on[1]
    assert int(on[0]) <= 1.1 * int(off[0])
