"""Who uses what a norm gives, by dataflow: by tracing with torch.fx, or by one run on an example.

Both watch the calls of the norms and activations of a model and note who else uses an output. A norm belongs with an
activation if, in every call, that activation and nothing else uses what the norm gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from normforge.errors import OptionError
from normforge.nn.activations import is_activation

# What is asked of a tensor, and no use of its values.
ASKS = {"size", "dim", "numel", "type", "getattr", "is_contiguous", "stride", "__get__", "ndimension"}


@dataclass(eq=False)
class NormCall:
    """A call of a norm, and who used its output: activations by their calls, all else by name."""

    norm: nn.Module
    by_activations: list[ActivationCall] = field(default_factory=list)
    by_others: list[str] = field(default_factory=list)

    @property
    def activation(self) -> ActivationCall | None:
        """The call of an activation that alone uses the output."""
        return self.by_activations[0] if len(self.by_activations) == 1 and not self.by_others else None


@dataclass(eq=False)
class ActivationCall:
    """A call of an activation: the `turn`-th of its owner's `visit`-th call, the owner being the module that called."""

    activation: nn.Module
    owner: nn.Module
    visit: int
    turn: int
    of: NormCall | None


@dataclass
class Uses:
    """What was seen, in the order of the calls.

    Attributes:
        how: by which way.
    """

    how: str
    norms: list[NormCall] = field(default_factory=list)
    activations: list[ActivationCall] = field(default_factory=list)

    def calls_of(self, norm: nn.Module) -> list[NormCall]:
        """The calls of a norm."""
        return [call for call in self.norms if call.norm is norm]


class _Recorder:
    """Notes calls as they come; outputs are told apart by keys, any hashable things."""

    def __init__(self, model: nn.Module, norms: Iterable[nn.Module], uses: Uses) -> None:
        self._uses = uses
        self._norms = {id(m) for m in norms}
        self._stack: list[tuple[nn.Module, int]] = [(model, 0)]
        self._visits: dict[int, int] = {}
        self._turns: dict[tuple[int, int, int], int] = {}
        self._made: dict[Any, NormCall] = {}

    def is_leaf(self, module: nn.Module) -> bool:
        """Is what happens inside of no interest?"""
        return id(module) in self._norms or is_activation(module)

    def enter(self, module: nn.Module) -> None:
        visit = self._visits[id(module)] = self._visits.get(id(module), -1) + 1
        self._stack.append((module, visit))

    def leave(self) -> None:
        self._stack.pop()

    def called(self, module: nn.Module, given: Any, made: Any) -> None:
        """A leaf was called with the output `given`, and gave `made`."""
        if id(module) in self._norms:
            self.used([given], f"{type(module).__name__}")
            call = NormCall(module)
            self._uses.norms.append(call)
            self._made[made] = call
            return
        owner, visit = self._stack[-1]
        place = (id(module), id(owner), visit)
        turn = self._turns[place] = self._turns.get(place, -1) + 1
        of = self._made.get(given)
        call_ = ActivationCall(module, owner, visit, turn, of)
        self._uses.activations.append(call_)
        if of is not None:
            of.by_activations.append(call_)
            if made == given:  # in place: whoever uses it after that uses what the activation gave
                del self._made[given]

    def used(self, keys: Iterable[Any], by: str) -> None:
        """Something else has used outputs."""
        for key in keys:
            if (call := self._made.get(key)) is not None:
                call.by_others.append(by)

    def same(self, given: Any, made: Any) -> None:
        """What gave `made` was given the same."""
        if (call := self._made.get(given)) is not None:
            self._made[made] = call


class _Tracer(fx.Tracer):
    """A symbolic trace that is watched."""

    def __init__(self, recorder: _Recorder, autowrap: Sequence[Callable[..., Any]]) -> None:
        super().__init__(autowrap_functions=tuple(autowrap))
        self._recorder = recorder

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._recorder.is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        recorder = self._recorder
        given = args[0].node if args and isinstance(args[0], fx.Proxy) else None
        if recorder.is_leaf(m):
            made = super().call_module(m, forward, args, kwargs)
            recorder.called(m, given, made.node)
            return made
        recorder.enter(m)
        try:
            made = super().call_module(m, forward, args, kwargs)
        finally:
            recorder.leave()
        if type(m) is nn.Identity:
            recorder.same(given, made.node)
        return made


def _traced(model: nn.Module, norms: Sequence[nn.Module], training: bool) -> Uses:
    """The uses in a symbolic trace.

    Raises:
        Exception: of any kind; not every model can be traced.
    """
    uses = Uses("a symbolic trace")
    recorder = _Recorder(model, norms, uses)
    with _mode(model, training):
        graph = _Tracer(recorder, _opaque_functions()).trace(model)
    watched = {"call_function", "call_method", "call_module", "output"}
    for node in graph.nodes:
        if node.op not in watched:
            continue
        target = model.get_submodule(node.target) if node.op == "call_module" else node.target
        if isinstance(target, nn.Module):
            if recorder.is_leaf(target) or type(target) is nn.Identity:
                continue
            by = type(target).__name__
        else:
            by = "the output" if node.op == "output" else getattr(target, "__name__", str(target))
        if by not in ASKS:
            recorder.used(node.all_input_nodes, by)
    return uses


def _opaque_functions() -> list[Callable[..., Any]]:
    """Functions of timm that a trace does not look into."""
    try:
        from timm.layers import get_notrace_functions
    except ImportError:
        return []
    return list(get_notrace_functions())


class _Watch(TorchFunctionMode):
    """Notes which functions of torch use outputs."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.inside = 0  # leaves that are at work

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if not self.inside and name not in ASKS and any(isinstance(t, Tensor) for t in tree_leaves(made)):
            self._recorder.used((id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), name)
        return made


def _run(model: nn.Module, norms: Sequence[nn.Module], example: Any) -> Uses:
    """The uses in one run in inference mode, which changes nothing in the model."""
    uses = Uses("a run on the example")
    recorder, kept = _Recorder(model, norms, uses), []  # tensors, so that no other has the address of one
    watch = _Watch(recorder)

    def before(module: nn.Module, args: Any) -> None:
        if recorder.is_leaf(module):
            watch.inside += 1
        elif module is not model:
            recorder.enter(module)

    def after(module: nn.Module, args: Any, made: Any) -> None:
        given = id(args[0]) if args and isinstance(args[0], Tensor) else None
        if recorder.is_leaf(module):
            watch.inside -= 1
            if not watch.inside:
                kept.append(made)
                recorder.called(module, given, id(made))
            return
        if module is not model:
            recorder.leave()
        if not module._modules and type(module) is not nn.Identity and isinstance(made, Tensor):
            recorder.used([given], type(module).__name__)

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after),
    ]
    args, kwargs = _arguments(example)
    try:
        with _mode(model, False), torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            made = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    recorder.used((id(t) for t in tree_leaves(made)), "the output")
    return uses


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


class _mode:
    """Puts a model into training or inference mode for a while; each module has its own mode again afterwards."""

    def __init__(self, model: nn.Module, training: bool) -> None:
        self._model, self._training = model, training

    def __enter__(self) -> None:
        self._before = [(m, m.training) for m in self._model.modules()]
        for m, _ in self._before:
            m.training = self._training

    def __exit__(self, *_: object) -> None:
        for m, training in self._before:
            m.training = training


def uses_in(model: nn.Module, norms: Sequence[nn.Module], example: Any = None) -> list[Uses]:
    """The uses of norms: of a symbolic trace in inference and in training mode, where the model can be traced; else of
    a run on an example.

    Args:
        model: whatever it is.
        norms: of it.
        example: what the model is called with: a tensor, a tuple of arguments, or a dict of them by name; None makes
            one up, for models that say the size of their images as timm's do.

    Raises:
        OptionError: the model cannot be traced, and there is no example, or it does not run on that.
    """
    found = []
    try:
        found.append(_traced(model, norms, training=False))
    except Exception as traced:
        given = example if example is not None else _made_up(model)
        if given is None:
            raise OptionError(
                f"{type(model).__name__} cannot be traced ({_line(traced)}): give example=, what it is called with"
            ) from None
        try:
            return [_run(model, norms, given)]
        except Exception as ran:
            what = "the example" if example is not None else f"an input of shape {tuple(given.shape)}, made up"
            raise OptionError(
                f"{type(model).__name__} does not run on {what} ({_line(ran)}): give another example="
            ) from None
    with suppress(Exception):  # what training alone does is not looked at then
        found.append(_traced(model, norms, training=True))
    return found


def _made_up(model: nn.Module) -> Tensor | None:
    """An input of the size that the model says it takes."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, Mapping) else None
    first = next(model.parameters(), None)
    if size is None or first is None:
        return None
    return torch.zeros(2, *size, dtype=first.dtype, device=first.device)


def _line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
