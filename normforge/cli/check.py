"""`normforge check`: is a layer degenerate, why, and what is it like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normforge.api.load import candidate_named, load
from normforge.api.look import Report
from normforge.cli.arguments import LayerArgument
from normforge.errors import OptionError
from normforge.ir.graph import Graph

if TYPE_CHECKING:
    from normforge.probing.probe import Propagation

_BARS = "▁▂▃▄▅▆▇█"
_KEEPS = (
    (1.0, "a signal keeps its size, as in known layers that normalize"),
    (2.0, "a signal nearly keeps its size"),
    (math.inf, "a signal dies out, explodes, or grows with x"),
)


def check(
    layer: LayerArgument,
    static: Annotated[bool, typer.Option("--static", help="Only what the formula proves; run nothing.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the signals by depth into this file (png, svg, pdf).")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Also name the nearest candidate of this search; the layer's own by default.")
    ] = None,
) -> None:
    """Say whether a layer is degenerate, and why, and what it is like. Exit code 0: sound, 1: refused, 2: bad input."""
    from normforge.api.look import check as run_check

    if static and plot is not None:
        raise OptionError("--plot draws what probing measures: leave out --static")
    if static and run is not None:
        raise OptionError("--run compares what layers do with numbers: leave out --static")
    graph = load(layer)
    beside = str(run) if run is not None else layer if candidate_named(layer) and not static else None
    report = run_check(graph, probe=not static, run=beside)
    print(f"{graph}\n")
    for line in describe(report):
        print(f"  {line}")
    print(f"  {'hash':<18} {graph.hash}\n  {'family':<18} {graph.family_hash}\n")
    for line in numbers(report):
        print(line)
    for name, what in report.remarks.items():
        print(f"note: {what} on {name}")
    if report.propagation is not None:
        print(signals(report.propagation))
        if plot is not None:
            draw(graph, report.propagation, plot)
            print(f"drawn into {plot}\n")
    elif plot is not None:
        print("nothing to draw: the layer was refused before it met a stack of convolutions\n")
    for finding in report.findings:
        print(f"refused by {finding.stage}: {finding.reason}\n  at {finding.node}")
    took = ", ".join(f"{check} {t * 1e3:.1f} ms" for check, t in report.seconds.items())
    if not report.ok:
        print(f"({took})")
        raise typer.Exit(1)
    print(f"sound: no {'static ' if static else ''}check speaks against it ({took})")


def describe(report: Report) -> list[str]:
    """The properties, one a line; a star marks those that were looked for in numbers, not proved."""
    p = report.properties
    probed = p["probed"]
    assert isinstance(probed, list)

    def line(label: str, value: object, key: str = "") -> str:
        return f"{label:<18} {value}{' *' if key in probed else ''}"

    def several(value: object) -> str:
        return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)

    def yes(value: object) -> str:
        return "not known" if value is None else "yes" if value is True else "no" if value is False else str(value)

    degree = p["scale_degree"]
    scale = "by no power of t" if degree is None else f"by t^{degree}"
    traffic = p["traffic"]
    assert isinstance(traffic, list)
    lines = [
        line("moments", f"{several(p['moments'])} ({p['moment_levels']} levels)" if p["moments"] else "none"),
        line("needs the batch", yes(p["batch_dependent"])),
        line("x times t", f"changes it {scale}" if degree != 0 else "changes nothing: scale-invariant"),
        line("x plus t", "changes nothing: shift-invariant" if p["shift_invariant"] else "changes it"),
        line("centred over", several(p["centred"])),
        line("monotone", p["monotone"], "monotone"),
        line("bounded", yes(p["bounded"]), "bounded"),
        line("affine in x", yes(p["linear"])),
        line("parameters", several(p["parameters"])),
        line("keeps running", several(p["running"])),
        line("cost", f"{p['flops']:.0f} operations an element, {traffic[0]} tensors forward, {traffic[1]} backward"),
    ]
    if probed:
        lines.append("* by numbers tried; the rest is proved (scale in the limit ε -> 0)")
    return lines


def numbers(report: Report) -> list[str]:
    """The signal score and what the layer is nearest to, one a line; none where no number was computed."""
    from normforge.probing.signal import LINEAR

    found = report.signal
    if found is None:
        return []
    parts = f"variance {found.variance:.2f}, gradient {found.gradient:.2f}, 2 × scale {found.scale:.2f}"
    keeps = next(words for most, words in _KEEPS if found.z <= most)
    bend = "a straight line" if found.linearity > 0.999 else "nearly one" if found.linearity > LINEAR else "it bends"
    lines = [
        f"signal: z {found.z:.2f} ({parts}): {keeps}",
        f"linear: R² {found.linearity:.3f} of y on x: {bend}",
    ]
    if report.known:
        nearest, second = report.known
        lines.append(f"nearest known layer by behaviour: {nearest}")
        if nearest.same:
            lines.append(f"and then: {second}")
    else:
        lines.append("no known layer is near by behaviour: its outputs on noise are constant or not finite")
    if report.stored:
        lines.append(f"nearest candidate of the search: {report.stored}")
    return [*lines, ""]


def signals(s: Propagation) -> str:
    """Signals by depth as text: one bar a depth, on a logarithmic scale."""
    rows = [("channel variance", s.variance), ("squared mean", s.mean), ("gradient", s.gradient)]
    head = f"{s.depth} random convolutions, each followed by the layer: signals by depth, input on the left"
    return "\n".join([head, *(f"  {name:<18} {_bars(values, s.depth + 1)}" for name, values in rows), ""])


def _bars(values: Sequence[float], length: int) -> str:
    logs = [math.log10(v) if v > 0 else -46.0 for v in values]
    if not logs:
        return "not finite"
    low, high = min(logs), max(logs)
    span = max(high - low, 1.0)  # less than a factor of ten is flat
    text = "".join(_BARS[round((v - low) / span * (len(_BARS) - 1))] for v in logs)
    return f"{text:<{length}}  {values[0]:.1e} .. {values[-1]:.1e}{', then not finite' if len(values) < length else ''}"


def draw(graph: Graph, s: Propagation, path: Path) -> None:
    """Draw signals by depth as a picture.

    Raises:
        OptionError: the file cannot be written, or its suffix is of no known format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in (("channel variance", s.variance), ("squared mean", s.mean), ("gradient norm", s.gradient)):
        # Gradients are known from the end backward, where not all of them are finite.
        start = s.depth + 1 - len(values) if name == "gradient norm" else 0
        axes.plot(range(start, start + len(values)), values, marker="o", markersize=3, label=name)
    axes.set(yscale="log", xlabel="depth", title=str(graph) if len(str(graph)) < 80 else f"{str(graph)[:77]}...")
    axes.set_xlim(0, s.depth)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise OptionError(f"cannot draw into {path}: {e}") from None
