"""A layer as a module that torch.jit.script can read: its formula in torch's operations, its tensors the same."""

from __future__ import annotations

import linecache
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from normforge.codegen.torch_file import file_text
from normforge.ir.graph import Graph

if TYPE_CHECKING:
    from normforge.kernels.module import Layer


def scriptable(layer: Layer) -> nn.Module:
    """The module; parameters and buffers are the layer's, and what is scripted needs no normforge to be loaded."""
    cls = _class_of(layer.graph, tuple(layer.names.items()))
    made: nn.Module = cls(layer.channels, layer.groups, layer.channel_dim, layer.eps, layer.momentum)
    made._parameters.update(layer._parameters)
    made._buffers.update(layer._buffers)
    made.training = layer.training and not layer.frozen
    return made


@lru_cache(maxsize=256)
def _class_of(graph: Graph, names: tuple[tuple[str, str], ...]) -> Any:
    text = file_text(graph, dict(names))
    # torch reads the source of functions through linecache, under a file name that does not exist.
    file = f"<normforge script {graph.structure}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    found: dict[str, Any] = {"__name__": "normforge_scripted"}
    exec(compile(text, file, "exec", dont_inherit=True), found)  # annotations as types, not as text
    return found["Layer"]
