"""What the GPU suite does with whole modules, as tables that can be walked without a device too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from cases import NESTED, TELLING, Case
from derivatives import mutations
from named import LAYERS
from reference import EXTREME as EXTREME_LAYERS
from reference import FIRST_SHAPES, run
from torch import Tensor

import normforge as nf
from normforge.codegen.plan import Plan
from normforge.codegen.triton.kinds import KINDS, plan_of_kind


class Module(NamedTuple):
    """A layer on an input, and how far it is differentiated.

    Attributes:
        layer: a name, of normforge or of `cases.NESTED`.
        shape, groups, dtype, layout: of the input.
        what: "forward", "first" or "second" as the functions here, "whole" as `reference.run`.
        train: the mode.
        unaligned: also with tensors that start anywhere.
    """

    layer: str
    shape: tuple[int, ...]
    groups: int | None = None
    dtype: str = "float32"
    layout: str = "nchw"
    what: str = "whole"
    train: bool = True
    unaligned: bool = False

    @property
    def graph(self) -> nf.Graph:
        return nf.parse(NESTED.get(self.layer, self.layer))

    def __str__(self) -> str:
        return " ".join(map(str, (self.layer, "x".join(map(str, self.shape)), self.dtype, self.layout, self.what)))


def first_order(module: torch.nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x and the parameters."""
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


def second_order(module: torch.nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """The same, and the gradients of |dx|² too."""
    y = module(x)
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *(g.detach() for g in first), *second]


# -- one table a test

MODULES = [
    Module("gn-silu", (3, 6, 4, 5), 3),
    Module("bn-relu", (2, 8, 1, 1), 2, "bfloat16", "nhwc"),
    Module("evonorm-b0", (2, 40, 3, 7), None, "float16"),
    Module("layernorm-gelu", (5, 12), 4, "float32", "nhwc"),
    Module("evonorm-s0", (2, 6, 2, 3, 2), 2, "bfloat16"),
    Module("frn-tlu", (1, 8, 3, 3), None, "float32", "nhwc"),
    Module("rmsnorm", (2, 4, 97, 53), 2, "bfloat16", "nhwc"),
    Module("derf", (2, 40, 3, 7), None, "float16", "nhwc"),
    Module("nested-batch", (2, 4, 97, 53), 2, "float32"),
    Module("nested-columns", (4, 64, 14, 14), 16, "bfloat16", "nhwc"),
]
EXTREME = [
    Module(name, (4, 8, 23, 29), 4, layout=("nchw", "nhwc")[i % 2], what="first")
    for i, name in enumerate([*EXTREME_LAYERS, "bn-relu", "gn-silu"])
]
LARGE = (32, 64, 56, 56)
DETERMINISTIC = [Module(n, LARGE, what="first") for n in ("gn-silu", "bn-relu", "evonorm-b0", "layernorm-gelu")]
LAYERS_LAUNCHED = ("gn-silu", "bn-relu", "evonorm-b0", "layernorm-gelu", "dyt")
STEPS: dict[str, Callable[..., list[Tensor]]] = {"first": first_order, "second": second_order}
CAPTURED = [Module(n, (4, 32, 14, 14), what=what) for n in LAYERS_LAUNCHED for what in STEPS]
TRACED = [Module(n, (4, 16, 9, 9), 4, what="first") for n in LAYERS_LAUNCHED]
WAITING = [Module(n, (4, 32, 14, 14), what="second", train=train) for n in LAYERS_LAUNCHED for train in (True, False)]
SHIFTED = [
    Module(n, (4, 16, 8, 8), 4, ("float32", "bfloat16")[i % 2], unaligned=True) for i, n in enumerate(LAYERS_LAUNCHED)
]
MEMORY = [
    Module(n, (8, 32, 32, 32), None, ("float32", "bfloat16")[i % 2], what="forward") for i, n in enumerate(LAYERS)
]
TWENTY = [Module("gn-silu", shape, what="second") for shape in FIRST_SHAPES]
OTHERS = [Module("gn-silu", (8, 32, 28, 28), what="forward")]
COOPERATIVE_SHAPE, COOPERATIVE_GROUPS = (32, 256, 56, 56), 32
COOPERATIVE = [
    Case(layer, order, "cooperative", "float32", "nchw", "large", 0)
    for layer in ("bn-relu", "bn-silu", "gn-silu", "in-relu", "evonorm-b0", "evonorm-s0")
    for order in range(3)
]
MUTATED = [
    *(Case("gn-silu", 1, kind, *TELLING) for kind in KINDS if kind != "cooperative"),
    Case("gn-silu", 1, "cooperative", "float32", "nchw", "large", 0),  # which has a tile
]
EVERY = (*MODULES, *EXTREME, *DETERMINISTIC, *CAPTURED, *TRACED, *WAITING, *SHIFTED, *MEMORY, *TWENTY, *OTHERS)


def mutated(case: Case) -> Plan:
    """The plan of a case without a term."""
    (plan, *_) = (
        plan
        for graph in mutations(case.program.graph)
        if (plan := plan_of_kind(case.kind, replace(case.program, graph=graph), case.dtype, case.layout)) is not None
    )
    return plan


def walk(step: Module, device: str = "meta") -> None:
    """Do with a module what its test does, on tensors that may have no numbers."""
    dtype = getattr(torch, step.dtype)
    module = nf.compile(step.graph, step.shape[1], step.groups, backend="triton").to(device, dtype).train(step.train)
    x = torch.empty(step.shape, dtype=dtype, device=device)
    if step.layout == "nhwc":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    if step.what == "forward":
        module(x)
    elif step.what == "whole":
        shapes = [x.shape, x.shape, *(p.shape for p in module.parameters())]
        run(module, x, [torch.empty_like(x), *(torch.empty(s, dtype=dtype, device=device) for s in shapes[1:])])
    else:
        STEPS[step.what](module, x, torch.empty_like(x))
