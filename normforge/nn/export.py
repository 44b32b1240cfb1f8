"""`export`: a layer as one file of Python that imports torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normforge.codegen.c.driver import driver
from normforge.codegen.orders import program
from normforge.codegen.plan import LAYOUTS
from normforge.codegen.registry import find_target
from normforge.codegen.torch_file import file_text
from normforge.codegen.torch_file.text import letters
from normforge.errors import OptionError
from normforge.ir.graph import Graph
from normforge.ir.layers import CATALOGUE, as_layer
from normforge.kernels import toolchain
from normforge.kernels.compile import compile
from normforge.kernels.job import Job
from normforge.passes.linear import name_of
from normforge.passes.single import moment_axes


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
    graph = as_layer(layer, "export")
    name = name_of(graph)
    title = name if name in CATALOGUE else "A layer"
    stem = "".join(ch if ch.isalnum() else "_" for ch in name) if name in CATALOGUE else "layer"
    path = Path(path)
    if path.is_dir():
        path /= f"{stem}.py"
    names = compile(graph, channels=1, groups=1, backend="eager").names
    found = _kernels(graph) if kernels else None
    text = file_text(graph, names, cls=_class_name(name), title=title, about=_about(title, origin), kernels=found)
    try:
        path.write_text(text)
    except OSError as e:
        raise OptionError(f"cannot write to {path}: {e.strerror}; choose another path") from None
    return path


def _about(title: str, origin: str) -> str:
    from normforge import __version__

    source = f"From {CATALOGUE[title].source}." if title in CATALOGUE else "A formula of its author's own."
    return f"{origin or source}\nWritten by normforge {__version__}. Licence of this file: Apache-2.0."


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
        "moments": [letters(axes) for axes in moment_axes(graph)],
        "flags": toolchain.FLAGS,
        "gcc_flags": toolchain.GCC_FLAGS,
        "clang_flags": toolchain.CLANG_FLAGS,
    }


def _outputs(job: Job) -> list[tuple[str, int | str]]:
    """How each output of a job is allocated."""
    made: list[tuple[str, int | str]] = []
    for like, which in job.specs:
        made.append(("x", 0) if like == "full" else (like, letters(which) if like == "statistic" else which))
    return made


def _class_name(name: str) -> str:
    """The class of a named layer, EvonormS0 of evonorm-s0."""
    return "".join(part.capitalize() for part in name.split("-")) if name in CATALOGUE else "Layer"
