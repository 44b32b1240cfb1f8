"""Do layers that a search has found hold on images it never saw? Beside known layers, on three networks.

    python bench/found.py runs/a runs/b runs/c             # digits, five sets of weights; an hour on two cores
    python bench/found.py runs/a --data fractals --data-seed 9

Of each run the layer that it ranks first (`RUN#best`, or the one that is named) is trained as the run's own final
trainings are, on the networks of the preset, on other images; known layers alike. What is trained is kept in `--out`,
and the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from common import machine, write
from evolution import FINAL, Judge
from rich.console import Console
from rich.table import Table

import normforge as nf
from normforge.passes import simplify
from normforge.probing.behaviour import nearest_known
from normforge.search.config import load
from normforge.search.funnel import least_accuracy
from normforge.search.results import FAILED, Row

RESULT = Path(__file__).parent / "results" / "found.json"
KNOWN = ("bn-relu", "evonorm-b0", "gn-relu", "gn-silu", "evonorm-s0")
CLASSES = 10  # of digits and of fractals


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Rows of all layers, the found ones first."""
    config = load(
        options.preset,
        [f"data.source={options.data}", f"data.seed={options.data_seed}", f"workers.count={options.workers}"],
    )
    networks = config.networks.use
    named = [run if "#" in run else f"{run}#best" for run in options.runs]
    graphs = {Path(name).name: nf.load(name) for name in named}
    graphs |= {name: nf.parse(name) for name in KNOWN}
    judge = Judge(config, options.out / f"{options.data}-{options.data_seed}", console)
    try:
        asked = [(graph, FINAL, 100 + k) for graph in graphs.values() for k in range(options.seeds)]
        outcomes = iter(judge.outcomes(asked))
        rows = []
        for name, graph in graphs.items():
            row = Row(name, str(simplify(graph)), name not in KNOWN, least_accuracy(FAILED, CLASSES))
            row.outcomes += [next(outcomes) for _ in range(options.seeds)]
            near = nearest_known(graph, 1) if row.found else []
            rows.append(
                {"layer": name, "formula": row.formula, "nearest": str(near[0]) if near else ""}
                | {n: figures(row, n) for n in networks}
                | {"mean loss": round(statistics.fmean(row.mean("loss", n)[0] for n in networks), 4)}
            )
    finally:
        judge.close()
    about = {"data": options.data, "seed": options.data_seed, "weights": options.seeds}
    return {"machine": machine()} | about | {"rows": rows}


def figures(row: Row, network: str) -> dict[str, Any]:
    """Means and deviations over the trainings that did not fail."""
    loss, test = row.mean("loss", network), row.mean("test", network)
    return {
        "loss": [round(v, 4) for v in loss],
        "test": [round(v, 4) for v in test],
        "failed": row.failures(network),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The table."""
    networks = [key for key, value in found["rows"][0].items() if isinstance(value, dict)]
    title = f"validation loss and failures of {found['weights']} trainings, {found['data']} {found['seed']}"
    table = Table("layer", *networks, "mean", title=title)
    for row in found["rows"]:
        cells = []
        for n in networks:
            loss, failed = row[n]["loss"], row[n]["failed"]
            said = "-" if math.isnan(loss[0]) else f"{loss[0]:.3f} ± {loss[1]:.3f}"
            cells.append(f"{said}, {failed} failed" if failed else said)
        table.add_row(row["layer"], *cells, f"{row['mean loss']:.3f}")
    console.print(table)
    for row in found["rows"]:
        console.print(f"{row['layer']}: {row['formula']}", highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Train what is missing, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of searches, or candidates of them, such as runs/a#17")
    parser.add_argument("--preset", default="hour", help="whose networks and recipe are used")
    parser.add_argument("--data", default="digits", choices=("digits", "fractals"))
    parser.add_argument("--data-seed", type=int, default=0, help="of the split, and of fractals")
    parser.add_argument("--seeds", type=int, default=5, help="sets of weights")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/found"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = measure(options, console)
    show(found, console)
    write(options.output, found)


if __name__ == "__main__":
    main()
