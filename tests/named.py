"""The named layers that tests of everything are made for: those of x alone, and not the norms that others contain."""

from __future__ import annotations

from normforge.ir import layers

NORMS = ("batchnorm", "groupnorm", "layernorm", "instancenorm")
LAYERS = tuple(name for name, graph in layers.items() if graph.is_plain and name not in NORMS)
WITH_INPUTS = tuple(name for name, graph in layers.items() if not graph.is_plain)
