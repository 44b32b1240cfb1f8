"""degeneracy: the static stages. Each refusal names the stage, the node and the reason."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.printer import formula_or_none
from normforge.ir.types import B, S
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.differentiate import Differentiate
from normforge.passes.simplify import normal_form

MAX_SHOWN = 2_000  # characters of a formula in a finding


class Stage(enum.StrEnum):
    """The stages, in order of rising cost."""

    TYPE = "type"
    DEPENDENCE = "dependence"


@dataclass(frozen=True)
class Finding:
    """Why a layer is degenerate.

    Attributes:
        stage: which check found it.
        node: the formula (or operation) at fault.
        reason: one sentence.
    """

    stage: Stage
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason} ({self.node})"


@dataclass(frozen=True)
class Degeneracy:
    """The by-type and by-dependence stages; needs no numbers and no torch."""

    def run(self, graph: Graph) -> tuple[Finding, ...]:
        """Findings of the first stage that has any; empty for a layer that passes."""
        normal = normal_form(graph)
        return by_type(graph, normal) or by_dependence(normal)


def describe_node(graph: Graph, node: Node) -> str:
    """The formula of a node of a surface graph, or its operation."""
    sub = graph.with_outputs(("y", node))
    formula = formula_or_none(sub) if sub.is_surface else None
    return formula if formula and len(formula) <= MAX_SHOWN else node.op.value


def by_type(written: Graph, normal: Graph) -> tuple[Finding, ...]:
    """What the types alone give away.

    A moment of a constant is sought in the graph as written, since the normal form has folded it; what the output
    varies along, in the normal form, which has dropped what cancels.
    """
    found = []
    for node in written.nodes:
        if node.op is Op.STD and not node.args[0].axes & node.reduced:
            why = "the standard deviation of a value that does not vary along its axes is the constant √ε"
            found.append(Finding(Stage.TYPE, describe_node(written, node), why))
    y = normal.output
    missing = [name for bit, name in ((S, "position"), (B, "batch element")) if not y.axes & bit]
    if missing and any(n.op is Op.INPUT for n in normal.nodes):
        why = f"the output is the same at every {' and every '.join(missing)}"
        found.append(Finding(Stage.TYPE, describe_node(normal, y), why))
    return tuple(found)


def by_dependence(graph: Graph) -> tuple[Finding, ...]:
    """No path from x to the output, or one along which no gradient flows."""
    y = graph.output
    if not any(n.op is Op.INPUT for n in graph.nodes):
        return (Finding(Stage.DEPENDENCE, describe_node(graph, y), "the output does not depend on x"),)
    gradient = Canonicalise(finite_only=True).run(Differentiate(wrt=(graph.inputs[0],)).run(graph))
    dx = dict(gradient.outputs)["d.x"]
    while dx.op is Op.BROADCAST:
        dx = dx.args[0]
    if dx.op is Op.CONST and dx.value == 0:
        return (Finding(Stage.DEPENDENCE, describe_node(graph, y), "the gradient of x is zero everywhere"),)
    return ()
