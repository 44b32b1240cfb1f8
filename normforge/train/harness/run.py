"""One training from its first step to its last, or from its last checkpoint on."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.distributed.fsdp import FSDPModule

from normforge.errors import NormforgeError, OptionError, RunError
from normforge.ir.graph import Graph
from normforge.ir.layers import parse
from normforge.kernels.settings import sync
from normforge.nn.convert import SAME
from normforge.streams import torch_seed
from normforge.train.harness import checkpoint
from normforge.train.harness.config import TrainConfig
from normforge.train.harness.data import Timed, images
from normforge.train.harness.hold import lock, stoppable
from normforge.train.harness.processes import Processes, processes
from normforge.train.harness.show import Display, Row, curves, line, table
from normforge.train.loop import Diverged, Evaluated, Training, autocast, evaluate, memory_format
from normforge.train.models import check_model, make_model
from normforge.train.optimizer import Average, optimizer_of
from normforge.train.settings import check_same, flat, validated

CONFIG_FILE, LOG_FILE, CURVES_FILE = "config.json", "log.jsonl", "curves.png"


@dataclass(frozen=True)
class Finished:
    """What became of a training.

    Attributes:
        done: steps, of the recipe's.
        whole: it came to its end.
        rows: the evaluations on the way, as in the log.
        test: loss and accuracy on test images, at the end; None where it was stopped.
    """

    done: int
    whole: bool
    rows: list[Row]
    test: tuple[float, float] | None


def train(config: TrainConfig, out: Path, console: Console | None = None, *, download: bool = False) -> Finished:
    """Train a model, or go on where a training in the same directory was stopped or killed.

    Under torchrun all processes call this with the same arguments, and a directory that all can read. On CPUs a
    training that is resumed with as many processes ends in the same bits as one that never stopped.

    Args:
        config: of the training.
        out: directory: checkpoint, log of evaluations as lines of JSON, curves as a picture, TensorBoard's events.
        console: is told how far it is; None prints nothing.
        download: fetch a data set that torchvision knows, if it is not there.

    Raises:
        NormforgeError: before anything is trained, a setting, data, a model or a checkpoint that cannot be.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    check_model(config.model)
    with processes(config.run.device) as among, ExitStack() as held:
        return Running(config, out, among, console or Console(quiet=True), held, download).go()


def load_trained(path: Path, device: str = "cpu") -> tuple[nn.Module, TrainConfig]:
    """The model of a checkpoint, in inference mode, with the average of its weights where there is one.

    Args:
        path: of a checkpoint, or of the directory of a training.
        device: of the model.

    Returns:
        The model, from images (N, C, S, S) to logits (N, classes), and the configuration it was trained with.

    Raises:
        RunError: there is no checkpoint, or none of this kind.
    """
    return _trained(_read(path), torch.device(device))


def _trained(state: dict[str, Any], device: torch.device) -> tuple[nn.Module, TrainConfig]:
    """The model that a checkpoint holds; see `load_trained`."""
    config = validated(TrainConfig, json.loads(state["config"]))
    model = _model(config, state["channels"], state["classes"], state["side"], device)
    checkpoint.load_weights(model, state["model"])
    if state["average"] is not None:
        optimizer = optimizer_of(model, config.recipe, config.recipe.rate)
        optimizer.load_state_dict(state["optimizer"])
        assert config.recipe.ema is not None
        average = Average(model, optimizer, config.recipe.ema)
        average.load_state_dict(state["average"])
        average.swap()
    return model.eval(), config


def evaluate_checkpoint(
    path: Path, source: str | None = None, run: dict[str, Any] | None = None, *, download: bool = False
) -> str:
    """Evaluate a checkpoint on test images.

    Args:
        path: of a checkpoint, or of the directory of a training.
        source: other images than those it was trained on, as of `data.source`.
        run: settings of the section run, other than those that it was trained with.
        download: fetch a data set that torchvision knows, if it is not there.

    Returns:
        Mean cross-entropy in nats and accuracy, in the line that `train` ends with.

    Raises:
        RunError: there is no checkpoint, or none of this kind. OptionError: the images do not fit.
    """
    state = _read(path)
    values: dict[str, Any] = json.loads(state["config"])
    values["run"] |= {"parallel": "ddp"} | (run or {})
    if source:
        values["data"] |= {"source": source}
    config = validated(TrainConfig, values)
    with processes(config.run.device) as among:
        _set_threads(config)
        found = images(config, among, download)
        for name, has in (("classes", found.classes), ("channels", found.channels)):
            if state[name] != has:
                raise OptionError(f"{config.data.source} has {has} {name}, and {path} was trained on {state[name]}")
        model, _ = _trained(state, among.device)
        _try(config, model, found.channels, found.test_side, found.test_side, 2)
        judged = _judged(lambda part: evaluate(model, part, config.recipe), found.test, among, whole=False)
        return line(*judged, state["done"])


def _read(path: Path) -> dict[str, Any]:
    return checkpoint.read(path / checkpoint.FILE if path.is_dir() else path)


class Running:
    """A training in a directory, at its start or its last checkpoint; arguments as of `train`, the processes, and what
    holds the directory until the training ends."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        among: Processes,
        console: Console,
        held: ExitStack,
        download: bool = False,
    ) -> None:
        self.config, self.out, self.among, self.console, self._held = config, out, among, console, held
        self.path = out / checkpoint.FILE
        self._locked = False
        if config.run.parallel == "fsdp":
            if config.recipe.layout != "nchw":
                raise OptionError("run.parallel = fsdp shards weights in rows: give recipe.layout=nchw")
            if config.recipe.ema is not None and config.recipe.optimizer != "sgd":
                raise OptionError("recipe.ema with run.parallel = fsdp is of sgd")
        if config.recipe.batch % (among.world * config.recipe.accumulate):
            raise OptionError(
                f"recipe.batch = {config.recipe.batch} cannot be shared by {among.world} processes in "
                f"{config.recipe.accumulate} parts: give a multiple of {among.world * config.recipe.accumulate}"
            )
        _set_threads(config)
        state = among.together(self._claimed)
        with console.status(f"reading {config.data.source}") if among.first else nullcontext():
            self.images = among.together(lambda: images(config, among, download))
        if state and state["digest"] != self.images.digest:
            raise RunError(f"{out} was started on other images than {config.data.source} has now: use another --out")
        if config.recipe.batch > self.images.count:
            raise OptionError(
                f"recipe.batch = {config.recipe.batch} is more than the {self.images.count} training images of "
                f"{config.data.source}: lower it"
            )
        self.recipe = config.recipe.resolved(self.images.count)
        self.epoch = max(1, self.images.count // self.recipe.batch)
        self.rows: list[Row] = state["rows"] if state else []
        self.sum: float  # of losses since the last evaluation
        self.steps: int
        self.sum, self.steps = state["running"] if state else (0.0, 0)
        self.before = state["seconds"] if state else 0.0
        self.test: tuple[float, float] | None = state["test"] if state else None
        model = _model(config, self.images.channels, self.images.classes, self.images.side, among.device)
        if state is None:
            at_once = config.recipe.batch // among.world // config.recipe.accumulate
            _try(config, model, self.images.channels, self.images.side, self.images.test_side, at_once)
        self.parameters = sum(p.numel() for p in model.parameters())
        called = among.wrapped(model, config.run.parallel)
        if config.run.compile:
            called = torch.compile(model if called is None else called)  # type: ignore[assignment]
        torch.manual_seed(torch_seed(self.recipe.seed, "random", among.rank))
        self.batches = Timed(self.images.batches(self.recipe), time.perf_counter)
        self.training = Training(model, self.batches, self.recipe, called, among.mean)
        if state:
            checkpoint.restore(state, self.training, among)
        among.together(self._begin_log)

    def _claimed(self) -> dict[str, Any] | None:
        """What the directory's checkpoint holds, once it is clear that it is the directory of this training, and that
        no other process works there."""
        try:
            there = self.path.exists()
            if not there and self.out.is_dir() and any(self.out.iterdir()) and not _is_ours(self.out):
                raise RunError(f"{self.out} holds other things than a training: use another --out")
            if self.among.first and there:
                self._lock()
        except OSError as e:
            raise RunError(f"{self.out} cannot be used ({e.strerror}): use another --out") from None
        if not there:
            return None
        state = checkpoint.read(self.path)
        _check(state, self.config, self.out)
        return state

    def _lock(self) -> None:
        """Let no other process train here until this one has ended."""
        if not self._locked:
            self._held.enter_context(lock(self.out))
            self._locked = True

    def _begin_log(self) -> None:
        self.events: Any = None
        if self.config.run.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise OptionError("run.tensorboard needs the package tensorboard: pip install tensorboard") from None
        if not self.among.first:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock()
            (self.out / CONFIG_FILE).write_text(json.dumps(self.config.model_dump(mode="json"), indent=2) + "\n")
            # What was logged after the checkpoint comes again.
            (self.out / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        except OSError as e:
            raise RunError(f"{self.out} cannot be written ({e.strerror}): use another --out") from None
        if self.config.run.tensorboard:
            writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.training.done + 1)
            self.events = self._held.enter_context(writer)

    def go(self) -> Finished:
        """Train to the end, or until told to stop."""
        training, total = self.training, self.recipe.steps
        self.start = time.monotonic()
        with stoppable() as stop, Display(self.console, self.among.first, total, training.done) as display:
            display.begin(self.config, self.images.count, self.parameters, training.done, self.among)
            if training.done and self._is_time() and (not self.rows or self.rows[-1]["step"] != training.done):
                self._evaluate(display)  # for which the last session had no time
            while training.done < total and not self._stopped(stop):
                self._advance(display)
        self.batches.close()
        whole = training.done >= total
        if whole and self.test is None:
            self.test = self._judged(self.images.test)
            self._save()
        if not whole and self.among.first:
            self.console.print(
                f"Stopped after {training.done} of {total} steps. The same command goes on from there.", soft_wrap=True
            )
        if whole and self.among.first:
            assert self.test is not None
            table(self.console, self.rows)
            curves(self.rows, self.out / CURVES_FILE, self.config)
            self.console.print(line(*self.test, training.done), highlight=False, soft_wrap=True)
        return Finished(training.done, whole, self.rows, self.test)

    def _advance(self, display: Display) -> None:
        """Go on to where the loss is next looked at, evaluate and keep a checkpoint where it is time for them."""
        training, total = self.training, self.recipe.steps
        every = self.config.run.evaluate or self.epoch
        keep = self.config.run.checkpoint
        done = training.done
        target = min(done + training.look, total, *((done // n + 1) * n for n in (every, keep)))
        try:
            loss = training.advance(target)
        except Diverged as e:
            raise RunError(f"{e}: lower recipe.rate, clip with recipe.agc, or lengthen recipe.warmup") from None
        self.sum, self.steps = self.sum + loss, self.steps + 1
        display.update(training.done, loss, training.rate, self.recipe.batch)
        if self._is_time() or training.done % keep == 0:
            self._save()  # before an evaluation, which may take longer than who stops this will wait
        if self._is_time():
            self._evaluate(display)

    def _is_time(self) -> bool:
        """Is it time for an evaluation?"""
        done = self.training.done
        return done == self.recipe.steps or done % (self.config.run.evaluate or self.epoch) == 0

    def _evaluate(self, display: Display) -> None:
        training = self.training
        loss, accuracy = self._judged(self.images.validation)
        row: Row = {
            "step": training.done,
            "epoch": round(training.done / self.epoch, 3),
            "rate": training.rate,
            "loss": self.sum / self.steps,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "seconds": round(self._seconds(), 2),
            "images_a_second": round(display.pace, 1),
            "pipeline_images_a_second": round(self.batches.images / max(self.batches.seconds, 1e-9) * self.among.world),
        }
        self.sum, self.steps = 0.0, 0
        self.rows.append(row)
        display.row(row)
        if self.among.first:
            with (self.out / LOG_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self.events:
                for name, value in row.items():
                    if name not in ("step", "seconds") and math.isfinite(value):
                        self.events.add_scalar(name, value, training.done)
                self.events.flush()

    def _judged(self, part: Evaluated) -> tuple[float, float]:
        self.among.share(self.training.model.buffers())
        if self.training.average:
            self.among.share(self.training.average.buffers)
        judged = _judged(self.training.evaluate, part, self.among, self.config.run.parallel == "fsdp")
        for module in self.training.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what it has gathered without a backward pass it would keep for the next step
        return judged

    def _save(self) -> None:
        checkpoint.save(
            self.path,
            self.training,
            self.among,
            {
                "config": json.dumps(self.config.model_dump(mode="json")),
                "digest": self.images.digest,
                "classes": self.images.classes,
                "channels": self.images.channels,
                "side": self.images.side,
                "rows": self.rows,
                "running": (self.sum, self.steps),
                "seconds": self._seconds(),
                "test": self.test,
            },
        )

    def _seconds(self) -> float:
        return float(self.before + time.monotonic() - self.start)

    def _stopped(self, stop: list[int]) -> bool:
        """Was any process told to stop? All agree, at the same step; a checkpoint is kept."""
        if not self.among.sums(float(bool(stop)))[0]:
            return False
        self._save()
        return True


def _check(state: dict[str, Any], config: TrainConfig, out: Path) -> None:
    saved = dict(flat(validated(TrainConfig, json.loads(state["config"]))))
    default = dict(flat(TrainConfig()))
    check_same(saved, dict(flat(config)), default, TrainConfig.MAY_CHANGE, str(out))


def _set_threads(config: TrainConfig) -> None:
    if config.run.threads:
        torch.set_num_threads(config.run.threads)


def _model(config: TrainConfig, channels: int, classes: int, side: int, device: torch.device) -> nn.Module:
    """The model at its start, for images (channels, side, side), on the device."""
    layer: Graph | str | None = config.layer or None
    if layer and layer != SAME:
        layer = parse(config.layer)
    model = make_model(
        config.model,
        layer,
        networks=config.networks,
        in_channels=channels,
        classes=classes,
        size=side,
        seed=torch_seed(config.recipe.seed, "weights", 0),
        drop=config.recipe.drop,
        drop_path=config.recipe.drop_path,
        backend=config.run.backend,
    )
    model.to(device)
    if config.run.sync:
        sync(model)
    return model.to(memory_format=memory_format(config.recipe))


def _judged(
    judge: Callable[[Evaluated], tuple[float, float]], part: Evaluated, among: Processes, whole: bool
) -> tuple[float, float]:
    """Loss and accuracy over the shares of all processes, or of a part that each has whole."""
    count = len(part)
    loss, accuracy = judge(part) if count else (0.0, 0.0)  # of few images a process may have none
    if whole or among.world == 1:
        return loss, accuracy
    losses, right, total = among.sums(loss * count, round(accuracy * count), count)
    return losses / total, right / total


def _is_ours(out: Path) -> bool:
    """Is it the directory of a training that has not come to its first checkpoint?"""
    try:
        said = json.loads((out / CONFIG_FILE).read_text())
        TrainConfig.model_validate(said)
    except (OSError, ValueError):
        return False
    return "model" in said


def _try(config: TrainConfig, model: nn.Module, channels: int, side: int, test_side: int, count: int) -> None:
    """Let a copy of a model meet images of both sizes, before anything is written.

    Args:
        config: of the training.
        model: on its device.
        channels, side, test_side: of images in training, and of test images.
        count: of images that a process has at a time in training; what fails with one of them need not with two.

    Raises:
        OptionError: it cannot take them.
    """
    tried, device = copy.deepcopy(model), next(model.parameters()).device
    format = memory_format(config.recipe)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for train, pixels, some in ((True, side, min(count, 2)), (False, test_side, 2)):
            x = torch.zeros(some, channels, pixels, pixels, device=device).contiguous(memory_format=format)
            try:
                with torch.no_grad(), autocast(config.recipe, x):
                    tried.train(train)(x)
            except NormforgeError:
                raise
            except Exception as e:  # models check their inputs in ways of their own
                reason = (str(e).strip() or type(e).__name__).split("\n")[0]
                what = f"trained on {some} images" if train else "evaluated on images"
                raise OptionError(f"{config.model} cannot be {what} of {pixels} pixels: {reason}") from None
