"""The Triton kernels over rows: tables on the device, a launch for all tensors of a call.

Shapes are put into tables once; addresses at each call, from pinned memory and without waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normforge.kernels.launch_triton import OPTIONS, CompiledKernel, compile_function, require_triton
from normforge.kernels.rows.formula import Standardization, Standardized
from normforge.kernels.rows.layout import like
from normforge.kernels.rows.sgd import Settings, Step
from normforge.kernels.rows.units import count_units

BLOCK, WARPS = 1024, 4
PIECE = 1 << 14  # elements of a program where rows do not matter
COLUMNS = ("w", "gain", "saved", "y", "u", "a", "b", "dw", "dgain", "du")  # the order of a kernel's pointers
_held: list[Tensor] = []  # addresses that captured graphs copy from, for as long as the process lives


def step(steps: Sequence[Step], settings: Settings) -> None:
    """Take a step of each, all of one dtype on one GPU, in one launch."""
    clip = settings.clipping is not None
    device = steps[0].param.device
    grads = [like(s.grad, s.param) for s in steps]
    shapes = tuple((count_units(s.param.shape, settings.units) if clip else 0, s.param.numel()) for s in steps)
    owner, row, lengths = _programs(shapes, device)
    columns = [[s.param for s in steps], grads]
    columns += [[p if t is None else t for p, t in zip(columns[0], states, strict=True)] for states in (
        [s.momentum for s in steps], [s.average for s in steps],
    )]  # fmt: skip
    rows = [
        (*where, length, s.param.numel())
        for *where, length, s in zip(*map(_places, columns), lengths, steps, strict=True)
    ]
    lr, t = settings.lr, settings.steps
    nothing = owner  # stands where nothing is read
    with _on(device):
        _kernels().step[(len(owner),)](
            *(tensors[0] for tensors in columns), _there(rows, torch.int64, device), owner, row,
            lr.to(device=device, dtype=torch.float32) if isinstance(lr, Tensor) else nothing,
            nothing if t is None else t, 0.0 if isinstance(lr, Tensor) else lr, settings.momentum, settings.decay,
            settings.clipping or 0.0, settings.eps, settings.average or 0.0,
            CLIP=clip, MOMENTUM=steps[0].momentum is not None, NESTEROV=settings.nesterov, AVERAGE=settings.averages,
            FROM_DEVICE=isinstance(lr, Tensor), PAPER=t is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor begins, in elements from the first."""
    first, size = tensors[0].data_ptr(), tensors[0].element_size()
    return [(t.data_ptr() - first) // size for t in tensors]


def forward(weights: Sequence[Tensor], gains: Sequence[Tensor], hows: Sequence[Standardization]) -> list[Standardized]:
    """Ŵ and what derivatives need of each weight, in one launch a rule."""
    made = [
        Standardized(torch.empty_like(w), torch.empty(len(w), 3, dtype=torch.float32, device=w.device)) for w in weights
    ]
    for rule in {h.rule for h in hows}:
        which = [i for i, h in enumerate(hows) if h.rule == rule]
        tensors = {"w": weights, "gain": gains, "saved": [m.saved for m in made], "y": [m.value for m in made]}
        _launch("forward", tensors, hows, which, TIMM=rule == "timm")
    return made


def backward(
    us: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    hows: Sequence[Standardization],
    statistics: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of weights and gains for cotangents of Ŵ, in one launch."""
    dws, dgains = [torch.empty_like(w) for w in weights], [torch.empty_like(g) for g in gains]
    tensors = {"w": weights, "gain": gains, "saved": statistics, "u": us, "dw": dws, "dgain": dgains}
    _launch("backward", tensors, hows, range(len(hows)))
    return dws, dgains


def again(
    of_w: Sequence[Tensor | None],
    of_gain: Sequence[Tensor | None],
    us: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    hows: Sequence[Standardization],
    statistics: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of cotangents, weights and gains for cotangents of what `backward` returns, in one launch."""
    made = [torch.empty_like(w) for w in weights], [torch.empty_like(w) for w in weights]
    dgains = [torch.empty_like(g) for g in gains]
    tensors = {
        "w": weights, "gain": gains, "saved": statistics, "u": us,
        "a": [torch.zeros_like(w) if a is None else a for a, w in zip(of_w, weights, strict=True)],
        "b": [torch.zeros_like(g) if b is None else b for b, g in zip(of_gain, gains, strict=True)],
        "du": made[0], "dw": made[1], "dgain": dgains,
    }  # fmt: skip
    _launch("again", tensors, hows, range(len(hows)))
    return *made, dgains


def _launch(
    name: str,
    tensors: dict[str, Sequence[Tensor]],
    hows: Sequence[Standardization],
    which: Sequence[int],
    **blocks: Any,
) -> None:
    columns = [[tensors[c][i] for i in which] for c in COLUMNS if c in tensors]
    weights = columns[0]
    device = weights[0].device
    owner, row, lengths = _programs(tuple((len(w), w.numel()) for w in weights), device)
    table = list(zip(lengths, *map(_places, columns), strict=True))
    numbers = [(hows[i].scale, hows[i].eps) for i in which]
    with _on(device):
        getattr(_kernels(), name)[(len(owner),)](
            *(column[0] for column in columns), _there(table, torch.int64, device),
            _there(numbers, torch.float32, device), owner, row, BLOCK=BLOCK, num_warps=WARPS, **blocks,
        )  # fmt: skip


@lru_cache(maxsize=256)
def _programs(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor, list[int]]:
    """The tensor and the row of each program, and the elements of a row of each tensor.

    Args:
        shapes: of each tensor its rows, 0 for any, and its elements.
    """
    lengths = [total // rows if rows else min(PIECE, total) for rows, total in shapes]
    counts = [-(total // -length) if length else 0 for (_, total), length in zip(shapes, lengths, strict=True)]
    owner = np.repeat(np.arange(len(shapes), dtype=np.int32), counts)
    row = np.concatenate([np.arange(c, dtype=np.int32) for c in counts])
    return torch.from_numpy(owner).to(device), torch.from_numpy(row).to(device), lengths


def _there(rows: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device."""
    if device.type != "cuda":
        return torch.tensor(rows, dtype=dtype, device=device)
    here = torch.tensor(rows, dtype=dtype, pin_memory=True)
    if torch.cuda.is_current_stream_capturing():
        _held.append(here)  # each replay copies it again
    return here.to(device, non_blocking=True)


def _on(device: torch.device) -> Any:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.device("cpu")


def _kernels() -> Any:
    require_triton()
    from normforge.kernels.rows import triton_kernels

    return triton_kernels


# -- ahead of time

_POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
VARIANTS: dict[str, dict[str, Any]] = {
    "step": dict(CLIP=True, MOMENTUM=True, NESTEROV=True, AVERAGE=True, FROM_DEVICE=False, PAPER=False),
    "forward": dict(TIMM=False),
    "backward": {},
    "again": {},
}
"""The kernels, and what they are usually compiled for."""


def compile_aot(name: str, dtype: str = "float32", target: int | str = 90, **blocks: Any) -> CompiledKernel:
    """Compile a kernel without a device.

    Args:
        name: of `VARIANTS`.
        dtype: of weights.
        target: as of `normforge.kernels.launch_triton.compile_aot`.
        blocks: in place of what `VARIANTS` says.

    Raises:
        BackendError: there is no triton, or it only interprets.
    """
    function = getattr(_kernels(), name)
    constants = VARIANTS[name] | blocks | {"BLOCK": BLOCK}
    types = {"table": "*i64", "owner": "*i32", "row": "*i32"}
    types |= dict.fromkeys(("numbers", "lr_ptr", "steps_ptr", "m", "e", "saved"), "*fp32")
    types |= dict.fromkeys(("w", "g", *COLUMNS[:2], *COLUMNS[3:]), _POINTERS[dtype])
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "fp32") for argument in function.arg_names}
    options = OPTIONS | {"num_warps": WARPS} | ({"maxnreg": 255} if isinstance(target, int) else {})
    return compile_function(function, signature, constants, target, options)
