"""What the one custom op does for a key: find program and plan, bring tensors into shape, launch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from normforge.codegen.eager import arithmetic_dtype
from normforge.codegen.orders import Program, Seeded, program
from normforge.codegen.plan import Plan, is_data, make_plan
from normforge.codegen.triton.kinds import Device, choose_plan
from normforge.errors import BackendError, ShapeError
from normforge.ir.forms.formula import parse_formula
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.types import B, G, K, S
from normforge.kernels import launch_c
from normforge.kernels.empty import Allocator, allocator
from normforge.kernels.pool import MIN_BYTES, POOL, Form, form_of

MAX_ORDER = 3
MAX_CALLS = 1024  # prepared calls that a job keeps
_differentiates_twice = False  # has this process asked for the gradient of a gradient?
_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


# How an output is allocated: like x, like operand i, or as a statistic of these axes.
Spec = tuple[str, int]
Launcher = Callable[[Sequence[Tensor], tuple[int, int, int, int]], None]


@dataclass(frozen=True)
class Job:
    """One order of one layer in one mode, for any shape and dtype.

    A job is written as a string, the key of `normforge::run`; it says everything, so that a process that never
    made the layer can run it.
    """

    order: int
    train: bool
    groups: int
    layer: Graph
    seeded: Seeded = ()

    @cached_property
    def key(self) -> str:
        """Text that `Job.parse` reads back."""
        masks = ";".join("*" if m is None else ",".join(map(str, m)) for m in self.seeded)
        mode = "train" if self.train else "eval"
        return f"{self.order}|{mode}|{self.groups}|{masks}|{layer_text(self.layer)}"

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(key: str) -> Job:
        """The job that a key says; the same object for the same key, so that what it has worked out is kept."""
        order, mode, groups, masks, text = key.split("|", 4)
        layer = Graph.from_json(text) if text.startswith("{") else parse_formula(text)
        seeded = tuple(None if m == "*" else tuple(map(int, m.split(","))) for m in masks.split(";") if m)
        return Job(int(order), mode == "train", int(groups), layer, seeded)

    @cached_property
    def program(self) -> Program:
        """Graph, operands and outputs.

        Raises:
            BackendError: derivatives of this order are not generated.
        """
        if self.order > MAX_ORDER:
            raise BackendError(
                f"compiled layers have derivatives up to order {MAX_ORDER}, and order {self.order} was asked for: "
                "use backend='eager' there"
            )
        return program(self.layer, self.order, self.train, self.seeded)

    def after(self, seeded: tuple[int, ...] = (0,)) -> Job:
        """The job of the next derivative, given which of the differentiable outputs have a cotangent."""
        found = self._after.get(seeded)
        if found is None:
            masks = self.seeded
            if self.order:
                masks = (*masks, None if len(seeded) == self.differentiable else seeded)
            made = Job(self.order + 1, self.train, self.groups, self.layer, masks)
            found = self._after[seeded] = Job.parse(made.key)
        return found

    @cached_property
    def _after(self) -> dict[tuple[int, ...], Job]:
        return {}

    @cached_property
    def full_operands(self) -> tuple[bool, ...]:
        """For each operand: is it as large as x?"""
        return tuple(is_data(node) for node in self.program.operands)

    @cached_property
    def specs(self) -> tuple[Spec, ...]:
        """How each output is allocated."""
        position = {node.name: i for i, node in enumerate(self.program.operands)}
        specs: list[Spec] = []
        for name, node in self.program.graph.outputs:
            of = name.split(".", 1)[1] if self.order else ""
            if is_data(node):
                specs.append(("full", 0))
            elif of in position:
                specs.append(("operand", position[of]))
            else:
                specs.append(("statistic", node.axes))
        return tuple(specs)

    @cached_property
    def calls(self) -> dict[tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]], Call]:
        """Prepared calls by the first operand's dtype, device, shape and strides."""
        return {}

    @cached_property
    def gradients_of(self) -> tuple[int, ...]:
        """Which operands the outputs are gradients of, in order; none in forward. They have the same places among
        the operands of the order before, which come first."""
        position = {node: i for i, node in enumerate(self.program.operands)}
        return tuple(position[node] for node in self.program.wrt_before)

    @cached_property
    def differentiable(self) -> int:
        """How many outputs can be given a cotangent: y, and all gradients."""
        return len(self.gradients_of) if self.order else 1

    @cached_property
    def saved(self) -> int:
        """How many statistics forward saves; derivatives have them as their last operands."""
        return len(self.program.saved)

    @cached_property
    def public(self) -> int:
        """How many outputs there are before those that forward saves."""
        return len(self.specs) - (0 if self.order else self.saved)

    @cached_property
    def launchers(self) -> dict[tuple[torch.dtype, str, str, str], Launcher]:
        """Loaded kernels by dtype, layout, target and kind of plan."""
        return {}

    def prepare(self, x: Tensor) -> None:
        """Before the first call for inputs like x on a CPU, of which a gradient may be asked for: start compiling it
        and what comes after, all at once. After forward comes backward. After a call of backward that may itself be
        differentiated, and from then on in this process after every forward, comes the gradient of that of x; which
        other gradients will have a cotangent, nobody knows yet."""
        kind = (x.dtype, x.is_contiguous())
        if kind in self.prepared:
            return
        self.prepared.add(kind)
        global _differentiates_twice
        _differentiates_twice |= self.order > 0
        layout = layout_of(torch.empty_like(x, device="meta"))
        if x.device.type == "cpu" and layout is not None and self.order < 2:
            jobs = [self, self.after()]
            if not self.order and _differentiates_twice:
                jobs.append(jobs[-1].after())
            plans = (make_plan(job.program, "c", _NAMES[x.dtype], layout) for job in jobs)
            launch_c.prefetch(plans, layer_text(self.layer))

    @cached_property
    def prepared(self) -> set[tuple[torch.dtype, bool]]:
        """For which kinds of input that was done."""
        return set()

    def launcher(
        self, dtype: torch.dtype, layout: str, device: torch.device, dims: tuple[int, int, int, int]
    ) -> Launcher:
        """The kernel for a dtype, layout, device and shape, compiled when it is first asked for."""
        target = "c" if device.type == "cpu" else "triton"
        if target == "triton":
            plan = choose_plan(self.program, _NAMES[dtype], layout, dims, describe_device(device))
        else:
            plan = make_plan(self.program, target, _NAMES[dtype], layout)
        key = (dtype, layout, target, plan.kind)
        if key not in self.launchers:
            self.launchers[key] = _LOADERS[target](plan, layer_text(self.layer))
        return self.launchers[key]


@lru_cache(maxsize=64)
def describe_device(device: torch.device) -> Device:
    """What the choice of a kind of plan needs to know of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    half_tiles = torch.version.hip is None and properties.major >= 10  # sm_100
    return Device(properties.multi_processor_count, properties.L2_cache_size, half_tiles)


@lru_cache(maxsize=4096)
def layer_text(layer: Graph) -> str:
    """A layer's formula, or its JSON where the formula would be too long."""
    return str(layer) if len(layer.nodes) < 64 else layer.to_json()


def small_shape(axes: int, x: Tensor, groups: int) -> tuple[int, ...]:
    """Shape of a statistic: b, then c or g, then all positions flattened."""
    n, c = x.shape[:2]
    shape = [n] if axes & B else []
    if axes & G:
        shape.append(c if axes & K else groups)
    if axes & S:
        shape.append(x[0, 0].numel() if n and c else 0)
    return tuple(shape)


def allocate(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a job: full ones like x (its strides where it is dense, else its order of strides), gradients
    like what they are gradients of, statistics in the arithmetic dtype. Works on fake tensors too."""
    x = inputs[0]
    outputs = []
    for kind, which in job.specs:
        if kind == "full":
            outputs.append(torch.empty_like(x))
        elif kind == "operand":
            outputs.append(torch.empty_like(inputs[which], memory_format=torch.contiguous_format))
        else:
            shape = small_shape(which, x, job.groups)
            outputs.append(torch.empty(shape, dtype=arithmetic_dtype(x.dtype), device=x.device))
    return outputs


def layout_of(like: Tensor) -> str | None:
    """How a tensor (N, C, *spatial) lies in memory: "nchw", "nhwc", or None for any other order.

    Without space, or with one position, both hold; channels are then walked as contiguous.
    """
    last = like.movedim(1, -1).is_contiguous()
    if like.is_contiguous():
        positions = 1
        for extent in like.shape[2:]:
            positions *= extent
        return "nhwc" if last and positions == 1 else "nchw"
    return "nhwc" if last else None


class Call(NamedTuple):
    """What a call of a job needs that only the first operand's dtype, device, shape and strides decide.

    Attributes:
        device: of all tensors. current: the CUDA device that must be the current one; -1 for none.
        strides: of full tensors. full: what allocates them: the pool, for large ones on CPUs.
        wide: dtype of small tensors.
        operands: elements of each, and whether it is full.
        outputs: of each its allocator, shape, strides and dtype in the kernel, and the place of the operand that it
            is the gradient of, whose shape and dtype it is returned in; -1 for none.
        launch: the kernel. dims: its extents.
    """

    device: torch.device
    current: int
    strides: tuple[int, ...]
    full: Allocator
    wide: torch.dtype
    operands: tuple[tuple[int, bool], ...]
    outputs: tuple[tuple[Allocator, tuple[int, ...], tuple[int, ...], torch.dtype, int], ...]
    launch: Launcher
    dims: tuple[int, int, int, int]


def execute(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a job on real tensors."""
    x = inputs[0]
    key = (x.dtype, x.device, x.shape, x.stride())
    call = job.calls.get(key)
    if call is None:
        if x.numel() == 0:
            return [o.zero_() for o in allocate(job, inputs)]
        call = _prepare(job, x)
        if call is None:
            return _permuted(job, inputs)
        if len(job.calls) >= MAX_CALLS:
            job.calls.clear()
        job.calls[key] = call
    if call.current >= 0 and torch.cuda.current_device() != call.current:
        with torch.cuda.device(call.current):
            return _call(call, inputs)
    return _call(call, inputs)


def _call(call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Bring operands into shape, allocate outputs, launch. Most of what a small layer costs is here: no torch
    operation is called, and no property asked for, that the prepared call can spare."""
    device, _, strides, _, wide, operands, specs, launch, dims = call
    tensors: list[Tensor] = []
    for t, (size, full) in zip(inputs, operands, strict=True):
        if t.numel() != size:
            raise ShapeError(
                f"an operand has {t.numel()} elements and the layer needs {size}: was a parameter replaced?"
            )
        if full:
            if t.stride() != strides:
                t = _like(t, inputs[0], call)
        elif t.dtype is not wide or not t.is_contiguous() or t.device != device:
            t = _small(t, inputs[0], wide)
        tensors.append(t)
    outputs: list[Tensor] = []
    others: list[tuple[Tensor, Tensor]] = []
    for empty, shape, own, dtype, of in specs:
        made = result = empty(shape, own, dtype)
        if of >= 0:
            like = inputs[of]
            if like.dtype is not dtype or like.shape != shape or like.device != device:
                result = torch.empty_like(like, memory_format=torch.contiguous_format)
                others.append((result, made))
        tensors.append(made)
        outputs.append(result)
    launch(tensors, dims)
    for result, made in others:
        result.copy_(made.view(result.shape))
    return outputs


def _prepare(job: Job, x: Tensor) -> Call | None:
    """None where the axes of x lie in memory in an order that no kernel walks."""
    like = torch.empty_like(x, device="meta")
    layout = layout_of(like)
    if layout is None:
        return None
    n, c = x.shape[:2]
    dims = (n, job.groups, c // job.groups, x.numel() // (n * c))
    strides, wide = like.stride(), arithmetic_dtype(x.dtype)
    empty = allocator(x.device)
    large = x.is_cpu and x.nbytes >= MIN_BYTES
    full = _pooled(form_of(x.shape, strides, x.dtype)) if large else empty

    def shape(node: Node) -> tuple[int, ...]:
        return tuple(x.shape) if is_data(node) else small_shape(node.axes, x, job.groups)

    outputs = []
    for (kind, which), (_, node) in zip(job.specs, job.program.graph.outputs, strict=True):
        if kind == "full":
            outputs.append((full, shape(node), strides, x.dtype, -1))
        else:
            dense = torch.empty(shape(node), device="meta").stride()
            outputs.append((empty, shape(node), dense, wide, which if kind == "operand" else -1))
    return Call(
        x.device,
        x.device.index if x.is_cuda else -1,
        strides,
        full,
        wide,
        tuple((math.prod(shape(node)), is_data(node)) for node in job.program.operands),
        tuple(outputs),
        job.launcher(x.dtype, layout, x.device, dims),
        dims,
    )


def _pooled(form: Form) -> Allocator:
    return lambda *_: POOL.take(form)


def _small(t: Tensor, x: Tensor, wide: torch.dtype) -> Tensor:
    return t.to(device=x.device, dtype=wide).contiguous()


def _load_triton(plan: Plan, title: str) -> Launcher:
    from normforge.kernels import launch_triton  # Triton is imported where it is used

    return launch_triton.load(plan, title)


_LOADERS: dict[str, Callable[[Plan, str], Launcher]] = {"c": launch_c.load, "triton": _load_triton}


def _like(t: Tensor, x: Tensor, call: Call) -> Tensor:
    """A full operand with the strides of x made dense: a cotangent may come with any, and x too."""
    if t.dtype is x.dtype and t.device == x.device:
        return call.full(tuple(x.shape), call.strides, x.dtype).copy_(t)
    return torch.empty_strided(x.shape, call.strides, dtype=t.dtype, device=t.device).copy_(t)


def _permuted(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """x lies in memory in some other order of its axes: compute on copies, return in the order of x."""
    outputs = allocate(job, inputs)
    shape = inputs[0].shape
    plain = [t.contiguous() if t.shape == shape and t.dim() > 1 else t for t in inputs]
    for o, r in zip(outputs, execute(job, plain), strict=True):
        o.copy_(r)
    return outputs
