"""The files of the package that a module runs: its imports, read from the source, followed through the package.

Imports inside functions count. Those under `TYPE_CHECKING` do not, for they are never run; nor do names that are only
looked up when they are asked for, as the public ones of `normforge` itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from normforge.codegen.registry import TARGET_MODULES

ROOT = Path(__file__).parent.parent
"""The folder of the package."""


def file_of(module: str) -> Path | None:
    """The file of a module of the package, of a folder its `__init__.py`; None of anything else."""
    first, *names = module.split(".")
    place = ROOT.joinpath(*names)
    if first != ROOT.name:
        return None
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file() and (names or path.name == "__init__.py"):
            return path
    return None


def imports(path: Path) -> set[str]:
    """The modules of the package that a file names in its imports, anywhere in it.

    `from normforge.ir import parse, graph` names the folder for the function, and the module for the module.
    """
    found: set[str] = set()
    for node in _run(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = ((node.module or "", f"{node.module}.{alias.name}") for alias in node.names)
            found.update(name if file_of(name) else module for module, name in names)
    return {name for name in found if file_of(name)}


def reached_from(module: str) -> set[Path]:
    """The files that importing and using a module may run, its own included, and the `__init__.py` of their folders."""
    waiting, seen = [module, *TARGET_MODULES.values()], set()  # targets are imported by name
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        path = file_of(name)
        waiting += imports(path) if path else []
    return {path for name in seen if (path := file_of(name))}


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):  # holds no statement, and is most of a file
            continue
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for other in node.orelse if isinstance(node, ast.If) and checked else [node]:
            yield other
            yield from _run(other)
