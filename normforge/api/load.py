"""A layer from whatever names one: a name, a formula, a file, or a search result such as runs/demo#17."""

from __future__ import annotations

from pathlib import Path

from normforge.errors import NormforgeError, ParseError, UnknownNameError
from normforge.ir.graph import Graph
from normforge.ir.layers import layers, parse


def load(text: str) -> Graph:
    """The layer that `text` names; the command line takes the same.

    Args:
        text: a name (`gn-silu`), a formula, a file of one (text, dump or JSON), or a candidate of a search
            (`runs/demo#17`, `runs/demo#best`).

    Raises:
        ParseError, UnknownNameError, RunError: nothing of the four reads as a layer; the message says why.
    """
    if text.strip() in layers:
        return parse(text)
    if candidate_named(text):
        from normforge.search.results import layer_of

        return layer_of(text)
    if _looks_like_path(text):
        return _from_file(Path(text))
    return parse(text)


def candidate_named(text: str) -> bool:
    """Whether `text` names a candidate of a search, such as runs/demo#17 or runs/demo#best: one word, since what stands
    behind a space and `#` is a comment."""
    folder, mark, which = text.strip().rpartition("#")
    one_word = bool(mark and folder) and not any(map(str.isspace, text.strip()))
    return one_word and (which == "best" or which.isdigit() or Path(folder).is_dir())


def _looks_like_path(text: str) -> bool:
    if "\n" in text or len(text) > 200:
        return False
    path = Path(text)
    return path.is_file() or path.suffix in (".json", ".txt", ".nf") or ("/" in text and path.is_dir())


def _from_file(path: Path) -> Graph:
    if path.is_dir():
        raise UnknownNameError(f"{path} is a folder: a layer that was found there is {path}#best, or {path}#17")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UnknownNameError(
            f"cannot read a layer from {path}: {getattr(e, 'strerror', None) or 'it is not text'}; name a text file"
        ) from None
    try:
        if text.lstrip().startswith("{"):
            return Graph.from_json(text)
        return Graph.from_dump(text) if text.startswith("graph ") else parse(text)
    except NormforgeError as e:
        raise ParseError(f"{path} does not hold a layer: {e}") from None
