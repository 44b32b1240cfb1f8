"""What the one custom op does for a key: find program and plan, bring tensors into shape, launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from normforge.codegen.eager import arithmetic_dtype
from normforge.codegen.orders import Program, program
from normforge.codegen.plan import Plan, make_plan
from normforge.errors import BackendError
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.text import parse_formula
from normforge.ir.types import FULL, B, FloatClass, G, K, S
from normforge.kernels import launch_c

MAX_ORDER = 3
_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


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

    @property
    def key(self) -> str:
        """Text that `Job.parse` reads back."""
        return f"{self.order}|{'train' if self.train else 'eval'}|{self.groups}|{layer_text(self.layer)}"

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(key: str) -> Job:
        """The job that a key says."""
        order, mode, groups, text = key.split("|", 3)
        layer = Graph.from_json(text) if text.startswith("{") else parse_formula(text)
        return Job(int(order), mode == "train", int(groups), layer)

    @property
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
        return program(self.layer, self.order, self.train)

    def next(self) -> Job:
        """The job of the next derivative."""
        return Job(self.order + 1, self.train, self.groups, self.layer)


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
    p = job.program
    operands = {node.name: t for node, t in zip(p.operands, inputs, strict=True)}
    outputs = []
    for name, node in p.graph.outputs:
        of = name.split(".", 1)[1] if job.order else ""
        if is_data(node):
            outputs.append(torch.empty_like(x))
        elif of in operands:
            outputs.append(torch.empty_like(operands[of], memory_format=torch.contiguous_format))
        else:
            shape = small_shape(node.axes, x, job.groups)
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


def execute(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a job on real tensors."""
    x = inputs[0]
    outputs = allocate(job, inputs)
    if x.numel() == 0:
        return [o.zero_() for o in outputs]
    like = torch.empty_like(x, device="meta")  # the strides that outputs have
    layout = layout_of(like)
    if layout is None:
        return _permuted(job, inputs, outputs)
    p = job.program
    plan = make_plan(p, "triton" if x.is_cuda else "c", _NAMES[x.dtype], layout)
    wide = arithmetic_dtype(x.dtype)
    given = [
        _like(t, like) if is_data(node) else t.detach().to(device=x.device, dtype=wide).contiguous()
        for node, t in zip(p.operands, inputs, strict=True)
    ]
    made = [
        o if is_data(node) or o.dtype == wide else torch.empty_like(o, dtype=wide)
        for (_, node), o in zip(p.graph.outputs, outputs, strict=True)
    ]
    n, c = x.shape[:2]
    launch(plan, job, [*given, *made], (n, job.groups, c // job.groups, x.numel() // (n * c)))
    return [o if m is o else o.copy_(m) for m, o in zip(made, outputs, strict=True)]


def launch(plan: Plan, job: Job, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
    """Call the compiled object of a plan."""
    launch_c.load(plan, layer_text(job.layer))(tensors, dims)


def is_data(node: Node) -> bool:
    """True for a tensor as large as x in x's dtype."""
    return node.axes == FULL and node.type.cls is FloatClass.DATA


def _like(t: Tensor, like: Tensor) -> Tensor:
    """A full operand with the strides of x: a cotangent may come with any."""
    t = t.detach()
    if t.stride() == like.stride():
        return t
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)


def _permuted(job: Job, inputs: Sequence[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """x lies in memory in some other order of its axes: compute on copies, return in the order of x."""
    shape = inputs[0].shape
    plain = [t.contiguous() if t.shape == shape and t.dim() > 1 else t for t in inputs]
    for o, r in zip(outputs, execute(job, plain), strict=True):
        o.copy_(r)
    return outputs
