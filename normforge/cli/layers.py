"""`normforge layers`: the named layers."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def layers() -> None:
    """List the named layers with their formulas and sources."""
    from normforge.ir.layers import CATALOGUE

    table = Table("layer", "formula", "source", box=None, pad_edge=False)
    for name, layer in CATALOGUE.items():
        table.add_row(name, escape(layer.formula), escape(layer.source))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
