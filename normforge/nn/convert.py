"""`convert`: a layer in the place of every norm of a model and of the activation that belongs to it."""

from __future__ import annotations

import copy
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normforge.errors import OptionError, described
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer, layers, parse
from normforge.kernels.compile import compile
from normforge.kernels.module import DTYPES, Layer, with_eps
from normforge.kernels.settings import sync
from normforge.nn.activations import activation_formula, is_activation_function
from normforge.nn.norms import Norm, Unsayable, norm_of
from normforge.nn.shared import SharedActivation
from normforge.nn.uses import ActivationCall, Uses, uses_in
from normforge.passes.linear import is_linear, linear_twin, name_of, then

Where = str | Callable[[str, nn.Module], bool] | None
SAME = "same"
LINEAR = ("twin", "keep", "layer")


@dataclass(frozen=True)
class Place:
    """A norm of a model, and what became of it.

    Attributes:
        name: of the module, as in `named_modules`.
        norm: its class.
        activation: that belongs to it, by its class; empty for none.
        layer: that stands in their place, a name or a formula (of a norm's own, its parts); empty where it was left.
        reason: why it was left, or the activation was.
    """

    name: str
    norm: str
    activation: str = ""
    layer: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `convert` did: a table when printed.

    Attributes:
        places: the norms of the model, in its order.
        how: in which way it was found out what belongs together.
    """

    places: tuple[Place, ...]
    how: str = ""

    @property
    def replaced(self) -> tuple[Place, ...]:
        """The norms in whose place there is a layer."""
        return tuple(p for p in self.places if p.layer)

    @property
    def left(self) -> tuple[Place, ...]:
        """The norms that are as they were."""
        return tuple(p for p in self.places if not p.layer)

    def __str__(self) -> str:
        rows = [("module", "norm", "activation", "layer", "")]
        rows += [
            (p.name or "(the model)", p.norm, p.activation or "-", p.layer or "left", p.reason) for p in self.places
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """One line."""
        if not self.places:
            return "no norm was found"
        kinds = Counter(p.layer for p in self.replaced)
        what = ", ".join(f"{count} by {layer}" for layer, count in kinds.most_common())
        text = f"{len(self.replaced)} of {len(self.places)} norms replaced" + (f": {what}" if what else "")
        return f"{text} (by {self.how})" if self.how else text


def convert(
    model: nn.Module,
    layer: Graph | str,
    *,
    example: Any = None,
    where: Where = None,
    inplace: bool = False,
    linear: str = "twin",
    groups: int | None = None,
    backend: str = "auto",
) -> tuple[nn.Module, Report]:
    """Put a layer in the place of every norm of a model, and of the activation that uses what the norm gives.

    What belongs together is found by dataflow, in a symbolic trace, or where the model cannot be traced in a run on an
    example: an activation belongs to a norm where it, and nothing else, uses its output. Other activations stay: after
    a sum, in a classifier. Parameters of the same name move (`weight`, `bias`), and so do running statistics, ε,
    momentum, mode, dtype, device and hooks. A norm without an activation gets the layer's linear twin (bn-relu:
    batchnorm; evonorm-s0, which has none: `x * gamma + beta`). A layer that is only a norm leaves activations standing.

    Args:
        model: any module with norms of torch, torchvision or timm.
        layer: a graph, a layer's name, or a formula, of x alone; "same" for each norm's own, with its activation.
        example: what the model is called with: a tensor, a tuple of arguments, or a dict of them by name. Needed where
            the model cannot be traced; timm's models say the size of their images, and one is made up.
        where: which norms: a pattern for their names, such as "layer1.*", or a function of name and module.
        inplace: change the model itself, and not a copy.
        linear: a norm without an activation gets the layer's "twin"; "keep" leaves it; "layer" gives it the layer too.
        groups: of the index set w,h,c/g; None keeps those of a GroupNorm, and else is as for `compile`.
        backend: as of `compile`.

    Returns:
        The model and the `Report` of what was replaced and what was left, and why. A model that is a norm itself
        becomes a layer.

    Raises:
        ParseError, OptionError: no such layer, or an argument without a meaning, or a model that neither can be traced
            nor runs on the example.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"convert takes a module, not {described(model)}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise OptionError("convert takes a model as it was written: convert it before torch.compile or torch.jit")
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise OptionError("the model has lazy modules, whose sizes are not known yet: run it once, then convert it")
    if linear not in LINEAR:
        raise OptionError(f"linear is one of {', '.join(LINEAR)}, not {linear!r}")
    chosen = None if layer == SAME else _layer(layer)
    if not inplace:
        model = copy.deepcopy(model)
    return _Conversion(model, chosen, _selector(where), linear, groups, backend).run(example)


def _layer(layer: Graph | str) -> Graph:
    graph = as_layer(layer, "convert")
    if not graph.is_plain:
        raise OptionError(f"{graph} is given more than x, or has several results: no norm of a model can become it")
    return graph


def _selector(where: Where) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda name, module: True
    if isinstance(where, str):
        return lambda name, module: fnmatch.fnmatchcase(name, where)
    if callable(where):
        return where
    raise OptionError(f"where is a pattern or a function of name and module, not {described(where)}")


class _Left(Exception):
    """A norm is left, for the reason that the message says."""


@dataclass
class _Conversion:
    """One call of `convert`."""

    model: nn.Module
    layer: Graph | None  # None for each norm's own
    selected: Callable[[str, nn.Module], bool]
    linear: str
    groups: int | None
    backend: str

    def run(self, example: Any) -> tuple[nn.Module, Report]:
        names = {module: name for name, module in self.model.named_modules()}
        norms: dict[nn.Module, Norm | Unsayable] = {}
        for module in names:
            try:
                if read := norm_of(module):
                    norms[module] = read
            except Unsayable as unsayable:
                norms[module] = unsayable
        if not norms:
            return self.model, Report(())
        alone = self.model in norms
        self.uses = [] if alone else uses_in(self.model, list(norms), example)
        self.slots = _slots(self.model)
        taken: set[ActivationCall] = set()  # calls of activations that a layer has taken over
        places, made = [], {}
        for module, norm in norms.items():
            kind, name = type(module).__name__, names[module]
            calls: list[ActivationCall] = []
            try:
                if not self.selected(name, module):
                    raise _Left("not selected by where")
                if isinstance(norm, Unsayable):
                    raise _Left(str(norm))
                graph, calls, place = self._decide(norm, Place(name, kind))
                made[module] = _made(graph, norm, self._groups(norm), self.backend, self.model)
            except _Left as left:
                places.append(Place(name, kind, reason=str(left)))
                continue
            taken.update(calls)
            places.append(place)
        self._take(taken)
        for module, new in made.items():
            for parent, attribute in self.slots.get(module, ()):
                parent._modules[attribute] = new
        how = self.uses[0].how if self.uses else ""
        return made.get(self.model, self.model), Report(tuple(places), how)

    def _decide(self, norm: Norm, place: Place) -> tuple[Graph, list[ActivationCall], Place]:
        """The layer for a norm, and the calls of activations that it takes over.

        Raises:
            _Left: it gets none.
        """
        calls, why = self._pair(norm.module)
        label = ""
        own = norm.activation
        activation = own or (calls[0].activation if calls else None)
        place = replace(place, activation=type(activation).__name__ if activation else "")
        formula = activation_formula(activation) if activation else None
        norm_alone = self.layer is None or is_linear(
            self.layer
        )  # so that the layer is to have the norm's own activation
        if own and formula is None and norm_alone:
            raise _Left(f"its activation, {type(own).__name__}, is no formula")
        if self.layer is None:
            if activation and formula is None:
                calls, place = [], replace(place, reason=f"{type(activation).__name__} is no formula, and stays")
            graph = parse(norm.affine)
            if formula:
                label = f"{name_of(graph)}, {type(activation).__name__}"
                graph = then(graph, parse(formula))
        elif norm_alone:
            graph, calls = self.layer, []
            if own and formula:
                graph = then(graph, parse(formula))
        elif activation or self.linear == "layer":
            graph = self.layer
        elif function := next((by for by in why if is_activation_function(by)), ""):
            raise _Left(f"its activation is called as a function, {function}, which cannot be taken out: use a module")
        elif self.linear == "keep":
            raise _Left("no activation belongs to it")
        else:
            graph = linear_twin(self.layer)
        name = name_of(graph)
        return graph, calls, replace(place, layer=label if label and name not in layers else name)

    def _pair(self, module: nn.Module) -> tuple[list[ActivationCall], list[str]]:
        """The calls of the activation that belongs to a norm, and where there is none, who else uses it.

        Raises:
            _Left: the norm was not called.
        """
        calls = [call for uses in self.uses for call in uses.calls_of(module)]
        if self.uses and not calls:
            raise _Left("it was not called")
        pairs = [call.activation for call in calls]
        found = [pair for pair in pairs if pair is not None and self._is_takable(pair)]
        if calls and len(found) == len(calls) and len({type(pair.activation) for pair in found}) == 1:
            return found, []
        return [], [by for call in calls for by in call.by_others]

    def _is_takable(self, call: ActivationCall) -> bool:
        """Can an activation be left out in this call, and not in others?"""
        return self._slot_of(call) is not None and not list(call.activation.parameters())

    def _slot_of(self, call: ActivationCall) -> tuple[nn.Module, str] | None:
        """Where the module stands that made the call: at the only place of the activation, or in its caller."""
        slots = self.slots.get(call.activation, [])
        if len(slots) == 1:
            return slots[0]
        return next((slot for slot in slots if slot[0] is call.owner), None)

    def _take(self, taken: set[ActivationCall]) -> None:
        """Leave activations out in the calls that layers have taken over."""
        calls = [call for uses in self.uses for call in uses.activations]
        by_slot: dict[tuple[nn.Module, str], list[ActivationCall]] = {}
        for call in calls:
            if slot := self._slot_of(call):
                by_slot.setdefault(slot, []).append(call)
        for (parent, attribute), here in by_slot.items():
            left_out = [call in taken for call in here]
            if not any(left_out):
                continue
            old = here[0].activation
            if all(left_out):
                new: nn.Module = nn.Identity()
                new.train(old.training)
                _move_hooks(old, new)
            else:
                new = _shared(self.uses, here, taken)
            parent._modules[attribute] = new

    def _groups(self, norm: Norm) -> int | None:
        return norm.groups if self.groups is None else self.groups


def _shared(uses: list[Uses], calls: list[ActivationCall], taken: set[ActivationCall]) -> nn.Module:
    """The module for an activation of which some calls are left out.

    Raises:
        OptionError: not the same ones in every forward pass of the owner.
    """
    owners = {call.owner for call in calls}
    visits: dict[tuple[int, int], list[bool]] = {}
    for number, one in enumerate(uses):
        for call in one.activations:
            if call in calls:
                visits.setdefault((number, call.visit), []).append(call not in taken)
    patterns = {tuple(v) for v in visits.values()}
    if len(owners) > 1 or len(patterns) > 1:
        raise OptionError(
            f"one {type(calls[0].activation).__name__} is called from several places, on norms and on other values by "
            "turns: give each place an activation of its own"
        )
    owner, made = owners.pop(), SharedActivation(calls[0].activation, patterns.pop())
    owner.register_forward_pre_hook(made.begin)
    return made


def _slots(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Where each module stands: its parents, and its name in them."""
    slots: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if child is not None:
                slots.setdefault(child, []).append((parent, attribute))
    return slots


def _made(graph: Graph, norm: Norm, groups: int | None, backend: str, model: nn.Module) -> Layer:
    """The layer in a norm's place, with what the norm holds."""
    old = norm.module
    first = next(_tensors(old), None)
    first = next(_tensors(model), None) if first is None else first
    dtype, device = (None, None) if first is None else (first.dtype, first.device)
    if dtype is not None and dtype not in DTYPES:
        raise _Left(f"it is {dtype}")
    graph = with_eps(graph, norm.eps)
    made = compile(graph, norm.channels, groups, norm.channel_dim, backend, norm.momentum, device=device, dtype=dtype)
    for name, parameter in old._parameters.items():
        own = made._parameters.get(name)
        if own is not None and parameter is not None and own.shape == parameter.shape:
            made._parameters[name] = parameter
    for name, buffer in old._buffers.items():
        start = made._buffers.get(name)
        if start is not None and buffer is not None and start.shape == buffer.shape:
            made._buffers[name] = buffer.to(start.dtype)
    made.training = old.training
    if norm.synced:
        sync(made, norm.group)
    _move_hooks(old, made)
    return made


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())


# What a module keeps of hooks; handles that remove them hold these dictionaries.
_HOOKS = (
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    for name in _HOOKS:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
