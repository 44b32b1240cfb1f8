"""What the passes cost and refuse: random layers of the paper's space through the whole static path, on one core.

    python bench/passes.py                    # 100 000 layers, about ten minutes; writes bench/results/passes.json
    python bench/passes.py --layers 3000      # a look

Each layer is drawn (nine of ten uniformly, as in the paper; one with operands among the latest nodes, which makes it
deeper), put through the degeneracy stages, hashed, and simplified, refused or not; what is not refused is
fingerprinted too. Outside the clock, every simplified layer is compared with its original in float64. Exits with 1 if
one differs, or if a refusal has no reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rich.progress import track

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.ir.ops import MOMENT, Op
from normforge.passes import Degeneracy, fingerprint, simplify
from normforge.passes.normal_form.identity import value_of
from normforge.search.space import INITIAL, PAPER, Gene, Genotype
from normforge.streams import stream

RESULTS = Path(__file__).parent / "results" / "passes.json"
SHAPE, GROUPS = (3, 4, 2, 3), 2
LEAST_PER_SECOND, MOST_AT_99 = 300, 50  # layers; ms


def deep_genotype(rng: np.random.Generator, nodes: int) -> Genotype:
    """Like `PAPER.random`, operands among the last four nodes, or x."""
    names = tuple(PAPER.primitives)
    genes = []
    for k in range(nodes):
        name = names[rng.integers(len(names))]
        latest = [0, *range(max(INITIAL, INITIAL + k - 3), INITIAL + k)]
        genes.append(Gene(name, tuple(int(rng.choice(latest)) for _ in range(PAPER.primitives[name].arity))))
    return tuple(genes)


def draw(seed: int, index: int) -> Graph:
    """The layer with this number."""
    rng = stream(seed, "passes", index)
    return PAPER.to_graph(PAPER.random(rng) if index % 10 else deep_genotype(rng, 10))


def depends_and_nests(graph: Graph) -> tuple[bool, bool]:
    """Does x occur, and does a moment stand inside a moment of something with x?"""
    level: dict[object, int] = {}
    for n in graph.nodes:
        below = max((level[a] for a in n.args), default=-1)
        own = n.op in MOMENT and below >= 0 and bool(n.args[0].axes & n.reduced)
        level[n] = 0 if n.op is Op.INPUT else below + own
    deepest = level[graph.output]
    return deepest >= 0, deepest >= 2


def differs(graph: Graph, form: Graph, seed: int) -> bool:
    """Compare two forms on probe inputs wherever both are finite.

    Where a change of x by rounding moves the layer itself by more than rounding, two forms of it cannot be compared:
    the difference is measured by that.
    """
    rng = np.random.default_rng(seed)
    values = {"x": rng.standard_normal(SHAPE)}
    for p in graph.params:
        values[p.name] = p.attr[2] + 0.5 * rng.standard_normal(SHAPE[1] if p.axes else 1)
    moved = {k: v * (1 + 2.0**-48) for k, v in values.items()}
    before, again, after = (
        evaluate(g, v, groups=GROUPS)["y"] for g, v in ((graph, values), (graph, moved), (form, values))
    )
    both = np.isfinite(before) & np.isfinite(after) & np.isfinite(again)
    with np.errstate(all="ignore"):
        error = np.abs(after - before)[both]
        allowed = 1e-9 * (1 + np.abs(before[both])) + 256 * np.abs(again - before)[both]
    return bool(np.any(error > allowed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; by default bench/results/passes.json, where all are drawn")
    options = parser.parse_args()
    fates: Counter[str] = Counter()
    stages: dict[str, list[float]] = {}
    path, funnel = [], []
    seen: set[str] = set()
    prints: set[str] = set()
    wrong: list[str] = []
    occurs = depend = nested = 0
    simplify(draw(options.seed, 0))  # imports sympy
    for index in track(range(options.layers), "layers", disable=not sys.stderr.isatty()):
        graph = draw(options.seed, index)
        has_x, nests = depends_and_nests(graph)
        occurs, nested = occurs + has_x, nested + nests
        start = time.perf_counter()
        findings, seconds = Degeneracy().timed(graph)
        key = graph.hash
        if findings:
            fate = findings[0].stage.value
            if not findings[0].reason:
                wrong.append(f"refused without a reason: {graph}")
        elif key in seen:
            fate = "duplicate by hash"
        else:
            seen.add(key)
            at = time.perf_counter()
            numbers = fingerprint(graph)
            seconds["fingerprint"] = time.perf_counter() - at
            fate = "duplicate by fingerprint" if numbers in prints else "kept"
            if numbers:
                prints.add(numbers)
        funnel.append(time.perf_counter() - start)
        at = time.perf_counter()
        form = simplify(graph)
        end = time.perf_counter()
        seconds["simplify"] = end - at
        path.append(end - start)
        fates[fate] += 1
        for stage, t in seconds.items():
            stages.setdefault(stage, []).append(t)
        if has_x:
            space, value = value_of(graph)
            depend += space.depends(value)
        if differs(graph, form, index):
            wrong.append(f"simplified into another function: {graph}  ->  {form}")
    times = np.array(path) * 1e3
    result = {
        "layers": options.layers,
        "with x": occurs,
        "that depend on x": depend,
        "with nested moments": nested,
        "fates": dict(fates.most_common()),
        "ms a layer": {
            "mean": times.mean(),
            "median": float(np.median(times)),
            "99 %": float(np.percentile(times, 99)),
            "largest": times.max(),
        },
        "layers a second": 1e3 / times.mean(),
        "layers a second without simplify": 1 / float(np.mean(funnel)),
        "ms by stage": {
            name: {"asked": len(t), "mean": float(np.mean(t)) * 1e3, "99 %": float(np.percentile(t, 99)) * 1e3}
            for name, t in stages.items()
        },
        "wrong": wrong[:20],
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=2, default=float)
    print(text)
    out = options.out or (RESULTS if options.layers >= 100_000 else None)
    if out is not None:
        out.write_text(text + "\n")
    for line in wrong:
        print(line, file=sys.stderr)
    short = (
        result["layers a second"] < LEAST_PER_SECOND or times[np.argsort(times)[int(0.99 * len(times))]] > MOST_AT_99
    )
    if short:
        print(f"slower than {LEAST_PER_SECOND} layers a second, or than {MOST_AT_99} ms for 99 of 100", file=sys.stderr)
    return int(bool(wrong) or short)


if __name__ == "__main__":
    sys.exit(main())
