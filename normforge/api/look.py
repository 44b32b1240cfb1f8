"""`check` and `grad`: what is wrong with a layer, what it is like, and its derivative."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from normforge.codegen.public import plan
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.passes.degeneracy import Degeneracy, Finding
from normforge.passes.describe import Describe
from normforge.passes.inputs import at_one
from normforge.passes.pipeline import derivative

if TYPE_CHECKING:
    from normforge.probing.behaviour import Near
    from normforge.probing.probe import Propagation
    from normforge.probing.signal import Signal


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
        signal: whether a signal keeps its size on its way through the layer, and how linear it is (see
            `normforge.probing.signal`); None where no number was computed.
        known: the two named layers that it is nearest to by behaviour (see `normforge.probing.behaviour`), the nearest
            first; none where no number was computed or the layer's are not finite.
        stored: the nearest candidate of the run that was asked about; None without one.
        seconds: by check.
    """

    findings: tuple[Finding, ...]
    properties: dict[str, object] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    propagation: Propagation | None = None
    signal: Signal | None = None
    known: tuple[Near, ...] = ()
    stored: Near | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when there are no findings."""
        return not self.findings


def check(layer: Graph | str, *, probe: bool = True, run: str | Path | None = None) -> Report:
    """Ask whether a layer is degenerate, and describe it.

    The checks in order of cost, up to the first that refuses: by type, dependence, range, form, and by probing. Of a
    layer with several results they are about the first; numbers are taken with further inputs at 1.

    Args:
        layer: a graph, a layer's name, or a formula.
        probe: also the last of them, which runs the layer; without it, no number is computed.
        run: directory of a search, whose evaluated candidates are looked through for the nearest; or a candidate in it
            (`runs/demo#17`), which is left out. Takes some milliseconds a candidate.

    Raises:
        OptionError: not a layer but a derivative graph. ParseError: no such layer, or a bad formula.
        RunError: the directory holds no readable run.
    """
    graph = as_layer(layer, "check")
    static, seconds = Degeneracy().timed(graph)
    properties = Describe().run(graph)
    plans = [plan(graph, order) for order in range(3)]
    properties["traffic"] = [p.reads + p.writes for p in plans]
    if static or not probe:
        return Report(static, properties, seconds=seconds)
    from normforge.probing.behaviour import nearest_known
    from normforge.probing.probe import probe as run_probe
    from normforge.probing.signal import signal

    graph = at_one(graph)
    probed = run_probe(graph)
    seconds |= {f"probing, {part}": t for part, t in probed.seconds.items()}
    start = time.perf_counter()
    found = signal(graph)
    seconds["signal"], start = time.perf_counter() - start, time.perf_counter()
    known = nearest_known(graph)
    stored = None
    if run is not None:
        from normforge.search.results import nearest_stored

        stored = nearest_stored(graph, str(run))
    seconds["behaviour"] = time.perf_counter() - start
    return Report(probed.findings, properties, probed.remarks, probed.propagation, found, known, stored, seconds)


def grad(graph: Graph) -> Graph:
    """The vector-Jacobian product of all outputs, as a core graph: cotangents `ct.<output>` in, `d.<name>` out."""
    return derivative(graph)
