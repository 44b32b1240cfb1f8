"""Who is clipped and who decays: parameter groups by the authors' rule, and by timm's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normforge.errors import OptionError, nearest
from normforge.kernels.module import Layer
from normforge.kernels.rows.formula import check_rule
from normforge.nn.norms import Unsayable, norm_of

_HEADS = ("head", "fc", "classifier", "heads", "linear_head")  # what models call their last layer


def param_groups(
    model: nn.Module,
    rule: str = "paper",
    *,
    weight_decay: float = 2e-5,
    classifier: str | nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Groups for `SGD` and, around another optimizer, `AGC`: each parameter once, those that are not trained left out.

    Args:
        model: it.
        rule: "paper", by names as in the authors' code of arXiv 2102.06171: gains and biases, and whatever belongs to a
            norm, do not decay; the classifier's weight alone is not clipped. "timm": whatever has at most one axis, and
            every bias, does not decay; the last two parameters are not clipped; gains (C, 1, 1, 1) are clipped by
            channel.
        weight_decay: of those that decay; 2e-5 is the authors'.
        classifier: for "paper", the last layer or its name; None asks the model (`get_classifier`), or looks for the
            last linear layer under one of the usual names, then for the last of all.

    Returns:
        At most four groups, with "params", "weight_decay" and, where they are not clipped, "agc": None.

    Raises:
        OptionError: an unknown rule, or a classifier that is not in the model.
    """
    check_rule(rule)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if rule == "timm":
        # Those that are not trained count too where the last two are looked for.
        last = {id(p) for p in [*model.parameters()][-2:]}
        free = {n for n, p in trained.items() if p.dim() <= 1 or n.endswith(".bias")}
        unclipped = {n for n, p in trained.items() if id(p) in last}
    else:
        of_norms = _of_norms(model)
        free = {n for n, p in trained.items() if _names_gain_or_bias(n) or id(p) in of_norms}
        heads = [getattr(head, "weight", None) for head in classifiers(model, classifier)]
        unclipped = {n for n, p in trained.items() if any(p is w for w in heads)}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in trained.items():
        groups.setdefault((name in free, name in unclipped), []).append(p)
    made = []
    for (is_free, is_unclipped), params in groups.items():
        group: dict[str, Any] = {"params": params, "weight_decay": 0.0 if is_free else weight_decay}
        if is_unclipped:
            group["agc"] = None
        if rule == "timm":
            group["agc_units"] = "timm"
        made.append(group)
    return made


def _names_gain_or_bias(name: str) -> bool:
    own = name.rsplit(".", 1)[-1]
    return "gain" in own or "bias" in own


def _of_norms(model: nn.Module) -> set[int]:
    """The parameters of norms and of compiled layers, which are gains and biases by other names."""
    found = set()
    for module in model.modules():
        try:
            is_norm = isinstance(module, Layer) or norm_of(module) is not None
        except Unsayable:
            is_norm = True
        if is_norm:
            found |= {id(p) for p in module.parameters(recurse=False)}
    return found


def classifiers(model: nn.Module, given: str | nn.Module | None = None) -> list[nn.Module]:
    """The last layer of a model, as `param_groups` finds it; several, where the model says so, or none.

    Raises:
        OptionError: the one that is given is not in the model.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if isinstance(given, str):
        if given not in modules:
            raise OptionError(f"the model has no module {given!r}{nearest(given, modules)}")
        return [modules[given]]
    if given is not None:
        if not any(m is given for m in modules.values()):
            raise OptionError("the classifier that is named is not in the model")
        return [given]
    asked = getattr(model, "get_classifier", None)
    found = asked() if callable(asked) else None
    if isinstance(found, nn.Module | tuple | list):
        return [linear for m in (found if isinstance(found, tuple | list) else (found,)) for linear in _last_linear(m)]
    for name in _HEADS:
        if name in modules and (linear := _last_linear(modules[name])):
            return linear
    return _last_linear(model)


def _last_linear(module: nn.Module) -> list[nn.Module]:
    linear: list[nn.Module] = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return linear[-1:] if linear and (isinstance(linear[-1], nn.Linear) or len(linear) == 1) else []
