"""What the signal gate refuses that would have trained: random layers trained on the micro rung whatever it says.

    python bench/gate.py                     # long; stopped, it goes on where it was
    python bench/gate.py --layers 20 --seeds 1

Layers are drawn as the paper draws them, each behaviour once; all come through the static stages and probing, and none
is asked for z before it has trained. A layer trains well if its loss is below that of tanh(x), on the same weights.
What trains well is put to the stability stage on the network of the micro rung and on the three of the presets.

The known layers that the gate must not refuse are asked for z with several seeds of its noise, and go through the micro
rung and all stages on the three networks, of fractals and of digits, each with several sets of weights.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from common import machine, write
from evolution import Judge, judging
from rich.console import Console
from rich.progress import track
from scipy.stats import binomtest

import normforge as nf
from normforge.ir.graph import Graph
from normforge.passes import simplify
from normforge.probing.signal import signal
from normforge.search.config import load
from normforge.search.filters import Filters
from normforge.search.space import PAPER
from normforge.streams import stream

RESULT = Path(__file__).parent / "results" / "gate.json"
GATE, LINEARITY = 1.5, 2.0
KNOWN = ("bn-relu", "gn-silu", "evonorm-b0", "evonorm-s0")
NOISES = 20  # seeds of the gate
LEVEL = "tanh(x) * gamma + beta"


def drawn(count: int, seed: int) -> list[Graph]:
    """The first random layers that come through all filters but the gate."""
    filters = Filters(load("digits", ["filters.behaviour=0.995", "filters.probing=true"]))
    found: list[Graph] = []
    index = 0
    while len(found) < count:
        graph = PAPER.to_graph(PAPER.random(stream(seed, "gate", index)))
        refused, keys = filters.refuse(graph)
        if refused is None:
            filters.add(index, keys)
            found.append(graph)
        index += 1
    return found


def share(part: int, whole: int) -> dict[str, Any]:
    """A share, with its 95 % interval (Wilson)."""
    low, high = binomtest(part, whole).proportion_ci(method="wilson") if whole else (0.0, 1.0)
    return {"of": whole, "count": part, "interval": [round(low, 3), round(high, 3)]}


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Losses of all, z of all, and who of those that train well is stable."""
    graphs = drawn(options.layers, options.seed)
    plain = Judge(judging(options), options.out / "plain", console)
    try:
        level = plain.losses([nf.parse(LEVEL)], [0])[0]
        losses = plain.losses(graphs, [0])
        well = [g for g, loss in zip(graphs, losses, strict=True) if loss < level]
        stable = {"plain": plain.stable(well)}
    finally:
        plain.close()
    three = Judge(judging(options, "networks.use=resnet,mobilenet,efficientnet"), options.out / "three", console)
    try:
        stable["three networks"] = three.stable(well)
    finally:
        three.close()
    found = [signal(g) for g in track(graphs, "z", console=console)]
    refused = {id(g): s.gated(LINEARITY) > GATE for g, s in zip(graphs, found, strict=True)}
    fates: Counter[str] = Counter()
    for graph, loss in zip(graphs, losses, strict=True):
        how = "well" if loss < level else "worse" if math.isfinite(loss) else "not"
        fates[f"trains {how}, {'refused' if refused[id(graph)] else 'let through'}"] += 1
    rows = [
        {
            "loss": round(losses[graphs.index(g)], 4),
            "refused": refused[id(g)],
            "stable": {name: all_of[k] for name, all_of in stable.items()},
            "layer": str(simplify(g)),
        }
        for k, g in enumerate(well)
    ]
    gone = [r for r in rows if r["refused"]]
    return {
        "level": level,
        "fates": dict(sorted(fates.items())),
        "of those that train well, the gate refuses": share(len(gone), len(rows)),
        "of these, stability refuses": {n: share(sum(not r["stable"][n] for r in gone), len(gone)) for n in stable},
        "of those that train well and are stable on three networks, the gate refuses": share(
            sum(r["stable"]["three networks"] for r in gone), sum(r["stable"]["three networks"] for r in rows)
        ),
        "those that train well": sorted(rows, key=lambda r: r["loss"]),
    }


def known(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The known layers at the gate, and what becomes of each on the rungs, by seed of the weights."""
    gated = {n: [signal(nf.parse(n), seed=s).gated(LINEARITY) for s in range(NOISES)] for n in KNOWN}
    report: dict[str, Any] = {
        "seeds of the gate": NOISES,
        "largest z": {n: round(max(z), 3) for n, z in gated.items()},
        "refused by the gate": {n: sum(z > GATE for z in found) for n, found in gated.items()},
    }
    asked = [(n, rung, seed) for n in KNOWN for seed in range(options.seeds) for rung in ("micro", "")]
    for data in ("fractals", "digits"):
        config = load("hour", [f"data.source={data}", f"workers.count={options.workers}"])
        judge = Judge(config, options.out / f"known-{data}", console)
        try:
            found = judge.outcomes([(nf.parse(n), rung, seed) for n, rung, seed in asked])
        finally:
            judge.close()
        report[data] = {
            f"{n}, {rung or 'all stages'}": [
                {"fate": o.fate.value, **({"reason": o.reason} if o.reason else {}), "accuracy": rounded(o.accuracy)}
                for (name, on, _), o in zip(asked, found, strict=True)
                if (name, on) == (n, rung)
            ]
            for n in KNOWN
            for rung in ("micro", "")
        }
    return report


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--seeds", type=int, default=5, help="sets of weights of the known layers")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/gate"), help="of the trainings")
    parser.add_argument("--results", type=Path, default=RESULT)
    options = parser.parse_args()
    options.trained = 1.0
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    result = {"known layers": known(options, console), **measure(options, console)}
    console.print_json(data=result)
    write(options.results, {"machine": machine(), **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
