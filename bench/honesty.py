"""Are the refusals honest? Random layers are trained whatever the later degeneracy stages say, and both are compared.

    python bench/honesty.py --report     # the table of the layers in bench/results/honesty.jsonl, by today's stages
    python bench/honesty.py              # goes on training until the later stages have refused 500
    python bench/honesty.py --out FILE   # from the start: about half an hour on two cores

Layers are drawn from the paper's space; those that the type and dependence stages refuse, and repetitions of a
function, are left out. Each is trained as in the search's quality test: the first 100 steps of the recipe, in the
ResNet-v2 proxy on digits. It passes with a validation accuracy of 20 % or more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from normforge.ir.graph import Graph
from normforge.passes import Check, Degeneracy
from normforge.search.config import Config
from normforge.search.space import PAPER, Genotype, from_json, to_json
from normforge.streams import stream

FIRST = Degeneracy((Check.TYPE, Check.DEPENDENCE))
PASS = Config().quality.threshold / 10  # of ten classes
RESULTS = Path(__file__).parent / "results" / "honesty.jsonl"


def drawn(seed: int, start: int) -> Iterator[tuple[int, Genotype]]:
    """Random genotypes with their numbers, without end."""
    index = start
    while True:
        yield index, PAPER.random(stream(seed, "honesty", index))
        index += 1


def train(graph: Graph, config: Config) -> tuple[float, str]:
    """Validation accuracy after the quality steps, and why it stopped before, if it did."""
    import torch

    from normforge.search.evaluate import Evaluation
    from normforge.search.tasks import Task
    from normforge.train.loop import Diverged, evaluate

    torch.set_num_threads(1)
    evaluation = Evaluation(Task("0", graph, config), backend="eager")
    training = evaluation.training("resnet")
    try:
        training.advance(config.quality.steps)
    except Diverged as diverged:
        return 0.0, str(diverged)
    loss, accuracy = evaluate(training.model, evaluation.data.validation, config.recipe)
    return (accuracy, "") if np.isfinite(loss) else (0.0, f"validation loss {loss}")


def job(index: int, genes: list[list[Any]]) -> dict[str, Any]:
    """One row of the results."""
    graph = PAPER.to_graph(from_json(genes))
    accuracy, why = train(graph, Config())
    return {"index": index, "genes": genes, "accuracy": round(accuracy, 4), "why": why}


def verdict(graph: Graph) -> str:
    """The later stage that refuses a layer, or "kept"."""
    from normforge.probing.probe import probe

    findings = Degeneracy((Check.RANGE, Check.FORM)).run(graph) or probe(graph).findings
    return findings[0].stage.value if findings else "kept"


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The confusion table, with exact (Clopper and Pearson) 95 % intervals of the shares that would have passed."""
    import torch
    from rich.progress import track
    from scipy.stats import binomtest

    torch.set_num_threads(1)
    counts: Counter[tuple[str, bool]] = Counter()
    surprises = []
    for r in track(rows, "asking the stages", disable=not sys.stderr.isatty()):
        graph = PAPER.to_graph(from_json(r["genes"]))
        if FIRST.run(graph):
            continue  # refused before, by the code as it is now
        stage, passed = verdict(graph), r["accuracy"] >= PASS
        counts[stage, passed] += 1
        if passed and stage not in ("kept", "form"):
            surprises.append({"layer": str(graph), "stage": stage, "accuracy": r["accuracy"]})

    def row(*stages: str) -> dict[str, Any]:
        passed, failed = (sum(counts[s, p] for s in stages) for p in (True, False))
        if not passed + failed:
            return {"passed": 0, "failed": 0}
        interval = binomtest(passed, passed + failed).proportion_ci(0.95)
        share = {"share": passed / (passed + failed), "low": interval.low, "high": interval.high}
        return {"passed": passed, "failed": failed, "passed, share": share}

    return {
        "layers": sum(counts.values()),
        "refused by range": row("range"),
        "refused by form (affine)": row("form"),
        "refused by probing": row("probing"),
        "refused, affine aside": row("range", "probing"),
        "kept": row("kept"),
        "refused and would have passed": surprises,
    }


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    print(f"{result['layers']} layers trained {Config().quality.steps} steps")
    print(f"{'':<28}{'failed':>8}{'passed':>8}   share that passed, 95 % interval")
    for name, row in result.items():
        if isinstance(row, dict):
            share = row.get("passed, share")
            text = f"{share['share']:.2%}  ({share['low']:.2%} to {share['high']:.2%})" if share else ""
            print(f"{name:<28}{row['failed']:>8}{row['passed']:>8}   {text}")
    for s in result["refused and would have passed"]:
        print(f"refused by {s['stage']} and reached {s['accuracy']:.1%}: {s['layer']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines, one a trained layer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--refused", type=int, default=500, help="stop when the later stages refuse so many, affine aside"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if not options.report:
        rows = more(rows, options)
    result = report(rows)
    show(result)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


def more(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train layers, after those that are there, until enough are refused."""
    graphs = [PAPER.to_graph(from_json(r["genes"])) for r in rows]
    seen = {g.hash for g in graphs}
    refused = sum(verdict(g) in ("range", "probing") for g in graphs)
    queue = drawn(options.seed, max((r["index"] for r in rows), default=-1) + 1)
    context = get_context("spawn")  # torch is loaded here already, and threads of its own do not survive a fork
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool, options.out.open("a") as out:
        waiting: set[Future[dict[str, Any]]] = set()
        while refused < options.refused:
            while len(waiting) < 2 * options.workers:
                index, genotype = next(queue)
                graph = PAPER.to_graph(genotype)
                if FIRST.run(graph) or graph.hash in seen:
                    continue
                seen.add(graph.hash)
                waiting.add(pool.submit(job, index, to_json(genotype)))
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                row = future.result()
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
                refused += verdict(PAPER.to_graph(from_json(row["genes"]))) in ("range", "probing")
                if len(rows) % 20 == 0:
                    print(f"{len(rows)} layers trained, {refused} refused by range and probing", flush=True)
        for future in waiting:
            future.cancel()
    return rows


if __name__ == "__main__":
    main()
