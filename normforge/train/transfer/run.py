"""One training of a transfer: a layer, a seed, a directory; from its first step, or from its last checkpoint on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from normforge.errors import RunError
from normforge.ir.layers import parse
from normforge.streams import torch_seed
from normforge.train.harness import checkpoint
from normforge.train.harness.hold import lock, stoppable
from normforge.train.loop import Diverged
from normforge.train.settings import check_same, flat, validated
from normforge.train.transfer.config import CONFIGS, Config, DetectionConfig
from normforge.train.transfer.data import Detections, TaskData
from normforge.train.transfer.task import Task

CONFIG_FILE, LOG_FILE, RESULT_FILE = "config.json", "log.jsonl", "result.json"
Row = dict[str, float]
_PARTS = 3  # of a training, with an evaluation after each, where nothing else is asked


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
) -> Result | None:
    """Train, or go on where a training in the same directory was stopped or killed.

    On a CPU a training that is gone on with ends in the same bits as one that never stopped.

    Args:
        config: of the training, with its layer and seed.
        data: as `load` of `normforge.train.transfer.data` gives it.
        out: directory: checkpoint, log, result, pictures.
        device: that is trained on.
        tell: is told the steps done, those in all, and the loss.

    Returns:
        What became of it, or None where SIGINT or SIGTERM stopped it; the checkpoint is kept.

    Raises:
        RunError: the directory is of another training, or cannot be written.
    """
    if found := finished(out, config):
        return found
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out), stoppable() as stop:
            return _train(config, data, out, device, tell, stop)
    except OSError as e:
        raise RunError(f"{out} cannot be written ({e.strerror}): use another --out") from None


def finished(out: Path, config: Config) -> Result | None:
    """What became of a training that has ended; None where it has not.

    Raises:
        RunError: the directory is of another training.
    """
    try:
        stored = json.loads((out / RESULT_FILE).read_text())
        before = json.loads((out / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None
    _check(before, config, out)
    return Result(**stored)


def _check(before: dict[str, Any], config: Config, out: Path) -> None:
    kind = CONFIGS[config.task]
    saved = dict(flat(validated(kind, before)))
    check_same(saved, dict(flat(config)), dict(flat(kind())), kind.MAY_CHANGE, str(out))


def _train(
    config: Config,
    data: TaskData,
    out: Path,
    device: torch.device,
    tell: Callable[[int, int, float], None],
    stop: list[int],
) -> Result | None:
    torch.manual_seed(torch_seed(config.seed, "random", 0))
    task = make_task(config, data, device)
    path, start, cpu = out / checkpoint.FILE, time.monotonic(), time.process_time()
    rows: list[Row] = []
    before = (0.0, 0.0)
    if path.exists():
        state = checkpoint.read(path)
        _check(json.loads(state["config"]), config, out)
        if state["digest"] != data.digest:
            raise RunError(f"{out} was started on other data than {config.data.source} has now: use another --out")
        task.load_state_dict(state["task"])
        checkpoint.restore_random(state["random"], device)
        rows, before = state["rows"], state["seconds"]
    said = json.dumps(config.model_dump(mode="json"))
    (out / CONFIG_FILE).write_text(said + "\n")
    # What was logged after the checkpoint comes again.
    (out / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def seconds() -> tuple[float, float]:
        return before[0] + time.monotonic() - start, before[1] + time.process_time() - cpu

    def save() -> None:
        checkpoint.write(
            path,
            {
                "version": checkpoint.VERSION,
                "config": said,
                "digest": data.digest,
                "task": task.state_dict(),
                "random": checkpoint.random_state(device),
                "rows": rows,
                "seconds": seconds(),
            },
        )

    every = config.run.evaluate or max(1, -(-task.total // _PARTS))
    look = max(1, min(every, config.run.checkpoint, task.total // 40))
    batch = config.recipe.batch
    result = Result(config.layer, config.seed, batch, task.parameters, task.done, rows=rows)
    try:
        while task.done < task.total:
            target = min(task.total, *((task.done // n + 1) * n for n in (look, every, config.run.checkpoint)))
            row: Row = {"step": target} | task.advance(target)
            if target % every == 0 and target < task.total:
                row |= task.evaluate(final=False)
            rows.append(row)
            with (out / LOG_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")
            tell(target, task.total, row.get("loss", row.get("generator", float("nan"))))
            if stop or target % config.run.checkpoint == 0 or target == task.total:
                save()
            if stop:
                return None
        result.figures = task.evaluate(final=True)
        result.pictures = [picture.name for picture in task.pictures(out)]
    except Diverged as e:
        result.failed = str(e)
    finally:
        task.close()
    result.steps = task.done
    result.seconds, result.cpu_seconds = (round(s, 2) for s in seconds())
    fresh = out / f"{RESULT_FILE}.part"
    fresh.write_text(json.dumps(asdict(result)) + "\n")
    fresh.replace(out / RESULT_FILE)
    return result
