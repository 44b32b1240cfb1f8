"""`export`: a layer as one file of Python that imports torch alone."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from normforge.codegen.c.driver import driver
from normforge.codegen.orders import program
from normforge.codegen.plan import LAYOUTS
from normforge.codegen.registry import find_target
from normforge.errors import OptionError
from normforge.ir.forms.printer import format_number
from normforge.ir.graph import Graph
from normforge.ir.layers import CATALOGUE, as_layer
from normforge.ir.types import FULL, INPUT_NAMES, B, G, K, S
from normforge.kernels import toolchain
from normforge.kernels.compile import compile
from normforge.kernels.job import Job
from normforge.kernels.module import described
from normforge.nn.torch_text import TorchText, python_name
from normforge.passes.linear import name_of
from normforge.passes.running import running_statistics
from normforge.passes.single import moment_axes

_AXES = ((B, "b"), (G, "g"), (K, "k"), (S, "s"))


def export(layer: Graph | str, path: str | Path, *, kernels: bool = False, origin: str = "") -> Path:
    """Write a layer as one readable file that imports only torch: an nn.Module with the names of normforge's own.

    Args:
        layer: a graph, a layer's name, or a formula.
        path: of the file, which is written anew; a directory gets a file named after the layer.
        kernels: with its C source, for float32 on CPUs, forward and backward, in both layouts; without a compiler, and
            for everything else, torch operations serve.
        origin: a line that says where the layer comes from; by default the source of a named layer.

    Returns:
        The path of the file.

    Raises:
        ParseError: no such layer, or a bad formula. OptionError: the file cannot be written.
    """
    if not isinstance(layer, Graph | str):
        raise OptionError(f"a layer is a formula, a name or a graph, not {described(layer)}")
    graph = as_layer(layer, "export")
    name = name_of(graph)
    title = name if name in CATALOGUE else "A layer"
    stem = "".join(ch if ch.isalnum() else "_" for ch in name) if name in CATALOGUE else "layer"
    path = Path(path)
    if path.is_dir():
        path /= f"{stem}.py"
    text = file_text(graph, title, _class_name(name), origin, kernels)
    try:
        path.write_text(text)
    except OSError as e:
        raise OptionError(f"cannot write to {path}: {e.strerror}; choose another path") from None
    return path


def file_text(graph: Graph, title: str, cls: str, origin: str = "", kernels: bool = False) -> str:
    """The text of the file.

    Args:
        graph: the layer.
        title: its name. cls: the name of its class.
        origin, kernels: as of `export`.
    """
    from normforge import __version__

    environment = Environment(
        loader=PackageLoader("normforge.nn"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["prefixed"] = lambda name: f", {name}"
    text = TorchText(graph)
    origin = origin or (f"From {CATALOGUE[title].source}." if title in CATALOGUE else "A formula of its author's own.")
    attributes = compile(graph, channels=1, groups=1, backend="eager").names
    values: dict[str, Any] = {
        "title": title,
        "cls": cls,
        "formula": _formula(graph),
        "origin": origin,
        "version": __version__,
        "eps": format_number(graph.eps),
        "inputs": [
            {
                "python": python_name(i.name),
                "declared": f"{i.name}[{INPUT_NAMES[i.axes]}]",
                "axes": _letters(i.axes),
                "full": i.axes == FULL,
            }
            for i in graph.inputs[1:]
        ],
        "params": [
            {
                "python": python_name(p.name),
                "attribute": attributes[p.name],
                "read": f'getattr(self, "{p.name}")' if keyword.iskeyword(p.name) else f"self.{attributes[p.name]}",
                "axes": _letters(p.axes),
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
        "body": _body(text),
        "expressions": text.results,
        "text": "\n".join(text.lines + text.results),
        "uses_signs": text.uses_signs,
        "kernels": {},
    }
    if kernels:
        values |= _kernels(graph)
    return environment.get_template("layer.py.j2").render(values)


def _body(text: TorchText) -> list[str]:
    """The lines, with buffers by number and the number of the statistics that they take."""
    lines = []
    for line in text.lines:
        for number, running in enumerate(running_statistics(text.graph)):
            line = line.replace(
                f'spread(running["{running.name}"], x)', f'spread(buffers[{number}], "{_letters(running.axes)}")'
            )
        lines.append(line.replace("if running is None:", "if buffers is None:"))
    return ["number = x.new_tensor", *lines] if text.uses_numbers else lines


def _kernels(graph: Graph) -> dict[str, Any]:
    """What the file needs of the C target."""
    target = find_target("c")
    sources: list[str] = []
    table: dict[tuple[str, bool], dict[str, Any]] = {}
    for layout in LAYOUTS:
        for train in (True, False):
            entry: dict[str, Any] = {}
            forward = Job(0, train, 1, graph, target="c")
            backward = forward.after(tuple(range(forward.differentiable)))
            for name, job in (("forward", forward), ("backward", backward)):
                plan = target.plan(program(graph, job.order, train), "float32", layout, None)
                entry[name] = {"symbol": plan.symbol, "source": len(sources), "outputs": _outputs(job)}
                sources.append(target.emit(plan, str(graph)))
            table[layout, train] = entry | {"saved": forward.saved, "of": backward.gradients_of}
    return {
        "kernels": table,
        "sources": sources,
        "driver": driver(),
        "moments": [_letters(axes) for axes in moment_axes(graph)],
        "flags": toolchain.FLAGS,
        "gcc_flags": toolchain.GCC_FLAGS,
        "clang_flags": toolchain.CLANG_FLAGS,
    }


def _outputs(job: Job) -> list[tuple[str, int | str]]:
    """How each output of a job is allocated."""
    made: list[tuple[str, int | str]] = []
    for like, which in job.specs:
        made.append(("x", 0) if like == "full" else (like, _letters(which) if like == "statistic" else which))
    return made


def _letters(axes: int) -> str:
    return "".join(letter for bit, letter in _AXES if axes & bit)


def _formula(graph: Graph) -> Sequence[str]:
    """The formula in lines: its declarations, then its results."""
    *declared, results = str(graph).split("; ")
    return [*(f"{line};" for line in declared), results]


def _class_name(name: str) -> str:
    """The class of a named layer, EvonormS0 of evonorm-s0."""
    return "".join(part.capitalize() for part in name.split("-")) if name in CATALOGUE else "Layer"
