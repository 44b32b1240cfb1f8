"""Memory of full tensors on CPUs, used again once nobody can reach it any more.

The C kernels move little more than the bytes that they must, so that fresh memory for an output, mapped page by page
by the kernel of the system, would cost more than the layer. The pool keeps the storage of what it hands out. A storage
counts its owners: tensors, views, what autograd saved, NumPy arrays, DLPack capsules; Python counts the references to
its wrapper. Where both are back at what the pool alone holds, the next tensor of as many bytes takes it over. A storage
that was moved to shared memory, resized, made a lazy copy or forbidden to resize (NumPy does) is let go instead. Weak
references do not hold a storage: one that outlives its tensor finds the next.

Bounded work: of the tensors of a size the few newest and oldest are looked at, since backward frees the newest first
and the next forward finds all of them free. Bounded memory: before the pool grows it lets go of as many bytes that
lie idle in other sizes, least recently used first, so that what is idle does not add to the peak; then its limit and
what the system has left are looked at.

No locks: whoever looks at a block has taken it out of its deque, which is atomic, and puts it back afterwards. A block
that an exception keeps from coming back is an ordinary tensor's again.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections import deque
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from sys import getrefcount
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from normforge.errors import OptionError

MIN_BYTES = 128 << 10  # what malloc maps anew at first (mallopt(3), M_MMAP_THRESHOLD); below it keeps what is freed
HUGE_BYTES = 4 << 20  # from here a block holds a huge page wherever it starts
PROBES = 4  # blocks of a size that are looked at from either end
TRADES = 16  # blocks of other sizes that are looked at before the pool grows
SHELVES = 64  # sizes
LOOK_BYTES = 64 << 20  # by which the pool grows before it asks what memory the system has left
SHARE, RESERVE = 1 / 4, 1 / 10  # of all memory: the default limit, and what is left to others
VARIABLE = "NORMFORGE_POOL"
_PAGE, _MADV_HUGEPAGE = 2 << 20, 14  # linux/mman.h

# Looked up once: a call of the pool is worth a microsecond or two.
_count_owners: Any = getattr(torch._C, "_storage_Use_Count", None)
_count_modes = torch._C._len_torch_dispatch_stack
_is_deterministic = torch._C._get_deterministic_algorithms
_is_transformed = torch._C._are_functorch_transforms_active
_is_inference = torch.is_inference_mode_enabled
_CPU = torch.device("cpu")


class Form(NamedTuple):
    """The form of a tensor: what it is made like. Equal ones are one object, see `form_of`."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int

    def fresh(self) -> Tensor:
        """A tensor on the CPU in memory of its own."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=_CPU)


@lru_cache(maxsize=4096)
def form_of(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Form:
    """The form of a shape, of strides that leave no gaps, and of a dtype."""
    return Form(shape, strides, dtype, math.prod(shape) * dtype.itemsize)


class Block:
    """A storage that the pool keeps.

    Attributes:
        tensor: over all of it; what is handed out shares it. form: of the tensor. inference: was the tensor made in
            inference mode? Then so is what it gives.
        storage: the one Python wrapper. number: what torch counts the owners by. address, nbytes: as it was made.
    """

    __slots__ = ("address", "form", "inference", "nbytes", "number", "storage", "tensor")

    def __init__(self, form: Form) -> None:
        self.tensor, self.form = form.fresh(), form
        self.inference = self.tensor.is_inference()
        self.storage = self.tensor.untyped_storage()
        self.number, self.nbytes = self.storage._cdata, self.storage.nbytes()
        self.address = self.storage.data_ptr()

    def is_free(self, alone: tuple[int, int]) -> bool:
        """True when nobody else holds the storage, nor its wrapper."""
        return _count_owners(self.number) == alone[0] and getrefcount(self.storage) == alone[1]

    def is_intact(self) -> bool:
        """True while the storage is the memory that it was made with."""
        storage = self.storage
        return storage.data_ptr() == self.address and storage.nbytes() == self.nbytes and storage.resizable()

    def give(self, form: Form) -> Tensor:
        """A new tensor, no view of another, on the storage."""
        inference = _is_inference()
        if self.form is not form or self.inference is not inference:
            empty = torch.empty(0, dtype=form.dtype, device=_CPU)
            self.tensor = empty.set_(self.storage, 0, form.shape, form.strides)
            self.form, self.inference = form, inference
        return self.tensor.data


def _count_alone() -> tuple[int, int] | None:
    """Owners of a storage and references to its wrapper where the pool alone holds a block; None where this torch does
    not count as expected."""
    form = form_of(torch.Size((64,)), (1,), torch.float32)
    try:
        block = Block(form)
        alone = _count_owners(block.number), getrefcount(block.storage)
        for holder in ([], ["__dlpack__"], ["untyped_storage"], ["detach"]):
            held: Any = block.give(form)
            for method in holder:
                held = getattr(held, method)()
            if block.is_free(alone):
                return None
            del held
        sound = block.is_free(alone) and block.is_intact() and not block.give(form)._is_view()
    except (AttributeError, RuntimeError, TypeError):
        return None
    return alone if sound else None


class Shelf(deque[Block]):
    """Blocks of one size, the newest last. used: grows with every use of any shelf."""

    used = 0


class Pool:
    """The pool: kept blocks by size.

    Attributes:
        limit: bytes that are kept at most, handed out or idle; 0 switches the pool off.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._shelves: dict[int, Shelf] = {}
        self._clock = count(1)
        self._grown = 0

    @cached_property
    def _alone(self) -> Any:  # what `is_free` takes, or None
        return _count_alone()  # at the first use, since a mode may be active while this is imported

    def take(self, form: Form) -> Tensor:
        """A tensor whose contents are anything, in kept memory where there is some."""
        nbytes = form.nbytes
        if nbytes < MIN_BYTES or nbytes > self.limit:
            return form.fresh()
        if _count_modes() or _is_deterministic() or _is_transformed():
            return form.fresh()  # somebody may want to see allocations, or fill them
        if self._alone is None:
            return form.fresh()
        shelf = self._shelves.get(nbytes)
        block = None if shelf is None else self._find(shelf)
        if shelf is None or block is None:
            return self._grow(form)
        made = block.give(form)
        shelf.append(block)
        shelf.used = next(self._clock)
        return made

    def empty(self) -> int:
        """Let go of all blocks. Returns the bytes that nobody else held, which are free now."""
        idle = 0
        for shelf in self._take_shelves():
            idle += sum(b.nbytes for b in list(shelf) if b.is_free(self._alone))
        return idle

    def kept(self) -> int:
        """The bytes of all blocks, those included that somebody holds."""
        return sum(nbytes * len(shelf) for nbytes, shelf in list(self._shelves.items()))

    def describe(self) -> str:
        """The state of the pool in a phrase."""
        if self._alone is None:
            return "off: this torch does not count the owners of a storage"
        return f"up to {self.limit / 1e6:.0f} MB" if self.limit else f"off: {VARIABLE} is 0"

    def _take_shelves(self) -> list[Shelf]:
        shelves, self._shelves = self._shelves, {}
        return list(shelves.values())

    def _find(self, shelf: Shelf) -> Block | None:
        """A block that nobody else holds, taken out."""
        newest: list[Block] = []
        oldest: list[Block] = []
        found = None
        try:
            for _ in range(PROBES):
                block = shelf.pop()
                if not block.is_free(self._alone):
                    newest.append(block)
                elif block.is_intact():
                    found = block
                    break
                block = shelf.popleft()
                if not block.is_free(self._alone):
                    oldest.append(block)
                elif block.is_intact():
                    found = block
                    break
        except IndexError:  # the shelf has no more
            pass
        if found is None:  # look at others next time
            shelf.extend(oldest)
        elif oldest:
            shelf.extendleft(reversed(oldest))
        if newest:
            shelf.extend(reversed(newest))
        return found

    def _grow(self, form: Form) -> Tensor:
        self._make_room(form.nbytes)
        try:
            block = Block(form)
        except RuntimeError:  # no memory
            if not self.empty():
                raise
            return form.fresh()
        made = block.give(form)
        if not self._is_memory_short(form.nbytes):
            _advise(block.address, block.nbytes)
            shelf = self._shelves.setdefault(form.nbytes, Shelf())
            shelf.append(block)
            shelf.used = next(self._clock)
        return made

    def _make_room(self, nbytes: int) -> None:
        """Let go of what lies idle in other sizes, up to as many bytes as are asked for. What is above the limits goes
        idle or not: its memory is then freed with the tensor that holds it."""
        shelves = sorted(list(self._shelves.items()), key=lambda item: item[1].used)
        kept = sum(size * len(shelf) for size, shelf in shelves)
        gone, looks = 0, TRADES
        for place, (size, shelf) in enumerate(shelves):
            if size != nbytes and (not shelf or len(shelves) - place > SHELVES):
                self._shelves.pop(size, None)
                continue
            with suppress(IndexError):  # the shelf has no more
                while kept + nbytes > self.limit:
                    shelf.popleft()
                    kept -= size
                for _ in range(min(PROBES, len(shelf), looks) if size != nbytes else 0):
                    if gone >= nbytes:
                        break
                    block = shelf.popleft()
                    if block.is_free(self._alone):
                        gone += size
                    else:
                        shelf.append(block)
                        looks -= 1

    def _is_memory_short(self, nbytes: int) -> bool:
        """Asked now and then as the pool grows: has the system little memory left? Then the pool is emptied."""
        self._grown += nbytes
        if self._grown < LOOK_BYTES:
            return False
        self._grown = 0
        total, available = system_memory()
        short = available < RESERVE * total
        if short:
            self.empty()
        return short


def _advise(address: int, nbytes: int) -> None:
    """Ask for huge pages, of which a fault maps 2 MB at once, where the system gives them on request."""
    if nbytes >= HUGE_BYTES and _madvise is not None:
        start = -(-address // _PAGE) * _PAGE
        _madvise(start, (address + nbytes) // _PAGE * _PAGE - start, _MADV_HUGEPAGE)


_madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

# The memory controller of control groups, version 2 and 1: limit, use, and what of the use is cache to be had back.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def system_memory() -> tuple[int, int]:
    """The bytes of memory that this process may use, and that are available: the machine's, or its container's."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for folder, limit, use, cache in _GROUPS:
        with suppress(OSError, ValueError, KeyError):  # no such controller; a limit "max"
            said = int((Path(folder) / limit).read_text())
            if said < total:
                lines = (Path(folder) / "memory.stat").read_text().splitlines()
                stat = dict(line.split() for line in lines)
                free = said - int((Path(folder) / use).read_text()) + int(stat[cache])
                total, available = said, min(available, free)
    return total, available


def default_limit() -> int:
    """The most bytes that the pool keeps: what the environment says in megabytes, else a quarter of the memory.

    Raises:
        OptionError: it says something else.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if not said:
        return int(SHARE * system_memory()[0])
    try:
        return int(float(said) * 1e6) if float(said) >= 0 else int("")
    except (ValueError, OverflowError):
        raise OptionError(f"{VARIABLE} is a number of megabytes, 0 for no pool, not {said!r}") from None


POOL = Pool(default_limit())


def empty_pool() -> int:
    """Give the memory back that lies idle in the pool of CPU outputs; the next outputs are made anew.

    Returns:
        Bytes that were idle. What somebody holds stays theirs, and is freed as any tensor's memory.
    """
    return POOL.empty()


if hasattr(os, "register_at_fork"):  # a child would hold pages that its parent is about to write
    os.register_at_fork(after_in_child=POOL.empty)
