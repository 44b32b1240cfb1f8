"""A job: one order of a layer, with a key that says everything about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from normforge.codegen.orders import Program, Seeded, program
from normforge.codegen.plan import is_data
from normforge.errors import BackendError
from normforge.ir.forms.formula import parse_formula
from normforge.ir.graph import Graph
from normforge.kernels.backends import Kernel
from normforge.kernels.call import PreparedCall
from normforge.passes.linear import name_of

MAX_ORDER = 3
# How an output is allocated: like x, like operand i, or as a statistic of these axes.
Spec = tuple[str, int]


@dataclass(frozen=True)
class Job:
    """One order of one layer in one mode, for any shape and dtype.

    A job is written as a string, the key of `normforge::run`; it says everything, so that a process that never
    made the layer can run it.

    Attributes:
        order: 0 forward, 1 backward, ... train: training mode. groups: of the channels.
        layer: a surface graph.
        seeded: which gradients have cotangents (see `normforge.codegen.orders`).
        target: that runs it; "" for the one that is best for the device of its tensors.
        single: axes of moments that have one element each (see `normforge.passes.single`).
    """

    order: int
    train: bool
    groups: int
    layer: Graph
    seeded: Seeded = ()
    target: str = ""
    single: int = 0

    @cached_property
    def key(self) -> str:
        """The text of the job, which `Job.parse` reads back."""
        masks = ";".join("*" if m is None else ",".join(map(str, m)) for m in self.seeded)
        mode = "train" if self.train else "eval"
        single = f"|{self.single}" if self.single else ""
        return f"{self.order}|{mode}|{self.groups}|{masks}|{self.target}{single}|{layer_text(self.layer)}"

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(key: str) -> Job:
        """The job that a key says; the same object for the same key, so that what it has worked out is kept."""
        order, mode, groups, masks, *rest, text = key.split("|")  # keys of old exported programs have no target
        target = rest[0] if rest else ""
        single = int(rest[1]) if rest[1:] else 0
        layer = Graph.from_json(text) if text.startswith("{") else parse_formula(text)
        seeded = tuple(None if m == "*" else tuple(map(int, m.split(","))) for m in masks.split(";") if m)
        return Job(int(order), mode == "train", int(groups), layer, seeded, target, single)

    @cached_property
    def program(self) -> Program:
        """The graph of the job, its operands and its outputs.

        Raises:
            BackendError: derivatives of this order are not generated.
        """
        if self.order > MAX_ORDER:
            raise BackendError(
                f"compiled layers have derivatives up to order {MAX_ORDER}, and order {self.order} was asked for: "
                "use backend='eager' there"
            )
        return program(self.layer, self.order, self.train, self.seeded, self.single)

    @cached_property
    def title(self) -> str:
        """What a profiler shows: the layer by its name, or its formula, and the derivative."""
        return f"{name_of(self.layer)}{('', ' backward', ' double backward', ' third derivative')[self.order]}"

    def after(self, seeded: tuple[int, ...] = (0,)) -> Job:
        """The job of the next derivative, given which of the differentiable outputs have a cotangent."""
        found = self._after.get(seeded)
        if found is None:
            masks = self.seeded
            if self.order:
                masks = (*masks, None if len(seeded) == self.differentiable else seeded)
            made = Job(self.order + 1, self.train, self.groups, self.layer, masks, self.target, self.single)
            found = self._after[seeded] = Job.parse(made.key)
        return found

    @cached_property
    def _after(self) -> dict[tuple[int, ...], Job]:
        return {}

    @cached_property
    def full_operands(self) -> tuple[bool, ...]:
        """For each operand, whether it is as large as x."""
        return tuple(is_data(node) for node in self.program.operands)

    @cached_property
    def specs(self) -> tuple[Spec, ...]:
        """For each output, how it is allocated."""
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
    def calls(self) -> dict[tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]], PreparedCall]:
        """Prepared calls by the first operand's dtype, device, shape and strides."""
        return {}

    @cached_property
    def gradients_of(self) -> tuple[int, ...]:
        """The operands that the outputs are gradients of, by number and in order; none in forward. They have the same
        places among the operands of the order before, which come first."""
        position = {node: i for i, node in enumerate(self.program.operands)}
        return tuple(position[node] for node in self.program.wrt_before)

    @cached_property
    def differentiable(self) -> int:
        """The number of outputs that can be given a cotangent: the results, and all gradients."""
        return len(self.gradients_of) if self.order else len(self.layer.outputs)

    @cached_property
    def saved(self) -> int:
        """The number of statistics that forward saves; derivatives have them as their last operands."""
        return len(self.program.saved)

    @cached_property
    def public(self) -> int:
        """The number of outputs before those that forward saves."""
        return len(self.specs) - (0 if self.order else self.saved)

    @cached_property
    def kernels(self) -> dict[tuple[torch.dtype, str, str, str], Kernel]:
        """Loaded kernels by dtype, layout, target and kind of plan."""
        return {}

    @cached_property
    def compiled_ahead(self) -> set[tuple[torch.dtype, bool]]:
        """The dtypes, contiguous or not, for which kernels were asked for before they were needed."""
        return set()


@lru_cache(maxsize=4096)
def layer_text(layer: Graph) -> str:
    """A layer's formula, or its JSON where the formula would be too long, or none can say it."""
    return str(layer) if len(layer.nodes) < 64 and layer.is_surface else layer.to_json()


@lru_cache(maxsize=4096)
def key_of(layer: Graph, groups: int, target: str, single: int) -> str:
    """The key of a layer's forward in training."""
    return Job(0, True, groups, layer, target=target, single=single).key
