"""Small helpers for emitting source that people read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

WIDTH = 108  # of the lines of a wrapped list


def wrapped(head: str, items: Iterable[str], tail: str) -> list[str]:
    """`head(items)tail`, on one line where it fits and else with the items on lines between."""
    items = list(items)
    text = ", ".join(items)
    if len(head) + len(text) + len(tail) + 2 <= WIDTH:
        return [f"{head}({text}){tail}"]
    lines = [f"{head}("]
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return [*lines, line, f"){tail}"]


class Lines:
    """Indented source text, from a depth on."""

    def __init__(self, indent: str = "  ", depth: int = 0) -> None:
        self._lines: list[str] = []
        self._indent = indent
        self._depth = depth

    def __call__(self, *lines: str) -> None:
        """Append lines at the current depth."""
        for line in lines:
            self._lines.append(self._indent * self._depth + line if line else "")

    @contextmanager
    def block(self, head: str, tail: str = "}") -> Iterator[None]:
        """A head line, an indented body, a tail line (none when empty)."""
        self(head)
        self._depth += 1
        yield
        self._depth -= 1
        if tail:
            self(tail)

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"
