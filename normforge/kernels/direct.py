"""Launches of compiled Triton kernels without Triton's front, which takes several times as long as the launch itself.

The front binds the arguments, asks each pointer whether it is aligned, and looks the kernel up. Here all that is done
once for a shape and an alignment; a call then passes addresses as numbers, which launchers of triton 3.6 to 3.9 take.
On AMD the front also asks whether a tensor's storage has 2 GB: what that decides is offsets, which the shape decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from normforge.codegen.triton.division import COUNTERS
from normforge.codegen.triton.launch import TritonModule, arguments, warps

ALIGNMENT = 16  # bytes: what Triton tells pointers apart by


class Ready(NamedTuple):
    """A compiled kernel and what a launch of it passes.

    Attributes:
        kernel: Triton's object, which owns the machine code.
        run: its launcher: grid, stream, function, metadata, three for hooks, arguments.
        programs: the grid.
        function, metadata: of the kernel.
        pick: from the addresses of a call, those of the pointer arguments in order.
        tail: sizes and blocks.
    """

    kernel: Any
    run: Callable[..., None]
    programs: int
    function: int
    metadata: Any
    pick: Callable[[Sequence[int]], tuple[int, ...]]
    tail: tuple[int, ...]


class PreparedLaunches:
    """The launches of a call, prepared: everything about them that only the shape decides.

    Attributes:
        launches: sizes, blocks and number of programs of each launch. warps: of a program of each.
        total: elements of the workspace, float32. work: first and last element of each array in it.
        offsets: bytes from its start to each array.
        slots: for each launch the places of its pointers among operands, outputs, the arrays of the workspace, and
            the counters of a cooperative launch.
        ready: compiled kernels for tensors that are all aligned, and for others; None where there are none to be had.
    """

    def __init__(self, module: TritonModule, sizes: dict[str, int]) -> None:
        self.launches = [arguments(launch, sizes) for launch in module.launches]
        self.warps = [warps(launch, sizes) for launch in module.launches]
        self.work, self.total = module.schedule.places(sizes)
        self.offsets = [4 * first for first, _ in self.work]
        names = [
            *module.operands,
            *module.outputs,
            *(f"{array.name}_ptr" for array in module.schedule.arrays),
            COUNTERS,
        ]
        place = {name: i for i, name in enumerate(names)}
        self.slots = [tuple(place[pointer] for pointer in launch.pointers) for launch in module.launches]
        self.ready: dict[bool, list[Ready] | None] = {}


def ready(kernel: Any, programs: int, slots: tuple[int, ...], tail: tuple[int, ...]) -> Ready | None:
    """A compiled kernel, prepared; None where the front returned none, as under the interpreter.

    Args:
        kernel: returned by a launch through the front.
        programs: the grid of that launch.
        slots: places of the pointer arguments among the addresses that later calls give.
        tail: the arguments after the pointers, constexpr ones too.
    """
    if not hasattr(kernel, "packed_metadata"):
        return None
    return Ready(kernel, kernel.run, programs, kernel.function, kernel.packed_metadata, picker(slots), tail)


def launch(kernels: Sequence[Ready], addresses: Sequence[int], stream: int) -> None:
    """Launch prepared kernels one after the other, on the current device."""
    for _, run, programs, function, metadata, pick, tail in kernels:
        run(programs, 1, 1, stream, function, metadata, None, None, None, *pick(addresses), *tail)


def aligned(addresses: Sequence[int]) -> bool:
    """True where kernels for aligned pointers serve: every pointer is aligned."""
    low = 0
    for address in addresses:
        low |= address
    return low % ALIGNMENT == 0


def at_any_address(function: Any, pointers: Sequence[str]) -> Any:
    """A kernel for pointers that need not be aligned: one, whichever of them are not, where Triton would make one for
    each combination. Under the interpreter the function itself.

    Args:
        function: what `triton.jit` made.
        pointers: names of the pointer arguments.
    """
    from triton.runtime.jit import JITFunction, jit

    if not isinstance(function, JITFunction):
        return function
    fixed = function.do_not_specialize
    return jit(function.fn, do_not_specialize=fixed, do_not_specialize_on_alignment=[*pointers])


def picker(slots: tuple[int, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """A function that takes the elements at these places from a sequence, as a tuple."""
    if len(slots) == 1:
        return lambda values: (values[slots[0]],)
    return itemgetter(*slots)


def current_stream(index: int) -> int:
    """The handle of a device's current stream, as torch and Triton have it for each other."""
    handle: int = torch._C._cuda_getCurrentRawStream(index)
    return handle


def hooked() -> bool:
    """True when something, such as a profiler, has hooks that Triton's front calls around launches."""
    runtime = _runtime()
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # chains, or what was put in their place
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


@cache
def _runtime() -> Any:
    from triton import knobs

    return knobs.runtime
