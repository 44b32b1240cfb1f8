"""degeneracy: the checks that need no numbers. Each refusal names the check, the node and the reason."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from normforge.ir.forms.printer import formula_or_none
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import B, S
from normforge.passes.normal_form.identity import MAX_NODES, Identity, value_of
from normforge.passes.normal_form.values import Value
from normforge.passes.ranges import Finite, Ranges

MAX_SHOWN = 2_000  # characters of a formula in a finding


class Check(enum.StrEnum):
    """The checks of a layer, in order of rising cost."""

    TYPE = "type"  # by the axes along which values vary
    DEPENDENCE = "dependence"  # x cancels
    RANGE = "range"  # never finite
    FORM = "form"  # affine in x
    PROBING = "probing"  # by numbers: not a pass


@dataclass(frozen=True)
class Finding:
    """A finding: why a layer is degenerate.

    Attributes:
        stage: which check found it.
        node: the formula (or operation) at fault.
        reason: one sentence.
    """

    stage: Check
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason} ({self.node})"


@dataclass(frozen=True)
class Degeneracy:
    """The checks that need no numbers and no torch: by type, by dependence, by range, by form.

    Attributes:
        checks: which of them to make.
    """

    checks: tuple[Check, ...] = (Check.TYPE, Check.DEPENDENCE, Check.RANGE, Check.FORM)

    def run(self, graph: Graph) -> tuple[Finding, ...]:
        """Findings of the first check that has any; empty for a layer that passes."""
        return self.timed(graph)[0]

    def timed(self, graph: Graph) -> tuple[tuple[Finding, ...], dict[str, float]]:
        """The findings of `run`, and the seconds that each check took; the first to ask for the value pays for it."""
        facts = Facts(graph)
        seconds: dict[str, float] = {}
        for check in self.checks:
            start = time.perf_counter()
            found = CHECKS[check](facts)
            seconds[check.value] = time.perf_counter() - start
            if found:
                return found, seconds
        return (), seconds


class Facts:
    """The facts that the checks ask for about one layer; each is worked out once.

    Attributes:
        graph: the layer as written.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @property
    def has_input(self) -> bool:
        """True where x occurs at all in the first result, of which the checks are."""
        return self.graph.inputs[0] in self.graph.with_outputs(self.graph.outputs[0]).nodes

    @property
    def value(self) -> Value | None:
        """The value of the output (see `identity`); None for a graph that is too large to ask."""
        return value_of(self.graph)[1] if len(self.graph.nodes) <= MAX_NODES else None

    @property
    def space(self) -> Identity:
        """The space of values, which knows the factors of the output's."""
        return value_of(self.graph)[0]

    def finding(self, check: Check, node: Node, reason: str) -> Finding:
        """A finding at a node of the layer."""
        return Finding(check, describe_node(self.graph, node), reason)


def describe_node(graph: Graph, node: Node) -> str:
    """The formula of a node of a surface graph, or its operation."""
    sub = graph.with_outputs(("y", node))
    formula = formula_or_none(sub) if sub.is_surface else None
    return formula if formula and len(formula) <= MAX_SHOWN else node.op.value


def by_type(facts: Facts) -> tuple[Finding, ...]:
    """Findings that the axes alone give away: deviations of constants, and an output that repeats itself.

    A deviation of a constant is sought in the graph as written, since its value has it folded; what the output
    varies along, in its value, from which what cancels is gone.
    """
    found = [
        facts.finding(
            Check.TYPE,
            node,
            "the standard deviation of a value that does not vary along its axes is the constant √ε",
        )
        for node in facts.graph.nodes
        if node.op is Op.STD and not node.args[0].axes & node.reduced
    ]
    y = facts.graph.output
    axes = y.axes
    if facts.has_input and not found and facts.value is not None:
        if not facts.space.depends(facts.value):
            return ()  # the next check says it better
        axes &= facts.space.axes(facts.value)
    missing = [name for bit, name in ((S, "position"), (B, "batch element")) if not axes & bit]
    if missing and facts.has_input:
        found.append(facts.finding(Check.TYPE, y, f"the output is the same at every {' and every '.join(missing)}"))
    return tuple(found)


def by_dependence(facts: Facts) -> tuple[Finding, ...]:
    """A finding where no path leads from x to the output, or x cancels along it."""
    y = facts.graph.output
    if not facts.has_input:
        return (facts.finding(Check.DEPENDENCE, y, "the output does not depend on x: x does not occur"),)
    if facts.value is not None and not facts.space.depends(facts.value):
        return (facts.finding(Check.DEPENDENCE, y, "the output does not depend on x: x cancels"),)
    return ()


def by_range(facts: Facts) -> tuple[Finding, ...]:
    """A finding where a value is never finite: whatever the parameters are, or at their start values."""
    for start in (False, True):
        ranges = Ranges(facts.graph.eps, start)
        known = ranges.run(facts.graph)
        if known[facts.graph.output].finite is not Finite.MAYBE:
            culprit = next(n for n in facts.graph.nodes if known[n].finite is not Finite.MAYBE)
            where = "at the start values of the parameters" if start else "whatever x is"
            what = "NaN" if known[culprit].finite is Finite.NAN else "infinite or NaN"
            return (facts.finding(Check.RANGE, culprit, f"this is {what} {where}, and so is the output not finite"),)
    return ()


def by_form(facts: Facts) -> tuple[Finding, ...]:
    """A finding where the layer is affine in x: a network of such layers and of convolutions is a linear map."""
    if facts.value is not None and facts.space.degree(facts.value) == 1:
        return (facts.finding(Check.FORM, facts.graph.output, "the output is affine in x"),)
    return ()


CHECKS: dict[Check, Callable[[Facts], tuple[Finding, ...]]] = {
    Check.TYPE: by_type,
    Check.DEPENDENCE: by_dependence,
    Check.RANGE: by_range,
    Check.FORM: by_form,
}
