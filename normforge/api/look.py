"""`check` and `grad`: what is wrong with a layer, what it is like, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from normforge.codegen.public import plan
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.passes.degeneracy import Degeneracy, Finding
from normforge.passes.describe import Describe
from normforge.passes.differentiate import Differentiate
from normforge.passes.keys import lower

if TYPE_CHECKING:
    from normforge.probing.probe import Propagation


@dataclass(frozen=True)
class Report:
    """The report of `check` on one layer.

    Attributes:
        findings: why it is degenerate, each with stage, node and reason.
        properties: facts about it, by name: those of `normforge.passes.Describe`, and `traffic`: full tensors read and
            written by each order's kernels, when slabs stay on chip.
        remarks: what probing saw on inputs that it does not refuse for, by input.
        propagation: signals by depth in a stack of convolutions (see `normforge.probing.probe`); None where no
            number was computed.
        seconds: by check.
    """

    findings: tuple[Finding, ...]
    properties: dict[str, object] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    propagation: Propagation | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when there are no findings."""
        return not self.findings


def check(layer: Graph | str, *, probe: bool = True) -> Report:
    """Ask whether a layer is degenerate, and describe it.

    The checks in order of cost, up to the first that refuses: by type, dependence, range, form, and by probing.

    Args:
        layer: a graph, a layer's name, or a formula.
        probe: also the last of them, which runs the layer; without it, no number is computed.

    Raises:
        OptionError: not a layer but a derivative graph. ParseError: no such layer, or a bad formula.
    """
    graph = as_layer(layer, "check")
    static, seconds = Degeneracy().timed(graph)
    properties = Describe().run(graph)
    plans = [plan(graph, order) for order in range(3)]
    properties["traffic"] = [p.reads + p.writes for p in plans]
    if static or not probe:
        return Report(static, properties, seconds=seconds)
    from normforge.probing.probe import probe as run_probe

    probed = run_probe(graph)
    seconds |= {f"probing, {part}": t for part, t in probed.seconds.items()}
    return Report(probed.findings, properties, probed.remarks, probed.propagation, seconds)


def grad(graph: Graph) -> Graph:
    """The vector-Jacobian product of all outputs, as a core graph: cotangents `ct.<output>` in, `d.<name>` out."""
    return lower(Differentiate().run(graph))
