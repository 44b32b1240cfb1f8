"""What several commands print."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def print_settings(settings: Any, console: Console, prefix: str = "", left_out: tuple[str, ...] = ()) -> None:
    """Each setting, its value, and what it means.

    Args:
        settings: a configuration. console: it is printed on.
        prefix: of its keys. left_out: dotted keys that are not settings of the command.
    """
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if f"{prefix}{name}" in left_out:
            continue
        if hasattr(type(value), "model_fields"):
            print_settings(value, console, f"{prefix}{name}.", left_out)
        else:
            said = f"    # {field.description}" if field.description else ""
            shown = "none" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else value
            console.print(f"{prefix}{name} = {shown}{said}", highlight=False, markup=False, soft_wrap=True)
