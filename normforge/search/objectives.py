"""Objectives, by which a layer is scored: its loss or error on each network, and further ones. Smaller is better."""

from __future__ import annotations

import math
from collections.abc import Mapping

from normforge.ir.graph import Graph
from normforge.search.config import Config


def names(config: Config) -> tuple[str, ...]:
    """The objectives of a run, in order: its networks, then the further ones."""
    return (*config.networks.use, *config.objectives.also)


def traffic(graph: Graph) -> float:
    """Bytes that forward and backward move where slabs stay on chip, in units of the input's (DESIGN: the floors)."""
    from normforge.codegen.public import plan

    plans = [plan(graph, order) for order in range(2)]
    return float(sum(p.reads + p.writes for p in plans))


def margin(gradient: Mapping[str, float]) -> float:
    """The log10 of the largest gradient norm under attack, over networks."""
    return math.log10(max(gradient.values(), default=0.0) + 1e-12)
