"""Imports point one way, and the IR and the passes load no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import normforge

ROOT = Path(normforge.__file__).parent
ORDER = ("ir", "passes", "codegen", "kernels", "probing", "train", "search", "api", "cli")


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
    assert not [f for f in (ROOT / "ir").rglob("*.py") if any(name.startswith("sympy") for name in imported(f))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("part", ORDER[:-1])
def test_imports_point_one_way(part: str) -> None:
    later = ORDER[ORDER.index(part) + 1 :]
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        upward = [
            m for m in imported(path) for p in later if f"{m}.".startswith((f"normforge.{p}.", f"normforge.{p}_"))
        ]
        assert not upward, f"{path.name} imports {upward}"
