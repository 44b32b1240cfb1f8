"""Compiled C objects: emit, compile (or find in the cache), load, call."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, get_num_threads

from normforge.cache import digest, entry
from normforge.codegen.c.driver import driver
from normforge.codegen.c.emit import emit_c, parts
from normforge.codegen.plan import Plan
from normforge.errors import BackendError
from normforge.kernels import toolchain
from normforge.kernels.empty import addressed

MAX_SHAPES = 1024  # whose extents an object keeps


class Driver(NamedTuple):
    """The functions of the loaded driver.

    Attributes:
        run: (kernel, pointers, extents, threads). workspace: (kernel, extents) -> bytes of scratch memory.
    """

    run: Callable[..., None]
    workspace: Callable[..., int]


@dataclass
class CObject:
    """One derivative of a layer in one dtype and layout, ready to call.

    Calling writes the outputs of the plan; the arguments are contiguous in the plan's layout and have its dtypes.
    """

    plan: Plan
    kernel: ctypes.c_void_p
    driver: Driver
    library: ctypes.CDLL  # stays loaded as long as this lives
    _shapes: dict[tuple[int, ...], tuple[Any, int]] = field(default_factory=dict)

    def __call__(self, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        """Run on operands followed by outputs; `dims` are N, groups, channels a group, positions."""
        known = self._shapes.get(dims)
        if known is None:
            c_dims = (ctypes.c_int64 * 4)(*dims)
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            known = self._shapes[dims] = (c_dims, int(self.driver.workspace(self.kernel, c_dims)))
        c_dims, need = known
        tensors, pointers = addressed(tensors)
        block = _workspace(need)
        pointers.append((block.data_ptr() + 63) // 64 * 64)
        self.driver.run(self.kernel, (ctypes.c_void_p * len(pointers))(*pointers), c_dims, threads())


# A workspace that a thread keeps from call to call: fresh memory costs a page fault every 4 KiB.
KEPT_BYTES = 16 << 20
_local = threading.local()


def _workspace(need: int) -> Tensor:
    block: Tensor | None = getattr(_local, "block", None)
    if block is None or block.numel() < need + 64:
        block = torch.empty(need + 64, dtype=torch.uint8, device="cpu")
        if need <= KEPT_BYTES:
            _local.block = block
    return block


_lock = threading.Lock()
_objects: dict[Plan, Future[CObject]] = {}


def load(plan: Plan, title: str) -> CObject:
    """The compiled object of a plan; waits where another thread is building it.

    Raises:
        BackendError: there is no compiler, or it fails.
    """
    future, mine = _claim(plan)
    if mine:
        _fulfil(future, plan, title)
    return future.result()


def prefetch(plans: Iterable[Plan], title: str) -> None:
    """Start building objects that are likely to be asked for soon. The text of the first is written at once, for it is
    asked for first; the others are planned and written on a thread of their own, and all compiled at the same time."""
    rest = iter(plans)
    _start(rest, title)

    def others() -> None:
        with suppress(Exception):  # whoever asks for it will be told
            while True:
                with _writing:
                    if not _start(rest, title):
                        return

    threading.Thread(target=others, daemon=True).start()


def _start(plans: Iterator[Plan], title: str) -> bool:
    """Plan and write the next object here, and compile it on a thread of its own; false after the last."""
    plan = next(plans, None)
    if plan is None:
        return False
    future, mine = _claim(plan)
    if mine:
        try:
            source = emit_c(plan, plan.symbol, title)
        except BaseException as e:
            _fail(future, plan, e)
            raise
        threading.Thread(target=_fulfil, args=(future, plan, title, source), daemon=True).start()
    return True


def _claim(plan: Plan) -> tuple[Future[CObject], bool]:
    """The future of an object, and whether the caller is to fulfil it: nobody else does, or has."""
    with _lock:
        future = _objects.get(plan)
        if future is not None:
            return future, False
        made = _objects[plan] = Future[CObject]()
        return made, True


def _fulfil(future: Future[CObject], plan: Plan, title: str, source: str | None = None) -> None:
    try:
        future.set_result(_build(plan, source or emit_c(plan, plan.symbol, title)))
    except BaseException as e:
        _fail(future, plan, e)


def _fail(future: Future[CObject], plan: Plan, error: BaseException) -> None:
    with _lock:
        _objects.pop(plan, None)  # the next to ask tries again
    future.set_exception(error)


_forked = False
_writing = threading.RLock()  # held by a thread that plans and writes: a fork waits, for a child could not go on


def threads() -> int:
    """How many threads a kernel may use."""
    return 1 if _forked else get_num_threads()


def _after_fork() -> None:
    """A child has none of the threads that were building: it builds for itself. Nor has it the threads of the OpenMP
    runtime, which would wait for them for ever: it computes on one thread, which gives the same results."""
    global _lock, _loading, _writing, _forked
    _lock, _loading, _writing, _forked = threading.Lock(), threading.Lock(), threading.RLock(), True
    for plan in [p for p, f in _objects.items() if not f.done()]:
        del _objects[plan]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _writing.acquire(), after_in_parent=lambda: _writing.release(), after_in_child=_after_fork
    )


def _build(plan: Plan, source: str) -> CObject:
    loaded = library(source, lambda path: toolchain.compile_c(source, path, parts(plan)))
    kernel = ctypes.addressof(ctypes.c_char.in_dll(loaded, plan.symbol))
    with _loading:
        return CObject(plan, ctypes.c_void_p(kernel), _driver(), loaded)


_loading = threading.Lock()


@cache
def missing() -> str:
    """Why there can be no kernels on this machine, or "": found out once, by building what calls them."""
    if not toolchain.find_compiler():
        return f"there is no C compiler; {toolchain.INSTALL_HINT}"
    try:
        _driver()
    except (BackendError, OSError) as e:
        return f"the C compiler does not work ({e}); {toolchain.INSTALL_HINT}"
    return ""


@cache
def _driver() -> Driver:
    """What calls kernels: one for all, compiled with the first."""
    source = driver()
    loaded = library(source, lambda path: toolchain.compile_threaded(source, path))
    run, workspace = loaded["nf_run"], loaded["nf_workspace"]
    run.restype = None
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    workspace.restype = ctypes.c_int64
    workspace.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return Driver(run, workspace)


def library(source: str, build: Callable[[Path], None]) -> ctypes.CDLL:
    """The shared object of a source, loaded; from the disk cache where it is there."""
    key = digest("c", source, toolchain.fingerprint())
    try:
        return ctypes.CDLL(str(entry(key, ".so", build)))
    except OSError:  # written whole, and yet not loadable here: made by another system that shares the directory
        return ctypes.CDLL(str(entry(key, ".so", build, rebuild=True)))
