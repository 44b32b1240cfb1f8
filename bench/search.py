"""How fast is the search? Candidates an hour against eager layers and a plain PyTorch loop; the front end; the store.

    python bench/search.py                 # about an hour on one core
    python bench/search.py --settings digits --candidates 60

Candidates: the first random layers that are neither degenerate nor duplicates, as a search meets them, and the
named layers that a search would find, each evaluated in turn by

- normforge: the search's own harness, its layers compiled;
- eager: the same harness, the layers as torch operations;
- plain: what one would write without it: every layer trained to the end in a loop over a DataLoader, its formula
  written in torch, no stage that refuses.

All three train the same networks on the same images for the same steps, on one thread, and take turns candidate by
candidate. The first evaluation of a layer includes its compilation. Order within a turn rotates. There are two
settings: `digits`, the demo's one network on 8x8 images; and `proxy`, three networks on 32x32 images as in the paper,
with fewer steps, so that compilation weighs more than it would in a search.

The front end draws, mutates, checks, hashes and stores without training; parents have random scores. The store then
takes a million events of the size that the front end writes, one transaction each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common import machine, write
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import normforge as nf
from normforge.ir.graph import Graph
from normforge.search import space
from normforge.search.config import Config, load
from normforge.search.evaluate import Evaluation
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.filters import Filters
from normforge.search.funnel import Outcome, formula
from normforge.search.space import PAPER
from normforge.search.store import Record, Store
from normforge.search.tasks import Task
from normforge.streams import stream, torch_seed
from normforge.train.data import load_data
from normforge.train.networks import build, compiled

RESULT = Path(__file__).parent / "results" / "search.json"
SETTINGS = {
    "digits": [],
    "proxy": [
        "data.source=fractals", "data.fractals.size=32", "networks.use=resnet,mobilenet,efficientnet",
        "recipe.steps=60", "quality.steps=30", "stability.steps=30", "quality.threshold=1.5",
    ],
}  # fmt: skip
NAMED = ("bn-relu", "evonorm-b0", "evonorm-s0", "gn-silu")
WINDOW = 100_000  # stored events between two looks at the clock


def candidates(count: int, config: Config) -> list[tuple[str, Graph]]:
    """The first random layers that a search would evaluate, and the named ones."""
    filters, found, index = Filters(config), [], 0
    while len(found) < count:
        graph = PAPER.to_graph(PAPER.random(stream(config.seed, "ask", index)))
        refused, keys = filters.refuse(graph)
        if not refused:
            filters.add(index, keys)
            found.append((f"random-{index}", graph))
        index += 1
    return found + [(name, nf.parse(name)) for name in NAMED]


def harness(backend: str, config: Config) -> Callable[[Graph], Outcome]:
    """The search's evaluation with one backend."""

    def evaluate(graph: Graph) -> Outcome:
        return Evaluation(Task("0", graph, config), backend).run()

    return evaluate


def plain(config: Config) -> Callable[[Graph], None]:
    """Training to the end on every network, and one evaluation."""
    data = load_data(config.data)
    loader = DataLoader(
        TensorDataset(data.train.images, data.train.labels), config.recipe.batch, shuffle=True, drop_last=True
    )

    def train(graph: Graph) -> None:
        for network in config.networks.use:
            images = data.train.images
            model = build(
                network, config.networks, compiled(graph, "eager"), in_channels=images.shape[1], classes=data.classes,
                size=images.shape[2], seed=torch_seed(0, "weights", 0),
            )  # fmt: skip
            optimizer = torch.optim.SGD(model.parameters(), config.recipe.rate, config.recipe.momentum)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.recipe.steps)
            step = 0
            while step < config.recipe.steps:
                for x, y in loader:
                    optimizer.zero_grad()
                    cross_entropy(model(x), y).backward()
                    optimizer.step()
                    schedule.step()
                    step += 1
                    if step == config.recipe.steps:
                        break
            with torch.no_grad():
                model.eval()(data.validation.images)

    return train


def throughput(config: Config, count: int) -> dict[str, Any]:
    """Seconds of each way for each candidate, and candidates an hour."""
    ways: dict[str, Callable[[Graph], Any]] = {
        "normforge": harness("auto", config), "eager": harness("eager", config), "plain": plain(config),
    }  # fmt: skip
    harness("eager", config)(nf.parse("x * gamma + beta"))  # imports and data
    rows: list[dict[str, Any]] = []
    fates: Counter[str] = Counter()
    stages: dict[str, Counter[str]] = {"normforge": Counter(), "eager": Counter()}
    for turn, (name, graph) in enumerate(track(candidates(count, config), "candidates", console=Console(stderr=True))):
        order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        row: dict[str, Any] = {"layer": name}
        for way in order:
            start = time.perf_counter()
            outcome = ways[way](graph)
            row[way] = round(time.perf_counter() - start, 3)
            if isinstance(outcome, Outcome):
                row[f"{way} fate"] = outcome.fate
                stages[way].update(outcome.seconds)
        fates[row["normforge fate"]] += 1
        rows.append(row)
    random = [r for r in rows if r["layer"].startswith("random")]
    result: dict[str, Any] = {"rows": rows, "fates": fates, "stages": stages}
    for label, part in (("random candidates", random), ("named layers", [r for r in rows if r not in random])):
        seconds = {way: sum(r[way] for r in part) for way in ways}
        result[label] = {
            "an hour": {way: round(3600 * len(part) / s) for way, s in seconds.items()},
            "against eager": round(seconds["eager"] / seconds["normforge"], 2),
            "against plain": round(seconds["plain"] / seconds["normforge"], 2),
        }
    return result


def front_end(config: Config, count: int, directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Candidates a second: proposals, half of them children, the static stages, one event each."""
    evolution = TournamentEvolution(config.evolution, PAPER, config.seed, lambda g: PAPER.to_graph(g).hash)
    rng = stream(0, "scores", 0)
    store, filters, fates = Store(directory, write=True), Filters(config), Counter()
    examples = []
    start = time.perf_counter()
    for index in track(range(count), "front end", console=Console(stderr=True)):
        proposal = evolution.ask(index)
        graph = PAPER.to_graph(proposal.genotype)
        refused, keys = filters.refuse(graph)
        data: dict[str, Any] = {"genes": space.to_json(proposal.genotype), "parents": list(proposal.parents)}
        if refused:
            data |= refused.to_json()
            fates[refused.fate] += 1
        else:
            filters.add(index, keys)
            data |= keys.stored | {"fate": "scored", "formula": formula(graph)}
            fates["kept"] += 1
            evolution.tell(Member(index, proposal.genotype, tuple(rng.random(len(config.networks.use)))))
        store.append([Record("candidate", str(index), 0.0, data)])
        if len(examples) < 1000:
            examples.append(data)
    seconds = time.perf_counter() - start
    store.close()
    return {"candidates": count, "a second": round(count / seconds), "fates": fates}, examples


def store_events(count: int, examples: list[dict[str, Any]], directory: Path) -> dict[str, Any]:
    """Events a second, window by window; and reading them."""
    store = Store(directory, write=True)
    rates, start = [], time.perf_counter()
    for i in track(range(count), "store", console=Console(stderr=True)):
        store.append([Record("candidate", str(i), float(i), examples[i % len(examples)])])
        if (i + 1) % WINDOW == 0:
            now = time.perf_counter()
            rates.append(round(WINDOW / (now - start)))
            start = now
    start = time.perf_counter()
    read = sum(1 for _ in store.records("candidate"))
    whole = time.perf_counter() - start
    rng = stream(0, "lookups", 0)
    start = time.perf_counter()
    for index in rng.integers(count, size=1000):
        assert store.record("candidate", str(index)) is not None
    lookup = (time.perf_counter() - start) / 1000
    store.close()
    size = sum(f.stat().st_size for f in directory.iterdir())
    text = statistics.fmean(len(json.dumps(e)) for e in examples)
    return {
        "events": read, "a second, by window": rates, "last over first": round(rates[-1] / rates[0], 2),
        "read all, s": round(whole, 1), "look one up, us": round(lookup * 1e6), "MiB": round(size / 2**20),
        "bytes on disk for a byte of JSON": round(size / count / text, 2),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=12, help="random ones, in each setting")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--front-end", type=int, default=3000, help="candidates")
    parser.add_argument("--events", type=int, default=1_000_000, help=f"at least {WINDOW}")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {k: str(v) for k, v in vars(args).items() if k != "output"}
    report: dict[str, Any] = {"machine": machine(), "options": options, "throughput": {}}
    for name in args.settings.split(","):
        report["throughput"][name] = found = throughput(load("digits", SETTINGS[name]), args.candidates)
        for label in ("random candidates", "named layers"):
            print(f"{name}, {label}: {found[label]}")
        for way, seconds in found["stages"].items():
            print(f"{name}, seconds by stage, {way}: { ({k: round(v, 1) for k, v in seconds.items()}) }", flush=True)
        write(args.output, report)
    with tempfile.TemporaryDirectory() as directory:
        report["front end"], examples = front_end(load("digits"), args.front_end, Path(directory) / "front")
        report["store"] = store_events(args.events, examples, Path(directory) / "store")
    write(args.output, report)
    for part in ("front end", "store"):
        print(f"{part}: {report[part]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
