"""The choice of backend for a call, and the table of how plans of each target are run: one place for either.

A backend is a target (`normforge.codegen.target`) with a `Runner` here, or "eager", which interprets the formula and
has neither. The layer asks `resolve` at every call and tells the job, which keeps to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _transforms_active
from torch._C import _get_tracing_state as _tracing
from torch.autograd import forward_ad

from normforge.codegen.plan import Plan
from normforge.codegen.shapes import Dims
from normforge.codegen.target import Device
from normforge.errors import BackendError
from normforge.kernels import launch_c

AUTO, EAGER = "auto", "eager"
# Runs on operands followed by outputs, and writes these.
Kernel = Callable[[Sequence[Tensor], Dims], None]


class Runner(NamedTuple):
    """The way in which plans of one target are run.

    Attributes:
        load: from a plan, and a title for its source, the kernel, compiled when it is first asked for.
        devices: torch's names of the types of device that it runs on.
        where: the same, in a sentence.
        prefetch: starts loading plans that are likely to be asked for soon, and returns at once; None where nothing
            is to be gained from that.
        describe: what the choice of a plan needs to know of a device; None where it needs nothing.
        missing: why it cannot be had on this machine, or "". Asked when a layer is made.
    """

    load: Callable[[Plan, str], Kernel]
    devices: tuple[str, ...]
    where: str = "another device"
    prefetch: Callable[[Iterable[Plan], str], None] | None = None
    describe: Callable[[torch.device], Device] | None = None
    missing: Callable[[], str] = lambda: ""


@lru_cache(maxsize=64)
def describe_gpu(device: torch.device) -> Device:
    """The properties of a GPU that decide which kind of plan is best."""
    properties = torch.cuda.get_device_properties(device)
    capability = 0 if torch.version.hip else 10 * properties.major + properties.minor
    return Device(properties.multi_processor_count, properties.L2_cache_size, capability)


def _load_triton(plan: Plan, title: str) -> Kernel:
    from normforge.kernels import launch_triton  # Triton is imported where it is used

    return launch_triton.load(plan, title)


RUNNERS: dict[str, Runner] = {
    "triton": Runner(_load_triton, ("cuda", "xpu"), "a GPU", describe=describe_gpu),
    "c": Runner(launch_c.load, ("cpu",), "the CPU", launch_c.prefetch, missing=launch_c.missing),
}
# What "auto" means, by type of device; eager anywhere else.
BEST = {"cpu": "c", "cuda": "triton", "xpu": "triton"}


def backend_names() -> tuple[str, ...]:
    """The names that `compile` takes as a backend."""
    return (AUTO, *RUNNERS, EAGER)


_missing: dict[str, str] = {}  # targets that cannot be had on this machine, and why


def look_around() -> Mapping[str, str]:
    """The reasons why targets cannot be had on this machine, by target. Asked when a layer is made, for its calls:
    torch.compile cannot trace a search of the path."""
    for name, runner in RUNNERS.items():
        if why := runner.missing():
            _missing[name] = why
        else:
            _missing.pop(name, None)
    return _missing


def resolve(backend: str, x: Tensor) -> str:
    """The backend that serves a call: "eager" or the name of a target.

    Args:
        backend: one of `backend_names`.
        x: the input, whose device decides.

    Raises:
        BackendError: a backend asked for by name cannot run on the device of x.
    """
    if backend == EAGER:
        return EAGER
    if _transforms_active() or forward_ad._current_level >= 0:
        note_transforms()
        return EAGER
    if _tracing() is not None:  # torch.jit.trace, which is to record torch's own operations
        return EAGER
    target = BEST["cpu"] if x.is_cpu else BEST.get(x.device.type)
    if backend != AUTO and backend != target:
        target = _named(backend, target, x)
    if target is None:  # `meta`, say, which computes shapes alone
        return EAGER
    if _missing and target in _missing:
        _fall_back(_missing[target])
        return EAGER
    return target


def _named(backend: str, best: str | None, x: Tensor) -> str:
    """A target asked for by name on a device where "auto" is another."""
    runner, where = RUNNERS[backend], "the CPU" if x.is_cpu else str(x.device)
    if x.device.type in runner.devices:
        return backend
    if best is None:
        raise BackendError(f"backend={backend!r} does not run on {where}: use 'auto' or 'eager'")
    raise BackendError(
        f"backend={backend!r} runs on {runner.where} and the input is on {where}: use 'auto' or {best!r}"
    )


def serving(target: str, device: torch.device) -> str:
    """The target that runs a job: the one it was told, if that runs on the device of its tensors. It does not where an
    exported program was moved to another device; and keys of old programs say none.

    Raises:
        BackendError: no target runs there.
    """
    if target in RUNNERS and device.type in RUNNERS[target].devices:
        return target
    best = BEST.get(device.type)
    if best is None:
        raise BackendError(f"no compiled kernels run on {device}: use backend='eager' there")
    return best


_said: set[str] = set()


def _fall_back(why: str) -> None:
    """The one warning of the process that eager takes over."""
    _once("eager", f"normforge runs without compiled kernels: {why}")


def note_transforms() -> None:
    """The one note of the process that torch's operations serve where compiled kernels have no rules."""
    _once(
        "transforms",
        "normforge runs on torch's operations under torch.func transforms, for batched gradients and in forward mode",
    )


def _once(what: str, message: str) -> None:
    if what not in _said:
        _said.add(what)
        warnings.warn(message, stacklevel=5)
