"""`normforge compile`: the generated code of a layer."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from normforge.api.load import load
from normforge.cli.arguments import DtypeOption, LayerArgument, Layout, LayoutOption, parse_dtype
from normforge.errors import OptionError


class Emit(StrEnum):
    """The languages that generated code can be shown in."""

    c = "c"
    triton = "triton"
    ptx = "ptx"
    sass = "sass"


_SUFFIX = {Emit.c: ".c", Emit.triton: ".py", Emit.ptx: ".ptx", Emit.sass: ".sass"}


def compile(
    layer: LayerArgument,
    emit: Annotated[Emit, typer.Option(help="C source, Triton source, or PTX or machine code for sm_90.")] = Emit.c,
    dtype: DtypeOption = "float32",
    layout: LayoutOption = Layout.nchw,
    out: Annotated[Path | None, typer.Option(help="Write one file an order into this directory.")] = None,
) -> None:
    """Write the generated code of a layer: forward, backward and double backward."""
    from normforge.codegen.public import plan, source

    graph, full = load(layer), parse_dtype(dtype)
    texts = []
    for order in range(3):
        if emit in (Emit.ptx, Emit.sass):
            from normforge.kernels.launch_triton import emit_ptx, emit_sass

            assemble = emit_ptx if emit is Emit.ptx else emit_sass
            texts.append(assemble(plan(graph, order, dtype=full, layout=layout.value), 90))
        else:
            texts.append(source(graph, emit.value, order, full, layout.value))
    if out is None:
        print("\n".join(texts))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for order, text in enumerate(texts):
            path = out / f"order{order}{_SUFFIX[emit]}"
            path.write_text(text)
            print(path)
    except OSError as e:
        raise OptionError(f"cannot write to {out}: {e.strerror}; choose another --out") from None
