"""Are the refusals honest? Random layers are trained whatever the later degeneracy stages say, and both are compared.

    python bench/honesty.py                 # goes on from bench/results/honesty.jsonl until 500 layers are refused
    python bench/honesty.py --report        # the table of what was trained so far, by the stages as they are now

Layers are drawn from the paper's space; those that the type and dependence stages refuse, and repetitions of a
function, are left out. Each is trained as in the search's quality test: the first 100 steps of the recipe, in the
ResNet-v2 proxy on digits. It passes with a validation accuracy of 20 % or more.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np

from normforge.ir.graph import Graph
from normforge.passes import Degeneracy, Stage
from normforge.search.config import Config
from normforge.search.space import Genotype, from_json, random_genotype, to_graph, to_json
from normforge.search.streams import stream

FIRST = Degeneracy((Stage.TYPE, Stage.DEPENDENCE))
RESULTS = Path(__file__).parent / "results" / "honesty.jsonl"


def drawn(seed: int, start: int) -> Iterator[tuple[int, Genotype]]:
    """Random genotypes with their numbers, without end."""
    index = start
    while True:
        yield index, random_genotype(stream(seed, "honesty", index), 10)
        index += 1


def train(graph: Graph, config: Config) -> tuple[float, str]:
    """Validation accuracy after the quality steps, and why it stopped before, if it did."""
    import torch

    from normforge.search.data import CLASSES, digits
    from normforge.search.proxy import resnet_v2
    from normforge.search.streams import torch_seed
    from normforge.search.train import Diverged, Training, evaluate

    torch.set_num_threads(1)
    import normforge as nf

    data = digits(config.seed)
    model = resnet_v2(
        config.network,
        lambda channels: nf.compile(graph, channels=channels, backend="eager"),
        in_channels=data.train.images.shape[1],
        classes=CLASSES,
        seed=torch_seed(config.seed, "weights", 0),
    )
    training = Training(model, data.train, config.recipe, stream(config.seed, "batches", 0))
    try:
        training.advance(config.quality.steps)
    except Diverged as diverged:
        return 0.0, str(diverged)
    loss, accuracy = evaluate(training.model, data.validation)
    return (accuracy, "") if np.isfinite(loss) else (0.0, f"validation loss {loss}")


def job(index: int, genes: list[list[object]]) -> dict[str, object]:
    """One row of the results."""
    graph = to_graph(from_json(genes))
    accuracy, why = train(graph, Config())
    return {"index": index, "genes": genes, "accuracy": round(accuracy, 4), "why": why}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines, one a trained layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=100000, help="most layers to train")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    seen = {to_graph(from_json(r["genes"])).hash for r in rows}
    start = max((r["index"] for r in rows), default=-1) + 1
    queue = drawn(options.seed, start)
    with ProcessPoolExecutor(options.workers) as pool, options.out.open("a") as out:
        waiting: set[Future[dict[str, object]]] = set()
        done = len(rows)
        while done < options.layers:
            while len(waiting) < 2 * options.workers:
                index, genotype = next(queue)
                graph = to_graph(genotype)
                if FIRST.run(graph) or graph.hash in seen:
                    continue
                seen.add(graph.hash)
                waiting.add(pool.submit(job, index, to_json(genotype)))
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                out.write(json.dumps(future.result()) + "\n")
                out.flush()
                done += 1
                if done % 20 == 0:
                    print(f"{done} layers trained, index {index}", flush=True)


if __name__ == "__main__":
    main()
