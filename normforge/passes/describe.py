"""describe: properties that the IR proves."""

from __future__ import annotations

from dataclasses import dataclass

from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import LEAF, MOMENT
from normforge.ir.types import INDEX_NAMES, B
from normforge.passes.running import running_statistics
from normforge.passes.simplify import cost, normal_form


@dataclass(frozen=True)
class Describe:
    """Facts about a layer, by name."""

    def run(self, graph: Graph) -> dict[str, object]:
        """batch_dependent, moments, moment_levels, parameters, running, operations, cost."""
        normal = normal_form(graph)
        level: dict[Node, int] = {}
        moments: list[str] = []
        batch = False
        for node in normal.nodes:
            own = node.op in MOMENT and bool(node.args[0].axes & node.reduced)
            level[node] = max((level[a] for a in node.args), default=0) + own
            batch |= own and bool(node.reduced & B)
            if own:
                moments.append(f"{node.op}[{INDEX_NAMES[node.reduced]}]")
        return {
            "batch_dependent": batch,
            "moments": sorted(set(moments)),
            "moment_levels": level[normal.output],
            "parameters": [p.name for p in graph.params],
            "running": [r.name for r in running_statistics(graph)],
            "operations": sum(n.op not in LEAF for n in normal.nodes),
            "cost": cost(normal),
        }
