"""How often the loops of emitted Triton text run at a shape, found by running its scalar statements.

A stage is a function of sizes and of the number of its program; bounds of its loops are scalars. Statements that need
tiles or memory are left out, so what a bound depends on must be scalar, or it is unknown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from types import SimpleNamespace
from typing import Any

SAMPLES = 32  # programs looked at: those at the ends have fewer tiles


@dataclass(frozen=True)
class Trips:
    """How often a loop runs each time that it is reached: on average over programs, and in the program where it runs
    most."""

    mean: float
    most: float


@dataclass(frozen=True)
class TextLoop:
    """A `for` or `while` of the text: its function, the lines of its head and of its end, and what it repeats over."""

    function: str
    line: int
    end: int
    over: ast.expr | None


class Text:
    """The functions and loops of emitted text, by line."""

    def __init__(self, source: str) -> None:
        self.source = source
        tree = ast.parse(re.sub(r"\.to\(tl\.\w+\)", "", source))
        self.functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
        for f in self.functions.values():
            f.decorator_list = []
        self.code = compile(ast.Module(list(self.functions.values()), []), "<text>", "exec")
        self.calls: dict[str, int] = {}
        for n in (n for f in self.functions.values() for n in ast.walk(f)):
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name):
                self.calls.setdefault(n.func.id, n.lineno)
        self.loops = [
            TextLoop(f.name, n.lineno, n.end_lineno or n.lineno, n.iter if isinstance(n, ast.For) else None)
            for f in self.functions.values()
            for n in ast.walk(f)
            if isinstance(n, ast.While) or (isinstance(n, ast.For) and "static_range" not in ast.unparse(n.iter))
        ]  # a static range is no loop in machine code

    def function(self, line: int) -> str:
        """The one that a line lies in, or ""."""
        return next((k for k, f in self.functions.items() if f.lineno <= line <= (f.end_lineno or 0)), "")

    def called(self, line: int) -> int:
        """The line of the first call of the function that a line lies in; 0 where nothing calls it."""
        return self.calls.get(self.function(line), 0)

    def loop(self, line: int) -> TextLoop | None:
        """The innermost one that a line lies in."""
        found = [x for x in self.loops if x.line <= line <= x.end]
        return max(found, key=lambda x: x.line, default=None)

    def trips(self, loop: TextLoop, caller: str, arguments: dict[str, int], programs: int, copy: int = 0) -> Trips:
        """How often a loop runs.

        Args:
            loop: of `caller`, or of a function of the prelude that `caller` calls, which has the same names.
            caller: the stage, or the kernel.
            arguments: sizes and blocks by the names that `caller` gives them.
            programs: how many run it.
            copy: which, where a static range around it makes several of it.

        Raises:
            ValueError: the text has bounds that its scalars do not tell.
        """
        if loop.over is None:  # waits until something has happened
            return Trips(1, 1)
        step = max(programs // SAMPLES, 1)
        counts = []
        for pid in range(0, programs, step):
            names: dict[str, Any] = {"tl": _language(pid, programs)}
            exec(self.code, names)  # what is scalar among the functions that the text calls
            names |= arguments | {"pid": pid, "range": _range}
            bounds = [found for line, found in _run(self.functions[caller].body, names) if line == loop.line]
            bounds = bounds or [_evaluate(loop.over, names)]
            found = bounds[min(copy, len(bounds) - 1)]
            if found is None:
                raise ValueError(f"cannot tell how often this repeats: {ast.unparse(loop.over)}")
            counts.append(found)
            if counts[0].step == programs:  # they take its items in turn
                each = counts[0].stop / programs
                return Trips(each, ceil(each))
        return Trips(fmean(len(c) for c in counts), max(len(c) for c in counts))


def _range(*bounds: int, **_: Any) -> range:
    return range(*(int(b) for b in bounds))


def _language(pid: int, programs: int) -> SimpleNamespace:
    return SimpleNamespace(
        cdiv=lambda a, b: -(-a // b), minimum=min, maximum=max, cast=lambda a, _: a, range=_range, static_range=_range,
        program_id=lambda _: pid, num_programs=lambda _: programs, int32=int, int64=int, constexpr=int,
    )  # fmt: skip


def _evaluate(expression: ast.expr, names: dict[str, Any]) -> Any:
    try:
        return eval(compile(ast.Expression(expression), "<text>", "eval"), names)
    except Exception:  # it needs a tile
        return None


def _run(body: list[ast.stmt], names: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Every loop's line and range, with the scalars as they are the first time; static ranges are unrolled."""
    for statement in body:
        if isinstance(statement, ast.For):
            found = _evaluate(statement.iter, names)
            static = "static_range" in ast.unparse(statement.iter)
            if not static:
                yield statement.lineno, found
            for value in [None] if found is None else found if static else [found.start]:
                if value is not None and isinstance(statement.target, ast.Name):
                    names[statement.target.id] = value
                yield from _run(statement.body, names)
        elif isinstance(statement, ast.If | ast.While):
            yield from _run(statement.body, names)
            yield from _run(statement.orelse, names)
        elif isinstance(statement, ast.Assign | ast.AugAssign):
            try:
                exec(compile(ast.Module([statement], []), "<text>", "exec"), names)
            except Exception:  # it needs a tile; what is added to keeps its scalar part
                for target in getattr(statement, "targets", []):
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            names.pop(name.id, None)
