"""What a training shows: a bar on a terminal, lines elsewhere; a table, curves and one line at the end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from normforge.train.harness.config import TrainConfig
from normforge.train.harness.processes import Processes

Row = dict[str, Any]
_LINE_SECONDS = 10.0
_ROWS = 12  # of the table at the end


class Display:
    """Shows how far a training is; a context manager around it.

    Args:
        console: it is printed on.
        active: does this process print?
        total: steps. done: those that were done before.
    """

    def __init__(self, console: Console, active: bool, total: int, done: int) -> None:
        self._console, self._active, self._total = console, active, total
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
        live = active and console.is_terminal
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True) if live else None
        self._task = self._bar.add_task("training", total=total, completed=done, said="") if self._bar else None
        self._next = time.monotonic() + _LINE_SECONDS
        self._done, self._images, self._since = done, 0, time.monotonic()

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, config: TrainConfig, images: int, parameters: int, done: int, among: Processes) -> None:
        """Say what is trained."""
        self._images, self._since = 0, time.monotonic()
        if not self._active:
            return
        layer = f" with {config.layer}" if config.layer else ""
        several = f", {among.world} processes" if among.world > 1 else ""
        again = f", from step {done} on" if done else ""
        self._say(
            f"{config.model}{layer}: {parameters / 1e6:.2f} M parameters, {images} images of {config.data.source}, "
            f"{self._total} steps of {config.recipe.batch} on {among.device.type}{several}{again}"
        )

    @property
    def pace(self) -> float:
        """Images a second since this process began to train, evaluations included."""
        return self._images / max(time.monotonic() - self._since, 1e-9)

    def update(self, done: int, loss: float, rate: float, batch: int) -> None:
        """Show a step."""
        if not self._active:
            return
        self._images += (done - self._done) * batch
        self._done = done
        said = f"loss {loss:.4f}, rate {rate:.4g}, {self.pace:.0f} images/s"
        now = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, said=said)
        elif now >= self._next and done < self._total:
            self._next = now + _LINE_SECONDS
            left = (self._total - done) * batch / max(self.pace, 1e-9)
            self._say(f"step {done} of {self._total}: {said}, {left:.0f} s left")

    def row(self, row: Row) -> None:
        """Show an evaluation."""
        if self._active:
            self._say(
                f"step {row['step']}, epoch {row['epoch']:g}: loss {row['loss']:.4f}, validation loss "
                f"{row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.4f}, "
                f"{row['images_a_second']:.0f} images/s"
            )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def line(loss: float, accuracy: float, steps: int) -> str:
    """The last line of a training, and of an evaluation of its checkpoint."""
    return f"test after {steps} steps: loss {loss:.4f}, accuracy {accuracy:.4f}"


def table(console: Console, rows: list[Row]) -> None:
    """The evaluations of a training; of many, some that are spread evenly."""
    made = Table("step", "epoch", "rate", "training loss", "validation loss", "accuracy", "minutes", box=None)
    last = len(rows) - 1
    shown = range(len(rows)) if len(rows) <= _ROWS else sorted({round(k * last / (_ROWS - 1)) for k in range(_ROWS)})
    for row in (rows[k] for k in shown):
        made.add_row(
            str(row["step"]), f"{row['epoch']:g}", f"{row['rate']:.4g}", f"{row['loss']:.4f}",
            f"{row['validation_loss']:.4f}", f"{row['validation_accuracy']:.4f}", f"{row['seconds'] / 60:.1f}",
        )  # fmt: skip
    console.print(made)


def curves(rows: list[Row], path: Path, config: TrainConfig) -> None:
    """Draw losses and accuracy over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        left.plot(steps, [row[name] for row in rows], marker=".", label=label)
    left.set(xlabel="step", ylabel="loss, nats")
    left.legend()
    right.plot(steps, [row["validation_accuracy"] for row in rows], marker=".")
    right.set(xlabel="step", ylabel="validation accuracy")
    title = f"{config.model} {config.layer}".strip()
    figure.suptitle(title if len(title) < 90 else f"{title[:87]}...", fontsize=9)
    figure.savefig(path, dpi=120)
