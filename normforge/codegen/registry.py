"""The targets by name. They are imported when they are first asked for, since each of them imports all that emits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normforge.errors import OptionError, nearest

if TYPE_CHECKING:
    from normforge.codegen.target import Target

# The targets of this package: where an object TARGET is, imported when it is first asked for.
TARGET_MODULES = {"c": "normforge.codegen.c.target", "triton": "normforge.codegen.triton.target"}
_targets: dict[str, Target] = {}


def register(target: Target) -> None:
    """Make a target known by its name, in the place of another one of that name."""
    _targets[target.name] = target


def target_names() -> tuple[str, ...]:
    """Every target, those of this package first."""
    return tuple(dict.fromkeys((*TARGET_MODULES, *_targets)))


def find_target(name: str) -> Target:
    """The target of a name, such as `Plan.target`.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    if name not in _targets:
        known = target_names()
        if name not in known:
            raise OptionError(f"target is one of {', '.join(known)}, not {name!r}{nearest(str(name), known)}")
        register(import_module(TARGET_MODULES[name]).TARGET)
    return _targets[name]
