"""The filters before a slot, measured: what each costs and refuses on random layers, and the search among behaviours.

    python bench/filters.py                        # some minutes on one core
    python bench/filters.py --layers 2000 --stored 1000

Layers of the paper's space are drawn as a search draws fresh ones, and go through all filters (`SETTINGS`); what comes
through takes a slot, and later ones are compared with it.
The same draws are then made through the static stages alone. Every known layer goes through all filters too, and must
come through but for those that the signal gate is there for.

The behaviours of a hundred thousand layers are stood in for by mixtures of real ones. Before it is timed, the search
among them is compared with one that looks at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import machine, write
from rich.console import Console
from rich.progress import track

from normforge.ir import layers
from normforge.passes import Degeneracy
from normforge.probing.behaviour import behaviour, cosines
from normforge.search.behaviours import Behaviours
from normforge.search.config import load
from normforge.search.filters import Filters
from normforge.search.funnel import UNDECIDED, Fate
from normforge.search.space import PAPER
from normforge.streams import stream

RESULT = Path(__file__).parent / "results" / "filters.json"
SETTINGS = [
    "filters.family=true",
    "filters.behaviour=0.995",
    "filters.start=0.9999",
    "filters.signal=1.5",
    "filters.probing=true",
]
NEAR = 0.995
MIXED = 400  # real behaviours that the stored ones are mixtures of
QUERIES = 500


def drawn(count: int, settings: list[str], seed: int) -> dict[str, Any]:
    """Random layers through filters: fates, seconds by stage, and layers a second."""
    filters = Filters(load("digits", settings))
    fates: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    asked: Counter[str] = Counter()
    start = time.perf_counter()
    for index in track(range(count), "layers", console=Console(stderr=True)):
        refused, keys = filters.refuse(PAPER.to_graph(PAPER.random(stream(seed, "filters", index))))
        for stage, took in keys.seconds.items():
            seconds[stage] += took
            asked[stage] += 1
        if refused is None:
            filters.add(index, keys)
            fates["kept"] += 1
        else:
            by = refused.reason.partition(":")[0] if refused.fate is Fate.DUPLICATE else refused.fate.value
            fates[f"duplicate by {by}" if refused.fate is Fate.DUPLICATE else by] += 1
    whole = time.perf_counter() - start
    return {
        "layers": count,
        "fates": dict(fates.most_common()),
        "ms where asked": {stage: round(1e3 * seconds[stage] / n, 2) for stage, n in asked.items()},
        "drawn a second": round(count / whole, 1),
        "kept a second": round(fates["kept"] / whole, 2),
    }


def keys_alone(count: int, seed: int) -> dict[str, float]:
    """Mean milliseconds of each key of a layer that is not degenerate, which the static stages time together."""
    seconds: defaultdict[str, float] = defaultdict(float)
    found = index = 0
    while found < count:
        graph = PAPER.to_graph(PAPER.random(stream(seed, "filters", index)))
        index += 1
        try:
            if Degeneracy().run(graph):
                continue
            for name, ask in (
                ("hash", lambda g: g.hash),
                ("family", lambda g: g.family_hash),
                ("behaviour", behaviour),
            ):
                start = time.perf_counter()
                ask(graph)
                seconds[name] += time.perf_counter() - start
        except UNDECIDED:
            continue
        found += 1
    return {name: round(1e3 * s / count, 2) for name, s in seconds.items()}


def known() -> dict[str, str]:
    """What becomes of the named layers, one after the other; nothing where they come through."""
    filters, fates = Filters(load("digits", SETTINGS)), {}
    plain = {name: graph for name, graph in layers.items() if graph.is_plain}
    for index, (name, graph) in enumerate(plain.items()):
        refused, keys = filters.refuse(graph)
        if refused is None:
            filters.add(index, keys)
        fates[name] = "" if refused is None else f"{refused.fate}: {refused.reason}"
    return fates


def search(stored: int) -> dict[str, Any]:
    """Milliseconds of a search, for layers that are stored and for others."""
    real, index = [], 0
    while len(real) < MIXED:
        graph = PAPER.to_graph(PAPER.random(stream(1, "filters", index)))
        index += 1
        try:
            vector = None if Degeneracy().run(graph) else behaviour(graph)
        except UNDECIDED:
            continue
        if vector is not None:
            real.append(vector)
    base, rng = np.array(real), stream(0, "mixtures", 0)

    def mixture() -> np.ndarray:
        some = base[rng.integers(MIXED, size=4)] * np.append(1.0, 0.6 * rng.standard_normal(3))[:, None]
        made = some.sum(0) + 0.01 * rng.standard_normal(base.shape[1])
        return (np.rint(made / np.linalg.norm(made) * 2**20) / 2**20).astype(np.float32)

    index_of, vectors = Behaviours(), []
    start = time.perf_counter()
    for i in track(range(stored), "behaviours", console=Console(stderr=True)):
        vectors.append(mixture())
        index_of.add(i, vectors[-1])
    adding = time.perf_counter() - start
    every = np.array(vectors)
    for vector in [*base[:20], *every[rng.integers(stored, size=20)]]:
        found = np.concatenate([cosines(part, vector) for part in np.array_split(every, 1 + stored // 10_000)])
        best = int(np.argmax(found))
        if index_of.nearest(vector, NEAR) != ((best, found[best]) if found[best] >= NEAR else None):
            raise SystemExit("the search among behaviours missed the nearest")
    report: dict[str, Any] = {"stored": stored, "ms to make and add one": round(1e3 * adding / stored, 3)}
    for name, asked in (
        ("stored", every[rng.integers(stored, size=QUERIES)]),
        ("fresh", base[rng.integers(MIXED, size=QUERIES)]),
    ):
        times = []
        for vector in asked:
            start = time.perf_counter()
            index_of.nearest(vector, NEAR)
            times.append(1e3 * (time.perf_counter() - start))
        report[f"ms, {name}: p20 median p80 p99"] = [round(float(t), 3) for t in np.percentile(times, [20, 50, 80, 99])]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20_000)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "settings": SETTINGS}
    for name, measure in (
        ("search", lambda: search(args.stored)),
        ("known layers", known),
        ("ms of a key", lambda: keys_alone(min(200, args.layers // 20), args.seed)),
        ("all filters", lambda: drawn(args.layers, SETTINGS, args.seed)),
        ("static stages alone", lambda: drawn(args.layers, [], args.seed)),
    ):
        report[name] = measure()
        print(f"{name}: {report[name]}", flush=True)
        write(args.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
