"""The command line. Mistakes are one sentence on standard error and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from normforge import __version__
from normforge.api.load import load
from normforge.cli.arguments import DtypeOption, LayerArgument, Layout, parse_dtype, parse_shape
from normforge.cli.bench import bench
from normforge.cli.check import check
from normforge.cli.search import plan, report, search, show
from normforge.errors import NormforgeError, OptionError

app = typer.Typer(
    name="normforge",
    help="Normalization-activation layers, compiled and discovered. A LAYER is a name (normforge layers), a formula, "
    "a file, or a search result such as runs/demo#17.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


class Emit(StrEnum):
    """What `compile` writes."""

    c = "c"
    triton = "triton"
    ptx = "ptx"


class Target(StrEnum):
    """What a plan is for."""

    c = "c"
    triton = "triton"


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"normforge {__version__}")
        raise typer.Exit


@app.command("layers")
def list_layers() -> None:
    """List the named layers with their formulas and sources."""
    from normforge.ir.layers import CATALOGUE

    table = Table("layer", "formula", "source", box=None, pad_edge=False)
    for name, layer in CATALOGUE.items():
        table.add_row(name, escape(layer.formula), escape(layer.source))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def explain(
    layer: LayerArgument,
    shape: Annotated[str, typer.Option(help="N,C,H,W (or N,C,...): show what fits on chip and the bytes moved.")] = "",
    dtype: DtypeOption = "float32",
    layout: Annotated[Layout, typer.Option(help="Memory layout of x.")] = Layout.nchw,
    target: Annotated[Target, typer.Option(help="Backend of the plan.")] = Target.triton,
    ir: Annotated[bool, typer.Option("--ir", help="Print the typed SSA of each order too.")] = False,
) -> None:
    """Print how a layer is computed: kernels, sweeps over memory, bytes moved and the least possible, saved tensors."""
    from normforge.api.explain import explain as text

    print(text(load(layer), parse_shape(shape), parse_dtype(dtype), layout.value, target.value, ir=ir))


@app.command("compile")
def compile_layer(
    layer: LayerArgument,
    emit: Annotated[Emit, typer.Option(help="C source, Triton source, or PTX for sm_90.")] = Emit.c,
    dtype: DtypeOption = "float32",
    layout: Annotated[Layout, typer.Option(help="Memory layout of x.")] = Layout.nchw,
    out: Annotated[Path | None, typer.Option(help="Write one file an order into this directory.")] = None,
) -> None:
    """Write the generated code of a layer: forward, backward and double backward."""
    from normforge.codegen.public import plan, source

    graph, kind = load(layer), parse_dtype(dtype)
    suffix = {Emit.c: ".c", Emit.triton: ".py", Emit.ptx: ".ptx"}[emit]
    texts = []
    for order in range(3):
        if emit is Emit.ptx:
            from normforge.kernels.launch_triton import emit_ptx

            texts.append(emit_ptx(plan(graph, order, dtype=kind, layout=layout.value), 90))
        else:
            texts.append(source(graph, emit.value, order, kind, layout.value))
    if out is None:
        print("\n".join(texts))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for order, text in enumerate(texts):
            path = out / f"order{order}{suffix}"
            path.write_text(text)
            print(path)
    except OSError as e:
        raise OptionError(f"cannot write to {out}: {e.strerror}; choose another --out") from None


@app.command()
def doctor() -> None:
    """Check compilers, devices and versions, compile and run one layer on each backend that is there."""
    from normforge.cli.doctor import examine

    ok = True
    for line in examine():
        ok &= line.ok
        print(f"{'ok  ' if line.ok else 'FAIL'} {line.what:<12} {line.detail}")
    if not ok:
        raise typer.Exit(1)


app.command()(check)
app.command()(bench)
app.command()(search)
app.command()(plan)
app.command()(report)
app.command()(show)


def main() -> None:
    """Entry point: normforge's own errors become one sentence and their exit code."""
    try:
        app()
    except NormforgeError as e:
        print(f"normforge: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        sys.exit(0)
