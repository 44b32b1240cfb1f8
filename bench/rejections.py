"""The two rejections, measured: what would have become of the layers that they refuse, and of those that they pass?

    python bench/rejections.py              # trains whatever bench/results/rejections.jsonl lacks, then the tables
    python bench/rejections.py --report     # the tables alone
    python bench/rejections.py --out FILE --layers 50   # from the start, smaller

The first random layers of the paper's space that depend on x, each function once, go through probing, quality,
stability and full training on every data set and network asked for, none of which stops them. The named layers do so
with three seeds. From that: the share that each stage refuses, the time that it saves, how many that fail full
training it passes, how many that train well it refuses; and where the named layers rank among the random ones.

Failed: full training is not finite, or ends below twice chance. Well trained: a validation accuracy at least that of
the weakest named layer (mean of its seeds, failed seeds not counted).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import machine, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import normforge as nf
from normforge.ir.graph import Graph
from normforge.passes import Check, Degeneracy
from normforge.search.config import load
from normforge.search.funnel import UNDECIDED
from normforge.search.space import PAPER, from_json, to_json
from normforge.streams import stream

DEPENDS = Degeneracy((Check.TYPE, Check.DEPENDENCE))
RESULTS = Path(__file__).parent / "results" / "rejections.jsonl"
NAMED = (
    "bn-relu", "bn-silu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-b1", "evonorm-b2", "evonorm-s0", "evonorm-s1",
    "evonorm-s2", "frn-tlu", "layernorm-gelu", "rmsnorm", "dyt", "derf",
)  # fmt: skip
SEEDS = 3
SEED = 11  # of the draws


def random_layers(count: int) -> Iterator[tuple[str, list[list[Any]]]]:
    """The first distinct ones that depend on x, and their names."""
    seen: set[str] = set()
    for index in itertools.count():
        genotype = PAPER.random(stream(SEED, "rejections", index))
        graph = PAPER.to_graph(genotype)
        try:
            if DEPENDS.run(graph) or graph.hash in seen:
                continue
        except UNDECIDED:
            continue
        seen.add(graph.hash)
        yield f"random-{index}", to_json(genotype)
        if len(seen) == count:
            return


def graph_of(layer: str, genes: list[list[Any]] | None) -> Graph:
    """A named layer, or a drawn one."""
    return PAPER.to_graph(from_json(genes)) if genes else nf.parse(layer)


def job(layer: str, genes: list[list[Any]] | None, data: str, network: str, repeat: int) -> dict[str, Any]:
    """All stages on one network, whatever each of them says."""
    import torch

    from normforge.probing.probe import probe
    from normforge.search.evaluate import Evaluation
    from normforge.search.tasks import Task

    torch.set_num_threads(1)
    config = load("digits", [f"data.source={data}", f"networks.use={network}"])
    graph = graph_of(layer, genes)
    evaluation = Evaluation(Task("0", graph, config, repeat))
    row: dict[str, Any] = {"layer": layer, "genes": genes, "data": data, "network": network, "repeat": repeat}
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    refused: dict[str, str] = {}
    if findings := [*Degeneracy((Check.RANGE, Check.FORM)).run(graph), *probe(graph).findings]:
        refused["probing"] = findings[0].reason
    seconds["probing"] = time.perf_counter() - start
    for stage in ("quality", "stability", "full"):
        start = time.perf_counter()
        try:
            piece = evaluation.piece(stage, network)
        except RuntimeError as e:
            piece = {"refused": ["error", str(e).splitlines()[0]]}
        if "refused" in piece:
            refused[stage] = piece["refused"][1]
        if stage == "quality":
            row["accuracy at quality"] = piece.get("accuracy")
        else:
            row |= {k: v for k, v in piece.items() if k != "refused"}
        seconds[stage] = time.perf_counter() - start
    return row | {"refused": refused, "seconds": {k: round(v, 3) for k, v in seconds.items()}}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of."""
    return row["layer"], row["data"], row["network"], row["repeat"]


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows asked for; those that the file lacks are trained, the named layers first."""
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {key(r) for r in rows}
    places = list(itertools.product(options.data.split(","), options.networks.split(",")))
    named_places = itertools.product(options.data.split(","), options.named_networks.split(","))
    jobs = [(n, None, d, w, r) for d, w in named_places for n in NAMED for r in range(SEEDS)]
    jobs += [(n, genes, d, w, 0) for n, genes in random_layers(options.layers) for d, w in places]
    missing = [j for j in jobs if (j[0], *j[2:]) not in done]
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(options.workers, mp_context=context) as pool,
        options.out.open("a") as out,
        Progress(console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("training", total=len(missing))
        for future in as_completed([pool.submit(job, *j) for j in missing]):
            row = future.result()
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            progress.advance(bar)
    wanted = {(j[0], *j[2:]) for j in jobs}
    return [r for r in rows if key(r) in wanted]


def failed(row: dict[str, Any], classes: int) -> bool:
    """Does full training fail?"""
    return "full" in row["refused"] or (row.get("accuracy") or 0.0) < 2 / classes


def named_table(rows: list[dict[str, Any]], classes: int) -> list[dict[str, Any]]:
    """A row for each named layer, data set and network: refusals by stage and seed, accuracy, gradient norm."""
    table = []
    for (layer, data, network), group in itertools.groupby(sorted(rows, key=key), key=lambda r: key(r)[:3]):
        group = list(group)
        good = [r["accuracy"] for r in group if not failed(r, classes)]
        table.append(
            {
                "layer": layer, "data": data, "network": network, "seeds": len(group),
                "accuracy": round(statistics.fmean(good), 4) if good else None,
                "deviation": round(statistics.stdev(good), 4) if len(good) > 1 else 0.0,
                "failed": len(group) - len(good),
                "refused": [f"{s} (seed {r['repeat']}): {why}" for r in group for s, why in r["refused"].items()],
                "largest gradient": max((r.get("gradient") or math.inf) for r in group),
            }
        )  # fmt: skip
    return table


def summary(rows: list[dict[str, Any]], well: float, classes: int) -> dict[str, Any]:
    """What the stages do on one data set and network; a layer counts for a stage if it reaches it."""
    trained_well = [r for r in rows if not failed(r, classes) and r["accuracy"] >= well]
    bad = [r for r in rows if failed(r, classes)]
    result: dict[str, Any] = {
        "layers": len(rows), "fail full training": len(bad), "train well": len(trained_well), "well is": round(well, 4),
        "full training of all, s": round(sum(_full_seconds(r) for r in rows)),
    }  # fmt: skip
    reached = rows
    spent = 0.0
    for stage in ("probing", "quality", "stability"):
        refused = [r for r in reached if stage in r["refused"]]
        spent += sum(r["seconds"][stage] for r in reached)
        result[stage] = {
            "reached": len(reached),
            "refused": len(refused),
            "share": round(len(refused) / len(reached), 4) if reached else None,
            "refused that train well": len([r for r in refused if r in trained_well]),
            "passed that fail": len([r for r in reached if r not in refused and r in bad]),
            "its seconds": round(sum(r["seconds"][stage] for r in reached)),
            "layers": [_name(r) for r in refused if r in trained_well],
        }
        reached = [r for r in reached if r not in refused]
    rest = sum(r["seconds"]["full"] for r in reached)
    with_stages = spent + rest
    result["passed all"] = len(reached)
    result["with the stages, s"] = round(with_stages)
    result["times faster"] = round(sum(_full_seconds(r) for r in rows) / with_stages, 2)
    return result


def _full_seconds(row: dict[str, Any]) -> float:
    """Of training to the end without any stage; the quality stage is its first half."""
    return row["seconds"]["quality"] + row["seconds"]["full"]


def _name(row: dict[str, Any]) -> str:
    return f"{graph_of(row['layer'], row['genes'])}: {row['accuracy']:.3f}"


def report(rows: list[dict[str, Any]], classes: int = 10) -> dict[str, Any]:
    """All tables."""
    named = [r for r in rows if r["genes"] is None]
    random = [r for r in rows if r["genes"] is not None]
    table = named_table(named, classes)
    result: dict[str, Any] = {"named": table, "stages": {}, "ranks": {}}
    for place in sorted({(r["data"], r["network"]) for r in random}):
        here = [t for t in table if (t["data"], t["network"]) == place]
        well = min((t["accuracy"] for t in here if t["accuracy"] is not None), default=1.0)
        rows_here = [r for r in random if (r["data"], r["network"]) == place]
        result["stages"][" ".join(place)] = summary(rows_here, well, classes)
        scores = [r["accuracy"] for r in rows_here if not failed(r, classes)]
        result["ranks"][" ".join(place)] = {
            t["layer"]: 1 + sum(s > t["accuracy"] for s in scores) for t in here if t["accuracy"] is not None
        }
    return result


def show(result: dict[str, Any]) -> None:
    """The tables for people."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("layer", "data", "network", "accuracy", "failed", "largest gradient", "refused", box=None)
    for t in result["named"]:
        accuracy = "-" if t["accuracy"] is None else f"{t['accuracy']:.3f} ± {t['deviation']:.3f}"
        refused = ", ".join(sorted({r.split(" (")[0] for r in t["refused"]})) or "no"
        table.add_row(
            t["layer"], t["data"], t["network"], accuracy, f"{t['failed']}/{t['seeds']}",
            f"{t['largest gradient']:.1e}", refused,
        )  # fmt: skip
    console.print(table)
    for place, stages in result["stages"].items():
        console.print(f"\n{place}", style="bold")
        for what, value in stages.items():
            console.print(f"  {what}: {value}", highlight=False, soft_wrap=True)
        console.print(f"  rank among the random layers: {result['ranks'][place]}", highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--data", default="digits,fractals")
    parser.add_argument("--networks", default="resnet", help="for the random layers")
    parser.add_argument("--named-networks", default="resnet,mobilenet,efficientnet", help="for the named ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines, one a trained layer; tables beside it")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines] if options.report else train(options)
    result = report(rows)
    show(result)
    write(options.out.with_suffix(".json"), {"machine": machine(), **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
