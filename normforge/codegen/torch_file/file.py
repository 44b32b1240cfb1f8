"""The text of a file that holds one layer as an nn.Module, which can be scripted and traced too."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from normforge.codegen.torch_file.text import TorchText, letters, python_name
from normforge.ir.forms.printer import format_number
from normforge.ir.graph import Graph
from normforge.ir.types import FULL, INPUT_NAMES, G, K
from normforge.passes.running import running_statistics


def file_text(
    graph: Graph,
    names: Mapping[str, str],
    *,
    cls: str = "Layer",
    title: str = "A layer",
    about: str = "",
    kernels: Mapping[str, Any] | None = None,
) -> str:
    """The text of the file.

    Args:
        graph: the layer.
        names: of parameters, as attributes of the module, by their names in the formula.
        cls: the name of the class. title: the name of the layer.
        about: lines that say where the layer and the file come from.
        kernels: what the template of kernels takes; None for a file without.
    """
    environment = Environment(
        loader=PackageLoader("normforge.codegen.torch_file"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prefixed"] = lambda name: f", {name}"
    text = TorchText(graph)
    *declared, results = str(graph).split("; ")
    values: dict[str, Any] = {
        "title": title,
        "cls": cls,
        "formula": [*(f"{line};" for line in declared), results],
        "about": about,
        "eps": format_number(graph.eps),
        "inputs": [
            {
                "python": python_name(i.name),
                "declared": f"{i.name}[{INPUT_NAMES[i.axes]}]",
                "axes": letters(i.axes),
                "full": i.axes == FULL,
            }
            for i in graph.inputs[1:]
        ],
        "params": [
            {
                "python": python_name(p.name),
                "attribute": names[p.name],
                "read": f'getattr(self, "{p.name}")' if keyword.iskeyword(p.name) else f"self.{names[p.name]}",
                "axes": letters(p.axes),
                "channels": bool(p.axes),
                "start": repr(p.attr[2]),
            }
            for p in graph.params
        ],
        "running": [
            {
                "name": r.name,
                "shape": "()" if not r.axes & G else "(channels,)" if r.axes & K else "(groups,)",
                "start": repr(r.start),
            }
            for r in running_statistics(graph)
        ],
        "results": len(graph.outputs),
        "body": text.lines,
        "expressions": text.results,
        "text": "\n".join(text.lines + text.results),
        "uses_numbers": text.uses_numbers,
        "uses_signs": text.uses_signs,
        "kernels": {},
    }
    return environment.get_template("layer.py.j2").render(values | dict(kernels or {}))
