"""The stages that need numbers: probing, quality, stability, full training. Runs in a worker process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from normforge.errors import NormforgeError
from normforge.ir.graph import Graph
from normforge.search.config import Config
from normforge.search.data import CLASSES, Data, digits
from normforge.search.funnel import Fate, Outcome
from normforge.search.probing import probe
from normforge.search.proxy import compiled, resnet_v2
from normforge.search.stability import gradient_ascent
from normforge.search.streams import stream, torch_seed
from normforge.search.tasks import Task
from normforge.search.train import Diverged, Training, evaluate


class _Refused(Exception):
    def __init__(self, fate: Fate, reason: str) -> None:
        super().__init__(reason)
        self.fate = fate


def run_task(task: Task) -> Outcome:
    """Evaluate a layer. The outcome depends on the layer, the configuration and the repeat, and on nothing else:
    every candidate starts from the same weights and sees the same batches, so that they differ by the layer alone.
    """
    graph, run = Graph.from_json(task.graph), _Evaluation(task)
    try:
        if task.final:
            run.train(graph)
        else:
            run.funnel(graph)
    except _Refused as refused:
        return Outcome(refused.fate, str(refused), accuracy=run.accuracy, seconds=run.seconds)
    except Diverged as diverged:
        return Outcome(run.stage, str(diverged), accuracy=run.accuracy, seconds=run.seconds)
    except (RuntimeError, NormforgeError) as e:
        reason = f"{type(e).__name__} in {run.stage}: {str(e).strip().splitlines()[0]}"
        return Outcome(Fate.ERROR, reason, seconds=run.seconds)
    return Outcome(Fate.SCORED, "", run.loss, run.accuracy, run.test, run.seconds)


class _Evaluation:
    def __init__(self, task: Task) -> None:
        self.config: Config = task.config
        self.repeat = task.repeat
        self.data: Data = digits(task.config.seed)
        self.stage = Fate.PROBING
        self.seconds: dict[str, float] = {}
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.test: float | None = None

    def funnel(self, graph: Graph) -> None:
        with self.timed(Fate.PROBING):
            self.probe(graph)
        with self.timed(Fate.QUALITY):
            training = self.training(graph)
            training.advance(self.config.quality.steps)
            loss, self.accuracy = evaluate(training.model, self.data.validation)
            if not math.isfinite(loss):
                raise _Refused(Fate.QUALITY, f"the validation loss is {loss} after {training.done} steps")
            if self.accuracy < self.config.quality.threshold:
                raise _Refused(
                    Fate.QUALITY,
                    f"validation accuracy {self.accuracy:.1%} after {training.done} steps, "
                    f"below {self.config.quality.threshold:.0%}",
                )
        with self.timed(Fate.STABILITY):
            self.attack(graph)
        with self.timed(Fate.FULL):
            self.finish(training)

    def train(self, graph: Graph) -> None:
        """Full training alone, judged on the test images too."""
        with self.timed(Fate.FULL):
            training = self.training(graph)
            self.finish(training)
            _, self.test = evaluate(training.model, self.data.test)

    def finish(self, training: Training) -> None:
        training.advance(self.config.recipe.steps)
        loss, self.accuracy = evaluate(training.model, self.data.validation)
        if not math.isfinite(loss):
            raise _Refused(Fate.FULL, f"the validation loss is {loss} after {training.done} steps")
        self.loss = loss

    def training(self, graph: Graph) -> Training:
        model = self.model(graph)
        batches = stream(self.config.seed, "batches", self.repeat)
        return Training(model, self.data.train, self.config.recipe, batches)

    def model(self, graph: Graph) -> torch.nn.Module:
        return resnet_v2(
            self.config.network,
            compiled(graph),
            in_channels=self.data.train.images.shape[1],
            classes=CLASSES,
            seed=torch_seed(self.config.seed, "weights", self.repeat),
        )

    def attack(self, graph: Graph) -> None:
        rules, part = self.config.stability, self.data.train
        batch = torch.from_numpy(stream(self.config.seed, "attack", 0).permutation(len(part.labels))[: rules.batch])
        largest, steps, stable = gradient_ascent(self.model(graph), part.images[batch], part.labels[batch], rules)
        if not stable:
            raise _Refused(Fate.STABILITY, f"gradient norm {largest:.1e} after {steps} steps of ascent")

    def probe(self, graph: Graph) -> None:
        """Eager, since most of what fails here is not worth compiling."""
        if findings := probe(graph, seed=self.config.seed).findings:
            raise _Refused(Fate.PROBING, findings[0].reason)

    @contextmanager
    def timed(self, stage: Fate) -> Iterator[None]:
        self.stage = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage.value] = round(time.perf_counter() - start, 4)
