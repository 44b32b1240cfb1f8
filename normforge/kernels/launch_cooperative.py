"""Cooperative plans on a device: tile and grid, counters, and what runs instead where the device refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from normforge.codegen.plan import Plan
from normforge.codegen.triton.cooperative import programs_at_once, tile_channels
from normforge.codegen.triton.division import counters
from normforge.codegen.triton.launch import TritonModule
from normforge.kernels import direct
from normforge.kernels.empty import addressed, allocator

MAX_SHAPES = 1024  # whose prepared calls an object keeps
NO_TILE = "no tile fits"
# What a launch that cannot be says: no tile, CUDA error 720, CUDA error 801 (a device without cooperative launches).
REASONS = (NO_TILE, "too many blocks in cooperative launch", "operation not supported")
# Every refusal of this process, and why: by name of the kernel, index of the device, N, groups, channels a group,
# positions.
refusals: dict[tuple[str, int, int, int, int, int], str] = {}


@dataclass
class CooperativeObject:
    """One derivative of a layer in one dtype and layout as a single persistent launch; called like the objects of the
    multi-launch kind, whose numbers it gives.

    A cooperative launch fails, instead of waiting for ever, when its programs cannot all run at once. Then, and where
    a shape has no tiles, the multi-launch kind runs from then on, which a warning tells once; `refused` says why, by
    device and shape, and `refusals` the same of all objects.

    As there, later calls of a shape launch the compiled kernel without Triton's front.
    """

    plan: Plan
    module: TritonModule
    function: Any
    twin: Any  # the same plan of the multi-launch kind, ready to call
    options: dict[str, Any]  # of compilation
    stream: Callable[[int], int] = direct.current_stream  # the handle of the current stream of a device
    properties: Callable[[int], Any] = torch.cuda.get_device_properties
    refused: dict[tuple[int, ...], str] = field(default_factory=dict)
    _calls: dict[tuple[int, ...], _Call] = field(default_factory=dict)

    def __call__(self, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        """Run on operands followed by outputs; `dims` are N, groups, channels a group, positions."""
        index = tensors[0].get_device()
        key = (index, *dims)
        if key in self.refused:
            self.twin(tensors, dims)
            return
        # Triton launches on the current device, which need not be that of the tensors.
        elsewhere = index >= 0 and torch.cuda.current_device() != index
        with torch.cuda.device(index) if elsewhere else nullcontext():
            try:
                call = self._calls.get(key)
                if call is None:
                    if len(self._calls) >= MAX_SHAPES:
                        self._calls.clear()
                    l2_bytes = self.properties(index).L2_cache_size
                    call = self._calls[key] = _Call(self.plan, self.module, dims, l2_bytes)
                self._launch(call, tensors, index)
            except RuntimeError as e:
                if not any(reason in str(e) for reason in REASONS):
                    raise
                self.refused[key] = str(e)  # nothing was launched, so nothing is half written
                name = self.module.launches[0].kernel
                refusals[name, index, *dims] = str(e)
                warnings.warn(f"{name} at {dims} runs as several launches: {e}", RuntimeWarning, stacklevel=2)
                self._calls.pop(key, None)
                self.twin(tensors, dims)

    def _launch(self, call: _Call, tensors: Sequence[Tensor], index: int) -> None:
        """The counters belong to this call alone and are zeroed on its stream before it: other streams have their own,
        and a replayed graph zeroes them again."""
        device = tensors[0].device
        block = allocator(device)((call.total,), (1,), torch.float32)
        zeros = torch.zeros(call.counters, dtype=torch.int32, device=device)
        (*tensors, block, zeros), addresses = addressed((*tensors, block, zeros))
        aligned = direct.aligned(addresses)
        kernels = call.ready.get(aligned)
        if kernels is None or direct.hooked():
            function = self.function if aligned else self._at_any_address
            places = [*tensors, *(block[i:j] for i, j in call.work), zeros]
            call.ready[aligned] = self._first(function, call, places, index)
            return
        *given, start, counted = addresses
        direct.launch(kernels, [*given, *(start + o for o in call.offsets), counted], self.stream(index))

    @cached_property
    def _at_any_address(self) -> Any:
        """The kernel for tensors that are not all aligned."""
        return direct.at_any_address(self.function, self.module.launches[0].pointers)

    def _first(self, function: Any, call: _Call, places: Sequence[Tensor], index: int) -> list[direct.Ready]:
        """Launch through Triton's front: as many programs as run at once, which the registers of the kernel tell."""
        (values, blocks, items), slots = call.launches[0], call.slots[0]
        arguments = [*(places[i] for i in slots), *values]
        options = self.options | {"launch_cooperative_grid": True}
        kernel = function.warmup(*arguments, grid=(1,), **blocks, **options)
        kernel._init_handles()  # loads it
        device = self.properties(index)
        each = programs_at_once(
            kernel.n_regs,
            kernel.metadata.shared,
            warps=call.warps[0],
            threads=device.max_threads_per_multi_processor,
            register_file=device.regs_per_multiprocessor,
            shared_memory=device.shared_memory_per_multiprocessor,
        )
        programs = min(device.multi_processor_count * each, items)
        kernel = function[(programs,)](*arguments, **blocks, **options)
        made = direct.ready(kernel, programs, slots, (*values, *blocks.values()))
        assert made is not None, "the interpreter has no cooperative launches"
        return [made]


class _Call(direct.PreparedLaunches):
    """Everything about a call that only the shape and the device decide.

    Attributes:
        counters: how many.
    """

    def __init__(self, plan: Plan, module: TritonModule, dims: tuple[int, int, int, int], l2_bytes: int) -> None:
        tile = tile_channels(plan, module, dims, l2_bytes)
        if tile is None:
            raise RuntimeError(f"{NO_TILE}: {dims} in a share of {l2_bytes} bytes of level-2 cache")
        super().__init__(module, module.schedule.sizes(dims) | {"TILE": tile})
        self.counters = counters(plan, dims, tile)
