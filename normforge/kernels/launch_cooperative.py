"""Cooperative plans on a device: tile and grid, counters, and what runs instead where the device refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normforge.codegen.plan import Plan
from normforge.codegen.triton_cooperative import counters, programs_at_once, tile_channels
from normforge.codegen.triton_launch import NUM_WARPS, TritonModule, arguments

MAX_SHAPES = 1024  # whose prepared calls an object keeps
NO_TILE = "no tile fits"
# What a launch that cannot be says: no tile, CUDA error 720, CUDA error 801 (a device without cooperative launches).
REFUSALS = (NO_TILE, "too many blocks in cooperative launch", "operation not supported")


@dataclass
class CooperativeObject:
    """One derivative of a layer in one dtype and layout as a single persistent launch; called like the objects of the
    multi-launch kind, whose numbers it gives.

    A cooperative launch fails, instead of waiting for ever, when its programs cannot all run at once. Then, and where
    a shape has no tiles, the multi-launch kind runs from then on; `refused` says why, by device and shape.
    """

    plan: Plan
    module: TritonModule
    function: Any
    twin: Any  # the same plan of the multi-launch kind, ready to call
    options: dict[str, Any]  # of compilation
    refused: dict[tuple[int, ...], str] = field(default_factory=dict)
    _calls: dict[tuple[int, ...], _Call] = field(default_factory=dict)

    def __call__(self, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        """Run on operands followed by outputs; `dims` are N, groups, channels a group, positions."""
        device = tensors[0].device
        key = (device.index, *dims)
        if key in self.refused:
            self.twin(tensors, dims)
            return
        with torch.cuda.device(device):
            try:
                call = self._calls.get(key)
                if call is None:
                    if len(self._calls) >= MAX_SHAPES:
                        self._calls.clear()
                    call = self._calls[key] = self._prepare(tensors, dims)
                self._launch(call, tensors)
            except RuntimeError as e:
                if not any(reason in str(e) for reason in REFUSALS):
                    raise
                self.refused[key] = str(e)  # nothing was launched, so nothing is half written
                self._calls.pop(key, None)
                self.twin(tensors, dims)

    def _prepare(self, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> _Call:
        device = torch.cuda.get_device_properties(tensors[0].device)
        call = _Call(self.plan, self.module, dims, device.L2_cache_size)
        kernel = self.function.warmup(*call.arguments(self.module, tensors), grid=(1,), **call.blocks, **self._options)
        kernel._init_handles()  # loads it, which tells its registers
        each = programs_at_once(
            kernel.n_regs,
            kernel.metadata.shared,
            warps=NUM_WARPS,
            threads=device.max_threads_per_multi_processor,
            register_file=device.regs_per_multiprocessor,
            shared_memory=device.shared_memory_per_multiprocessor,
        )
        call.programs = min(device.multi_processor_count * each, call.items)
        return call

    @property
    def _options(self) -> dict[str, Any]:
        return {**self.options, "launch_cooperative_grid": True}

    def _launch(self, call: _Call, tensors: Sequence[Tensor]) -> None:
        self.function[(call.programs,)](*call.arguments(self.module, tensors), **call.blocks, **self._options)


class _Call:
    """Everything about a call that only the shape and the device decide."""

    def __init__(self, plan: Plan, module: TritonModule, dims: tuple[int, int, int, int], l2_bytes: int) -> None:
        tile = tile_channels(plan, module, dims, l2_bytes)
        if tile is None:
            raise RuntimeError(f"{NO_TILE}: {dims} in a share of {l2_bytes} bytes of level-2 cache")
        sizes = module.shape(dims) | {"TILE": tile}
        (launch,) = module.launches
        self.pointers = launch.pointers
        self.values, self.blocks, self.items = arguments(launch, sizes, aligned=sizes["S"] % 16 == 0)
        self.programs = 1
        self.counters = counters(plan, dims, tile)
        self.work: list[tuple[str, int, int]] = []
        self.total = 0
        for array in module.work:
            count = math.prod(sizes[name] for name in array.shape)
            self.work.append((f"{array.name}_ptr", self.total, self.total + count))
            self.total += -(-count // 64) * 64  # each on a line of its own

    def arguments(self, module: TritonModule, tensors: Sequence[Tensor]) -> list[Any]:
        """Pointers and sizes. The counters belong to this call alone and are zeroed on its stream before it: other
        streams have their own, and a replayed graph zeroes them again."""
        device = tensors[0].device
        named = dict(zip((*module.operands, *module.outputs), tensors, strict=True))
        block = torch.empty(self.total, dtype=torch.float32, device=device)
        named |= {name: block[first:last] for name, first, last in self.work}
        named["counters_ptr"] = torch.zeros(self.counters, dtype=torch.int32, device=device)
        return [*(named[p] for p in self.pointers), *self.values]
