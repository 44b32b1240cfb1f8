"""What trainings of a transfer came to: figures over seeds, and their table."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from normforge.errors import RunError
from normforge.train.transfer.config import Config, DetectionConfig
from normforge.train.transfer.run import Result

RESULTS_FILE = "results.json"
COLUMNS = {
    "detection": {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"},
    "gan": {
        "fd": "FD (own features)", "accuracy": "class accuracy", "score": "score (own features)", "fid": "FID",
        "is": "IS",
    },
}  # fmt: skip
"""Figures that the table shows, where a training has them."""
LESS = ("fd", "fid")
"""Figures of which less is better."""


@dataclass(frozen=True)
class Entrant:
    """A layer of a study.

    Attributes:
        label: for people: its name, or as it was given.
        formula: a name or a formula, which a checkpoint can hold.
    """

    label: str
    formula: str

    @property
    def slug(self) -> str:
        """The name of its directory."""
        plain = re.sub(r"[^A-Za-z0-9.-]+", "-", self.label).strip("-")
        if plain == self.label:
            return plain
        own = blake2b(f"{self.label}\n{self.formula}".encode(), digest_size=4).hexdigest()
        return f"{plain[:40].strip('-')}-{own}"


@dataclass(frozen=True)
class Asked:
    """A training of a study."""

    entrant: Entrant
    config: Config
    out: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.entrant.label}, batch {self.config.recipe.batch}, seed {self.config.seed}"


@dataclass(frozen=True)
class Done:
    """A training and what became of it."""

    asked: Asked
    result: Result


@dataclass(frozen=True)
class Cell:
    """A figure of a layer over its seeds.

    Attributes:
        values: of the trainings that did not fail. failed: how many did.
    """

    values: list[float]
    failed: int

    @property
    def mean(self) -> float:
        """NaN of none."""
        return statistics.fmean(self.values) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds, of a sample; NaN of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else float("nan")

    def __str__(self) -> str:
        if not self.values:
            return f"{self.failed} failed"
        said = f"{self.mean:.3f} ± {self.deviation:.3f}" if len(self.values) > 1 else f"{self.mean:.3f}"
        return f"{said}, {self.failed} failed" if self.failed else said


def cell(done: list[Done], figure: str) -> Cell:
    """A figure over trainings."""
    ended = [one.result for one in done if one.result.failed is None]
    return Cell([r.figures[figure] for r in ended if figure in r.figures], len(done) - len(ended))


def grouped(done: list[Done]) -> dict[tuple[Entrant, int], list[Done]]:
    """Trainings by layer and batch."""
    groups: dict[tuple[Entrant, int], list[Done]] = {}
    for one in done:
        groups.setdefault((one.asked.entrant, one.asked.config.recipe.batch), []).append(one)
    return groups


def columns(config: Config, done: list[Done]) -> dict[str, str]:
    """Titles of the figures of the table that some training has, by figure."""
    there = {name for one in done for name in one.result.figures}
    return {name: title for name, title in COLUMNS[config.task].items() if name in there}


def minutes(done: list[Done]) -> str:
    """Of a training, in the mean."""
    return f"{statistics.fmean(one.result.seconds for one in done) / 60:.1f}"


def table(config: Config, done: list[Done]) -> Table:
    """Means and deviations over seeds, a row a layer and batch."""
    shown = columns(config, done)
    seeds = len({one.asked.config.seed for one in done})
    title = Text(f"{_title(config)}: mean ± deviation of {seeds} seeds" if seeds > 1 else f"{_title(config)}: one seed")
    made = Table("layer", "batch", *shown.values(), "minutes", title=title)
    for (layer, batch), some in grouped(done).items():
        made.add_row(Text(layer.label), str(batch), *(str(cell(some, name)) for name in shown), minutes(some))
    return made


def _title(config: Config) -> str:
    what = f"Mask R-CNN with {config.model.backbone}" if isinstance(config, DetectionConfig) else "BigGAN"
    return f"{what}, {config.data.source}"


def rows(done: list[Done]) -> list[dict[str, Any]]:
    """What became of each training, of plain values; without what it was on its way."""
    left_out = ("layer", "rows", "pictures")
    return [
        {"layer": one.asked.entrant.label, "formula": one.result.layer}
        | {k: v for k, v in one.result.plain().items() if k not in left_out}
        for one in done
    ]


def write_results(done: list[Done], out: Path) -> None:
    """Write all figures into the directory of a study, as JSON: a row a training.

    Raises:
        RunError: they cannot be written.
    """
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows(done)) + "\n]\n"
    try:
        (out / RESULTS_FILE).write_text(text)
    except OSError as e:
        raise RunError(f"{out / RESULTS_FILE} cannot be written ({e.strerror}): make room for it") from None
