"""Imports point one way and in no circle, and the IR and the passes load no torch."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from normforge.search.sources import ROOT, file_of, imports, reached_from

ORDER = ("ir", "passes", "codegen", "kernels", "nn", "optim", "probing", "train", "search", "api", "cli")
BENEATH = ("cache", "errors", "loading", "streams")  # that all parts may use
ABOVE = ("normforge", "__main__", "testing")  # that no part uses
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    names = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def part_of(module: str) -> str:
    """The folder or file of the package that it lies in; of the package itself its name."""
    return [*module.split("."), module][1]


def level(module: str) -> int:
    """How far up a module stands: it may import what stands as far up, or lower."""
    part = part_of(module)
    if part in BENEATH:
        return -1
    return len(ORDER) if part in ABOVE else ORDER.index(part)


@cache
def edges() -> dict[str, set[str]]:
    """The modules that each module imports, anywhere in it."""
    return {name_of(path): imports(path) for path in FILES}


def test_ir_and_passes_load_no_torch() -> None:
    code = (
        "import sys, normforge, normforge.ir, normforge.passes, normforge.testing\n"
        "normforge.parse('bn-relu').hash\n"
        "print([m for m in ('torch', 'triton') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_ir_loads_no_sympy() -> None:
    # The package itself imports the passes, for nf.simplify: so the statements are read, not run.
    assert not [path for path in (ROOT / "ir").rglob("*.py") if "sympy" in path.read_text()]


@pytest.mark.parametrize("part", (*BENEATH, *ORDER))
def test_imports_point_one_way(part: str) -> None:
    modules = [m for m in edges() if f"{m}.".startswith(f"normforge.{part}.")]
    assert modules
    upward = [f"{m} imports {n}" for m in modules for n in edges()[m] if n != "normforge" and level(n) > level(m)]
    assert not upward


def test_every_module_has_its_place() -> None:
    assert not [m for m in edges() if part_of(m) not in (*BENEATH, *ORDER, *ABOVE)]


def test_no_circle() -> None:
    """Nor between functions of two modules, each importing the other when it is called."""
    assert not circles(edges())


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [["b", "c"]]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other, together."""
    reached = {m: reach(graph, m) for m in graph}
    together = {frozenset(n for n in reached[m] if m in reached[n]) for m in graph if m in reached[m]}
    return sorted(sorted(group) for group in together)


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def test_what_an_import_is(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport numpy\nfrom normforge.ir import graph, parse\n"
        "if TYPE_CHECKING:\n    from normforge.search import runner\n"
        "else:\n    import normforge.errors\n"
        "def f():\n    from normforge.kernels import pool\n"
    )
    assert imports(file) == {
        "normforge.ir", "normforge.ir.graph", "normforge.errors", "normforge.kernels.pool",
    }  # fmt: skip
    assert file_of("numpy.errors") is None and file_of("normforge.ir") == ROOT / "ir" / "__init__.py"


def test_what_scores_depend_on() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in reached_from("normforge.search.evaluate")}
    assert {
        "__init__.py", "streams.py", "ir/ops.py", "passes/differentiate.py", "probing/probe.py", "train/loop.py",
        "train/networks/vit.py", "train/data/fractals.py", "search/stability.py", "search/double_backward.py",
        "kernels/run.py", "kernels/launch_c.py", "kernels/launch_triton.py", "kernels/launch_cooperative.py",
        "kernels/pool.py", "codegen/c/emit.py", "codegen/c/driver.py", "codegen/triton/emit.py", "codegen/eager.py",
    } <= files  # fmt: skip
    assert not [f for f in files if f.startswith(("search/reports", "search/workers", "search/store", "api", "cli"))]
