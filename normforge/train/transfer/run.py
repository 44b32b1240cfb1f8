"""One training of a transfer: a layer, a seed, a directory; from its first step, or from its last checkpoint on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from normforge.errors import OptionError, RunError
from normforge.ir.layers import parse
from normforge.streams import torch_seed
from normforge.train.harness import checkpoint
from normforge.train.harness.hold import lock
from normforge.train.loop import Diverged
from normforge.train.settings import check_same, flat, validated
from normforge.train.transfer.config import CONFIGS, Config, DetectionConfig
from normforge.train.transfer.data import Detections, TaskData, digest_of
from normforge.train.transfer.task import Task

CONFIG_FILE, LOG_FILE, RESULT_FILE = "config.json", "log.jsonl", "result.json"
Row = dict[str, float]
_PARTS = 3  # of a training, with an evaluation after each, where nothing else is asked
_ROWS = 40  # of the log, at least
_PIECE = 10  # steps on a GPU between two looks at whether to stop


@dataclass
class Result:
    """What became of a training.

    Attributes:
        layer: a name or a formula. seed: of the training. batch: images a step.
        parameters: of the model. steps: that were done.
        failed: why the training ended early; None where it did not.
        figures: of the model at its end, on test data.
        rows: losses and figures on the way.
        seconds: of wall time, of all sessions. cpu_seconds: of this process and its threads.
        pictures: files in the directory.
        digest: of the data.
    """

    layer: str
    seed: int
    batch: int
    parameters: int
    steps: int
    failed: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pictures: list[str] = field(default_factory=list)
    digest: str = ""

    def plain(self) -> dict[str, Any]:
        """Of values that JSON has: None for those that are not finite."""
        return cast(dict[str, Any], _plain(asdict(self)))


def write_whole(path: Path, value: Any) -> None:
    """Write JSON into a file that is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(json.dumps(value) + "\n")
    fresh.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(row: Mapping[str, float | None]) -> Row:
    """A row as it was before it was JSON."""
    return {k: math.nan if v is None else v for k, v in row.items()}


def make_task(config: Config, data: TaskData, device: torch.device) -> Task:
    """The task of a configuration, not yet begun.

    Raises:
        NormforgeError: a layer that cannot stand there, or settings that do not go together.
    """
    graph = parse(config.layer)
    if isinstance(config, DetectionConfig):
        from normforge.train.networks import compiled
        from normforge.train.transfer.detection.training import Detection

        assert isinstance(data, Detections)
        return Detection(
            compiled(graph, config.run.backend, config.model.groups),
            config.model,
            config.recipe.model_copy(update={"seed": config.seed}).resolved(),
            data.train,
            data.validation,
            data.test,
            flip=config.data.flip,
            device=device,
            threads=config.run.loaders if data.on_disk else 0,
            backend=config.run.ap,
        )
    from normforge.train.transfer.synthesis.training import Synthesis

    assert not isinstance(data, Detections)
    recipe = config.recipe
    return Synthesis(graph, data, recipe, config.seed, device, config.run.backend, recipe.groups)


def run(
    config: Config,
    data: TaskData,
    out: Path,
    device: torch.device,
    tell: Callable[[int, int, float], None] = lambda done, total, loss: None,
    stop: Sequence[int] = (),
) -> Result | None:
    """Train, or go on where a training in the same directory was stopped or killed.

    On a CPU a training that is gone on with, with as many threads, ends in the same bits as one that never stopped.

    Args:
        config: of the training, with its layer and seed.
        data: as `load` of `normforge.train.transfer.data` gives it.
        out: directory: checkpoint, log, result, pictures.
        device: that is trained on.
        tell: is told the steps done, those in all, and the last loss.
        stop: stops the training once something is in it, as in the list of `stoppable`; the checkpoint is kept.

    Returns:
        What became of it, or None where it was stopped.

    Raises:
        RunError: the directory is of another training, or cannot be written.
    """
    digest = digest_of(config, data)
    if found := finished(out, config, digest):
        return found
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out):
            return _Running(config, data, digest, out, device, tell, stop).go()
    except OSError as e:
        raise RunError(f"{out} cannot be written ({e.strerror}): use another --out") from None


def finished(out: Path, config: Config, digest: str) -> Result | None:
    """What became of a training that has ended; None where it has not.

    Args:
        out: its directory. config, digest: of the training, and of its data (`digest_of`).

    Raises:
        RunError: the directory is of another training, or of other data.
    """
    try:
        stored = json.loads((out / RESULT_FILE).read_text())
        before = json.loads((out / CONFIG_FILE).read_text())
        result = Result(**stored)
    except (OSError, ValueError, TypeError):
        return None
    check(before, config, out)
    check_data(result.digest, digest, config, out)
    result.rows, result.figures = [_numbers(row) for row in result.rows], _numbers(result.figures)
    return result


def check(before: dict[str, Any], config: Config, out: Path) -> None:
    """Compare the settings that a directory was begun with, and those of now.

    Raises:
        RunError: names the first that differs and may not.
    """
    kind = CONFIGS[config.task]
    try:
        saved = dict(flat(validated(kind, before)))
    except OptionError:
        raise RunError(f"{out} was made by another version or for another task: use another --out") from None
    check_same(saved, dict(flat(config)), dict(flat(kind())), kind.MAY_CHANGE, str(out))


def check_data(before: str, now: str, config: Config, out: Path) -> None:
    """Compare digests of data.

    Raises:
        RunError: they differ.
    """
    if before != now:
        raise RunError(f"{out} was started on other data than {config.data.source} has now: use another --out")


class _Running:
    """A training in its directory, at its start or its last checkpoint; arguments as of `run`, and
    the digest of the data.

    Losses are summed over a window of steps, which is a row of the log; a checkpoint may lie within one.
    """

    def __init__(
        self,
        config: Config,
        data: TaskData,
        digest: str,
        out: Path,
        device: torch.device,
        tell: Callable[[int, int, float], None],
        stop: Sequence[int],
    ) -> None:
        self.config, self.out, self.device, self.tell, self.stop = config, out, device, tell, stop
        self.digest = digest
        self.task = task = make_task(config, data, device)
        torch.manual_seed(torch_seed(config.seed, "random", 0))
        self.path, self.start, self.cpu = out / checkpoint.FILE, time.monotonic(), time.process_time()
        self.rows: list[Row] = []
        self.before = (0.0, 0.0)
        self.sums: dict[str, float] = {}
        self.steps = 0  # in the window
        if self.path.exists():
            state = checkpoint.read(self.path)
            check(json.loads(state["config"]), config, out)
            check_data(state["digest"], self.digest, config, out)
            task.load_state_dict(state["task"])
            checkpoint.restore_random(state["random"], device)
            self.rows, self.before = state["rows"], state["seconds"]
            self.sums, self.steps = state["window"]
        self.said = json.dumps(config.model_dump(mode="json"))
        (out / CONFIG_FILE).write_text(self.said + "\n")
        # What was logged after the checkpoint comes again.
        (out / LOG_FILE).write_text("".join(json.dumps(_plain(row)) + "\n" for row in self.rows))
        self.every = config.run.evaluate or max(1, -(-task.total // _PARTS))
        self.keep = config.run.checkpoint
        self.look = max(1, min(self.every, self.keep, task.total // _ROWS))
        self.piece = 1 if device.type == "cpu" else _PIECE

    def go(self) -> Result | None:
        """Train to the end, or until told to stop."""
        task, config = self.task, self.config
        result = Result(config.layer, config.seed, config.recipe.batch, task.parameters, 0, digest=self.digest)
        try:
            while task.done < task.total or self.steps:
                self._window()
                if self.stop:
                    self._save()
                    return None
                self._row()
            result.figures = task.evaluate(final=True)
            if not all(map(math.isfinite, result.figures.values())):
                raise Diverged(f"what it comes to is not finite: {result.figures}")
            result.pictures = [picture.name for picture in task.pictures(self.out)]
        except Diverged as e:
            result.failed, result.figures = str(e), {}
        finally:
            task.close()
        result.steps, result.rows = task.done, self.rows
        result.seconds, result.cpu_seconds = (round(s, 2) for s in self._seconds())
        write_whole(self.out / RESULT_FILE, result.plain())
        return result

    def _window(self) -> None:
        """Train to where a row is due, piece by piece, or until told to stop."""
        task, done = self.task, self.task.done
        periods = self.look, self.every, self.keep
        due = min(task.total, *(-(-done // n) * n if self.steps else (done // n + 1) * n for n in periods))
        while task.done < due and not self.stop:
            before = task.done
            losses = task.advance(min(due, before + self.piece))
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * (task.done - before)
            self.steps += task.done - before
            self.tell(task.done, task.total, losses.get("loss", losses.get("generator", math.nan)))

    def _row(self) -> None:
        """Log the window, evaluate and keep a checkpoint where it is time for them."""
        task = self.task
        row: Row = {"step": task.done} | {name: value / self.steps for name, value in self.sums.items()}
        if task.done % self.every == 0 and task.done < task.total:
            row |= task.evaluate(final=False)
        self.sums, self.steps = {}, 0
        self.rows.append(row)
        with (self.out / LOG_FILE).open("a") as file:
            file.write(json.dumps(_plain(row)) + "\n")
        if task.done % self.keep == 0 or task.done == task.total:
            self._save()

    def _seconds(self) -> tuple[float, float]:
        """Of wall and of processor time, of all sessions."""
        return self.before[0] + time.monotonic() - self.start, self.before[1] + time.process_time() - self.cpu

    def _save(self) -> None:
        checkpoint.write(
            self.path,
            {
                "version": checkpoint.VERSION,
                "config": self.said,
                "digest": self.digest,
                "task": self.task.state_dict(),
                "random": checkpoint.random_state(self.device),
                "rows": self.rows,
                "window": (self.sums, self.steps),
                "seconds": self._seconds(),
            },
        )
