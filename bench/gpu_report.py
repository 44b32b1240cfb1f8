"""What bench/gpu.py makes of its rows: verdicts against what is required, tables, a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import geometric_mean
from gpu_network import BASELINE
from gpu_peers import INDUCTOR
from rich.console import Console
from rich.table import Table

ORDERS = ("forward", "backward", "double backward")
LARGE_BYTES = 200e6
# Share of the copy's bandwidth, by order: at the bytes that a plan moves, and at those of the floor.
BANDWIDTH = (0.85, 0.80, 0.70)
WORST_CHOICE = 1.05  # time of the kind that was chosen over that of the fastest
WORST_RATIO, MEAN_RATIO = 0.95, 1.3  # of torch.compile
IMAGES, MEMORY = 0.95, 1.05  # of BatchNorm+ReLU
# Above this share of the copy's bandwidth a row was not read from memory, and its time means nothing.
IMPOSSIBLE = 1.2


def label(row: dict[str, Any]) -> str:
    """A row in words."""
    return f"{row['layer']} {'x'.join(map(str, row['shape']))} {row['dtype']} {row['layout']} {ORDERS[row['order']]}"


def device_ms(row: dict[str, Any], peer: str) -> float | None:
    """Median time on the device; None where there is none."""
    found = row["ms"].get(peer)
    return found["device"]["median"] if found else None


def slowest_ms(row: dict[str, Any], peer: str) -> float | None:
    """What a user waits for: the device, or Python where that takes longer."""
    found = row["ms"].get(peer)
    return max(found["device"]["median"], found["wall"]["median"]) if found else None


def share(row: dict[str, Any], peer: str = "normforge") -> float | None:
    """Bandwidth of a peer, counting the bytes of the floor, over that of the copy."""
    own, copy = device_ms(row, peer), device_ms(row, "copy of x")
    if own is None or copy is None:
        return None
    return (row["plan"]["floor_bytes"] / own) / (2 * row["plan"]["tensor_bytes"] / copy)


def reached(row: dict[str, Any]) -> float | None:
    """The same, counting the bytes that the plan moves, partial sums among them: 1 is the most that it could reach."""
    found = share(row)
    return None if found is None else found * row["plan"]["planned_bytes"] / row["plan"]["floor_bytes"]


def choice(row: dict[str, Any]) -> float | None:
    """Time of the kernels of the chosen kind over that of the fastest kind, without what Python adds."""
    times = {kind: k["ms"]["median"] for kind, k in row.get("kinds", {}).items() if "ms" in k and not k["refused"]}
    own = times.get(row["plan"]["kind"])
    return own / min(times.values()) if own is not None else None


def inductor_ratio(row: dict[str, Any]) -> float | None:
    """Time of the fastest of torch.compile's variants over normforge's."""
    own = slowest_ms(row, "normforge")
    rivals = [t for peer in INDUCTOR if (t := slowest_ms(row, peer)) is not None]
    return min(rivals) / own if own is not None and rivals else None


def batchnorm_ratios(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Time of BatchNorm+ReLU over normforge's, forward and backward together."""
    pairs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["layer"] in ("evonorm-b0", "evonorm-s0") and row["order"] < 2:
            pairs.setdefault(label(row | {"order": 0}), {})[row["order"]] = row
    for where, both in pairs.items():
        own = [slowest_ms(r, "normforge") for r in both.values()]
        torch_ = [slowest_ms(r, "BatchNorm+ReLU") for r in both.values()]
        if len(both) == 2 and None not in own + torch_:
            yield where.replace("forward", "forward+backward"), sum(torch_) / sum(own)  # type: ignore[arg-type]


def verdicts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each requirement, what was measured at its worst, and whether it holds; None where nothing was measured."""
    rows, out = report["rows"], []

    def judge(what: str, required: float, measured: float | None, where: str = "", *, at_most: bool = False) -> None:
        good = None if measured is None else bool(measured <= required if at_most else measured >= required)
        out.append({"what": what, "required": required, "measured": measured, "where": where, "holds": good})

    for order, least in enumerate(BANDWIDTH):
        large = [r for r in rows if r["order"] == order and r["plan"]["tensor_bytes"] >= LARGE_BYTES]
        what = f"{ORDERS[order]} of tensors from 200 MB: share of the copy's bandwidth at"
        for bytes_, of in (("the plan's bytes", reached), ("the floor", share)):
            found = sorted((s, label(r)) for r in large if (s := of(r)) is not None)
            judge(f"{what} {bytes_} (worst of {len(found)})", least, *(found[0] if found else (None,)))
    choices = sorted(((s, label(r)) for r in rows if (s := choice(r)) is not None), reverse=True)
    judge(f"time of the chosen kind over the fastest (worst of {len(choices)})", WORST_CHOICE,
          *(choices[0] if choices else (None,)), at_most=True)  # fmt: skip
    ratios = sorted((s, label(r)) for r in rows if (s := inductor_ratio(r)) is not None)
    judge(f"time of torch.compile, the fastest variant (worst of {len(ratios)})", WORST_RATIO,
          *(ratios[0] if ratios else (None,)))  # fmt: skip
    judge("the same, geometric mean", MEAN_RATIO, geometric_mean(r for r, _ in ratios) if ratios else None)
    for layer in ("evonorm-b0", "evonorm-s0"):
        against = sorted((s, w) for w, s in batchnorm_ratios(rows) if w.startswith(layer))
        what = f"{layer} against cuDNN's BatchNorm, and ReLU (worst of {len(against)})"
        judge(what, 1.0, *(against[0] if against else (None,)))
    network = report.get("network", {})
    base, own = network.get(BASELINE, {}), network.get("normforge evonorm-s0", {})
    known = "images_a_second" in base and "images_a_second" in own
    judge("ResNet-50 with evonorm-s0: images a second, of those with BatchNorm+ReLU", IMAGES,
          own["images_a_second"] / base["images_a_second"] if known else None)  # fmt: skip
    weighed = known and base["peak_bytes"] > 0
    judge("ResNet-50 with evonorm-s0: peak memory, of that with BatchNorm+ReLU", MEMORY,
          own["peak_bytes"] / base["peak_bytes"] if weighed else None, at_most=True)  # fmt: skip
    absent = [label(r) for r in rows if r["ms"] and "normforge" not in r["ms"]]
    judge("rows where normforge failed or was wrong", 0, float(len(absent)) if rows and rows[0]["ms"] else None,
          "; ".join(absent[:3]), at_most=True)  # fmt: skip
    odd = [label(r) for r in rows if r["plan"]["tensor_bytes"] >= LARGE_BYTES and (share(r) or 0) > IMPOSSIBLE]
    judge("rows faster than memory allows: errors of the benchmark", 0,
          float(len(odd)) if any(share(r) is not None for r in rows) else None, "; ".join(odd[:3]),
          at_most=True)  # fmt: skip
    return out


def show(console: Console, report: dict[str, Any]) -> None:
    """Tables of rows, network, verdicts."""
    timed = [r for r in report["rows"] if r["ms"]]
    columns = list(dict.fromkeys(name for r in timed for name in r["ms"]))
    table = Table(title="median ms on the device / wall ms of a call, where longer by a fifth; p20 and p80 in the file")
    for head in (
        "layer",
        "shape",
        "dtype",
        "order",
        "plan",
        "S, MB",
        "of floor",
        "of copy",
        "at plan",
        "fastest kind",
        *columns,
    ):
        table.add_column(head)
    for r in report["rows"]:
        plan = r["plan"]
        part, most = share(r), reached(r)
        cells = [_cell(r, name) for name in columns]
        table.add_row(
            r["layer"], "x".join(map(str, r["shape"])), f"{r['dtype']} {r['layout']}", ORDERS[r["order"]],
            f"{plan['kind']}, {plan['launches']}", f"{plan['tensor_bytes'] / 1e6:.1f}",
            f"{plan['planned_bytes'] / plan['floor_bytes']:.2f}", "" if part is None else f"{part:.0%}",
            "" if most is None else f"{most:.0%}",
            _fastest(r), *cells,
        )  # fmt: skip
    console.print(table)
    for variant, found in report.get("network", {}).items():
        if "error" in found:
            console.print(f"ResNet-50, {variant}: {found['error']}", markup=False)
        else:
            speed, peak = found["images_a_second"], found["peak_bytes"] / 1e9
            console.print(f"ResNet-50, {variant}: {speed:.0f} images/s, {peak:.2f} GB", markup=False)
    for row in report.get("host", []):
        console.print(f"host, {row['layer']} (launches {row['launches']}):", *_times(row), markup=False, soft_wrap=True)
    for peer, found in report.get("recompiles", {}).items():
        total, compiled_ = sum(found["seconds"]), found["compiled_after"]
        console.print(
            f"twenty shapes of gn-silu, {peer}: {total:.1f} s; compiled after 1, 10, 20 of them: "
            f"{compiled_[0]}, {compiled_[9]}, {compiled_[19]}"
        )
    for row in report.get("compile_seconds", []):
        console.print(f"first step of {row['layer']}, {row['peer']}: cold {row['cold']} s, warm {row['warm']} s")
    show_kinds(console, report)
    missing = {(name, why, r["order"]) for r in timed for name, why in r["missing"].items() if "compile ref" not in why}
    for name, why, order in sorted(missing):
        console.print(f"n/a: {name}, {ORDERS[order]}: {why}", markup=False)
    if report["left_out"]:
        console.print(f"left out for lack of time: {', '.join(report['left_out'])}", markup=False)
    for failed in report["failed"]:
        console.print(f"failed: {failed}", markup=False)
    judged = Table(title=f"required ({report['status']})")
    for head in ("what", "required", "measured", "", "where"):
        judged.add_column(head)
    for q in report["verdicts"]:
        verdict = {None: "not measured", True: "ok", False: "[red]short[/red]"}[q["holds"]]
        measured = "" if q["measured"] is None else f"{q['measured']:.2f}"
        judged.add_row(q["what"], f"{q['required']:g}", measured, verdict, q["where"])
    console.print(judged)
    console.print(", ".join(f"{k} {v}" for k, v in report["machine"].items()), markup=False)


def show_kinds(console: Console, report: dict[str, Any]) -> None:
    """A line each kind of plan of a row: time, whether it was refused, workspace, registers and blocks an SM."""
    table = Table(title="kinds of plan, kernels alone; registers and blocks an SM by kernel")
    for head in ("row", "kind", "ms", "workspace, MB", "registers", "blocks an SM", ""):
        table.add_column(head)
    for r in report["rows"]:
        for kind, found in r.get("kinds", {}).items():
            own = " *" if kind == r["plan"]["kind"] else ""
            if "error" in found:
                table.add_row(label(r), kind + own, "", "", "", "", found["error"])
                continue
            used, blocks = (", ".join(str(k[key]) for k in found["kernels"]) for key in ("registers", "blocks_an_sm"))
            spilled = sum(k["spilled"] for k in found["kernels"])
            remark = (
                f"refused: {found['refused']}" if found["refused"] else f"{spilled} bytes spilled" if spilled else ""
            )
            table.add_row(
                label(r), kind + own, f"{found['ms']['median']:.3f}", f"{found['workspace_bytes'] / 1e6:.1f}", used,
                blocks, remark,
            )  # fmt: skip
    if table.row_count:
        console.print(table)


def _fastest(row: dict[str, Any]) -> str:
    times = {kind: k["ms"]["median"] for kind, k in row.get("kinds", {}).items() if "ms" in k and not k["refused"]}
    return "" if not times else f"{min(times, key=times.__getitem__)} {choice(row) or 0:.2f}"


def _cell(row: dict[str, Any], peer: str) -> str:
    found = row["ms"].get(peer)
    if found is None:
        return "n/a" if peer in row["missing"] else ""
    device, wall = found["device"], found["wall"]["median"]
    text = f"{device['median']:.3f}"
    return text if wall <= 1.2 * device["median"] else f"{text} / {wall:.3f}"


def _times(row: dict[str, Any]) -> list[str]:
    """`eager 51+90 us` for each peer."""
    return [
        f"{peer} {'+'.join(f'{t:.0f}' for t in times)} us;" if isinstance(times, list) else f"{peer} n/a;"
        for peer, times in row["us_forward_backward"].items()
    ]


def plot(report: dict[str, Any], path: Path) -> None:
    """Bandwidth at the bytes of the floor over the size of a tensor, one panel an order, under the copy's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), sharey=True)
    for order, ax in enumerate(axes):
        rows = [r for r in report["rows"] if r["order"] == order]
        for peer in ("normforge", "torch.compile", "eager", "torch", "timm"):
            points = [(r["plan"]["tensor_bytes"] / 1e6, r["plan"]["floor_bytes"] / ms / 1e9)
                      for r in rows if (ms := device_ms(r, peer)) is not None]  # fmt: skip
            if points:
                ax.scatter(*zip(*points, strict=True), label=peer, s=18)
        fastest: dict[float, float] = {}
        for r in rows:
            if (ms := device_ms(r, "copy of x")) is not None:
                size = r["plan"]["tensor_bytes"] / 1e6
                fastest[size] = max(fastest.get(size, 0.0), 2 * size / ms / 1e3)
        roof = sorted(fastest.items())
        if roof:
            ax.plot(*zip(*roof, strict=True), color="black", label="copy")
            least = [(size, speed * BANDWIDTH[order]) for size, speed in roof if size >= LARGE_BYTES / 1e6]
            if least:
                ax.plot(*zip(*least, strict=True), color="red", linestyle=":", label=f"{BANDWIDTH[order]:.0%} of copy")
        ax.set_xscale("log")
        ax.set_xlabel("MB of one tensor")
        ax.set_title(ORDERS[order])
    axes[0].set_ylabel("TB/s, counting the bytes of the floor")
    top = max((line.get_ydata().max() for ax in axes for line in ax.get_lines()), default=math.nan)
    if math.isfinite(top):
        axes[0].set_ylim(0, 1.1 * top)
    axes[0].legend()
    figure.suptitle(f"{report['machine']['gpu']} ({report['status']})")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
