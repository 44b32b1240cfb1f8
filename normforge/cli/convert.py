"""`normforge convert`: what conversion would make of a model of timm."""

from __future__ import annotations

from typing import Annotated

import typer

from normforge.cli.arguments import LayerArgument
from normforge.errors import UnknownNameError, nearest


def convert(
    model: Annotated[str, typer.Argument(metavar="TIMM_NAME", help="A model of timm, such as resnet50.")],
    layer: LayerArgument,
    where: Annotated[str, typer.Option(help="Only norms whose names match, such as 'layer1.*'.")] = "",
    linear: Annotated[
        str, typer.Option(help="Norms without an activation: twin (the layer's norm alone), keep, layer.")
    ] = "twin",
) -> None:
    """Show which norms of a model a layer would replace, and which not, and why; 'same' is each norm's own layer.

    The model is made with random weights; nothing is downloaded. In a program: normforge.convert(model, layer).
    """
    import timm

    from normforge.api.load import load
    from normforge.nn.convert import SAME
    from normforge.nn.convert import convert as converted

    if not timm.is_model(model):
        raise UnknownNameError(f"timm has no model {model!r}{nearest(model, timm.list_models())}")
    made = timm.create_model(model, pretrained=False)
    graph = layer if layer == SAME else load(layer)
    print(converted(made, graph, where=where or None, inplace=True, linear=linear)[1])
