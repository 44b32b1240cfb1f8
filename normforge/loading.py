"""The operator and the layers are known to torch wherever `import normforge` was said, and saying it loads no torch.

A program that torch.export saved names the operator `normforge::run`, and a layer that torch.save stored names its
class; they are loaded by a process that may have said no more than `import normforge`. Where torch is loaded already,
both are registered at once, else when torch is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy(package: str, homes: Mapping[str, str], parts: Sequence[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported when they are first asked for.

    Args:
        package: its name.
        homes: the module of each name. parts: subpackages that are names too.
    """

    def find(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        if name in parts:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


REGISTERS = "normforge.kernels.inputs"  # which imports the operator too


def register_with_torch() -> None:
    """Register operator and layers, now or as soon as torch is loaded."""
    if "torch" in sys.modules:
        importlib.import_module(REGISTERS)
    else:
        sys.meta_path.insert(0, _WhenTorchLoads())


class _WhenTorchLoads(MetaPathFinder):
    """Finds torch as others would, once, and registers behind it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """A module's own loader, and then what registers."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._own.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own  # as if nothing had stood between
        self._own.exec_module(module)
        # Where torch is loaded by one of normforge's own modules, that one is half imported, and registers if need be.
        if not any(_is_half_imported(m) for name, m in sys.modules.items() if name.startswith("normforge.")):
            importlib.import_module(REGISTERS)


def _is_half_imported(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))
