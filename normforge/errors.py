"""Every mistake a user can make has one class here, and a message of one sentence that says what to do.

The command line prints the message without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormforgeError(Exception):
    """Base of all errors that normforge raises on purpose."""

    exit_code = 2


class ParseError(NormforgeError, ValueError):
    """A formula, SSA dump or JSON text that cannot be read; `position` is the offending character."""

    def __init__(self, message: str, text: str = "", position: int | None = None) -> None:
        self.text, self.position = text, position
        if position is not None:
            # A long formula is cut around the mistake, so that the caret stays in sight.
            line_start = text.rfind("\n", 0, position) + 1
            line = text[line_start:].split("\n", 1)[0]
            column = position - line_start
            left = max(0, column - 50)
            # One printed column a character: a tab would move the caret away from the mistake.
            line = "".join(ch if ch.isprintable() else " " for ch in line)
            message = f"{message}\n  {line[left : column + 30]}\n  {' ' * (column - left)}^"
        super().__init__(message)


class UnknownNameError(NormforgeError, KeyError):
    """A layer, option or file that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class GraphError(NormforgeError, ValueError):
    """A graph that breaks the rules of the IR."""


class PassError(GraphError):
    """A pass that made a graph which breaks the rules of the IR, or could not make one."""


class MissingOperationError(NormforgeError, NotImplementedError):
    """An operation that one of the tables of its meanings does not know."""


class ShapeError(NormforgeError, ValueError):
    """An input whose rank, channel count or group count does not fit the layer."""


class DtypeError(NormforgeError, TypeError):
    """An input or a parameter of a dtype that the layer cannot compute in."""


class BackendError(NormforgeError, RuntimeError):
    """A backend that is asked for by name and cannot be had, or cannot do what is asked."""


class TransformError(NormforgeError, RuntimeError):
    """A compiled layer met a torch.func transform."""


class OptionError(NormforgeError, ValueError):
    """An option, or a configuration key, with a value that has no meaning."""


class NotABatchNormError(OptionError, AttributeError):
    """A part of a BatchNorm is asked for that a layer of a formula has not; for `hasattr` it is simply not there."""


class RunError(NormforgeError, RuntimeError):
    """A search run that cannot be read, or cannot be continued as asked."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase '; did you mean X?' for the known name closest to `name`, or nothing."""
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name[:64].lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean {by_lower[match[0]]!r}?" if match else ""


def described(value: object) -> str:
    """What something is that should have been something else, for a message."""
    if value is None or isinstance(value, bool):
        return repr(value)
    kind = type(value)
    where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__.partition('.')[0]}."
    return f"{repr(value)[:40]} (a {where}{kind.__name__})" if isinstance(value, str) else f"a {where}{kind.__name__}"
