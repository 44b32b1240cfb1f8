"""The stages that need numbers: probing, quality, stability, early, full training. Runs in a worker process.

Each stage goes through all networks before the next and dearer one begins, so a layer that one network refuses costs
no full training on the others. A rung of the ladder is one of these stages, after probing on the first; it begins
from nothing, since workers keep no trainings. What a stage finds on a network is a piece: a pure function of the layer,
the network, the recipe and the data, by which the cache keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from normforge.errors import NormforgeError
from normforge.probing.probe import probe
from normforge.search.cost import equivalents, micro_recipe
from normforge.search.funnel import Fate, Outcome, Refused, least_accuracy, out_of_memory, timed
from normforge.search.objectives import margin, traffic
from normforge.search.stability import gradient_ascent
from normforge.search.tasks import Piece, Task
from normforge.streams import stream
from normforge.train.config import Recipe
from normforge.train.data import load_data
from normforge.train.data.shift import shifted
from normforge.train.device import peak_memory
from normforge.train.loop import Diverged, Training, memory_format
from normforge.train.networks import compiled
from normforge.train.setup import Setup

# The fate of a layer whose loss stops being finite in a stage.
_FATES = {
    "micro": Fate.MICRO,
    "quality": Fate.QUALITY,
    **dict.fromkeys(("halfway", "full", "final", "small_batch"), Fate.FULL),
}


# The stages after which a training is not gone on with.
_ENDS = ("micro", "full", "final", "small_batch")


def _training_of(piece: str) -> str:
    """The name of the training that a piece belongs to."""
    stage, _, network = piece.partition("/")
    return piece if stage == "small_batch" else network


def run_task(task: Task) -> Outcome:
    """Evaluate a layer. The outcome depends on the layer, the configuration and the repeat, and on nothing else:
    every candidate starts from the same weights and sees the same batches, so that they differ by the layer alone.
    """
    return Evaluation(task).run()


class Evaluation:
    """The evaluation of one task, on its way through the stages.

    Args:
        task: what to evaluate; its `known` pieces are not computed again.
        backend: of the layers, as `nf.compile` names them.
    """

    def __init__(self, task: Task, backend: str = "auto") -> None:
        self.task, self.config = task, task.config
        self.graph = task.graph
        self.recipe: Recipe = self.config.recipe
        if task.final:
            steps = round(self.recipe.steps * self.config.final.longer)
            self.recipe = self.recipe.model_copy(update={"steps": steps})
        config = self.config
        layer = compiled(self.graph, backend, config.networks.groups)
        side = config.ladder.micro.size if task.rung == "micro" else None
        self.setup = Setup(layer, config.networks, config.data, config.workers.device, side)
        self.device, self.data = self.setup.device, self.setup.data
        self.stage = Fate.PROBING
        self.trainings: dict[str, Training] = {}  # by network, or by stage/network where a stage has its own
        self.pieces: dict[str, Piece] = dict(task.known)
        self.used: list[str] = []  # pieces of this task; `pieces` may have those of other rungs
        self.out: dict[str, dict[str, float]] = {
            k: {} for k in ("loss", "accuracy", "holdout", "test", "halfway", "gradient")
        }
        self.seconds: dict[str, float] = {}
        self.cached = 0

    def run(self) -> Outcome:
        """The outcome of the task, whatever happens on the way."""
        peak_memory(self.device, reset=True)
        try:
            scores = self.train() if self.task.final else self.funnel()
        except Refused as refused:
            return self._outcome(refused.fate, str(refused))
        except (RuntimeError, NormforgeError) as e:
            if out_of_memory(e):
                raise  # the worker knows its limit
            message = (str(e).strip() or "no message").splitlines()[0]
            return self._outcome(Fate.ERROR, f"{type(e).__name__} in {self.stage}: {message}")
        rungs = self.config.ladder.use
        passed = self.task.rung and self.task.rung != rungs[-1]
        return self._outcome(Fate.PASSED if passed else Fate.SCORED, "", scores)

    def funnel(self) -> dict[str, float]:
        """Go through the stages of the task's rung, or through all of them where there is no ladder; the scores by
        objective, none of a rung that only refuses.

        Raises:
            Refused: by one of them.
        """
        rung, rungs = self.task.rung, self.config.ladder.use
        first = not rung or rung == rungs[0]
        if first and not self.config.filters.probing:  # where that is on, the layer has passed it already
            with self._timed(Fate.PROBING):
                # Interpreted, since most of what fails here is not worth compiling, and a verdict is no machine's own.
                if findings := probe(self.graph, seed=self.config.recipe.seed).findings:
                    raise Refused(Fate.PROBING, findings[0].reason)
        if rung == "micro":
            with self._timed(Fate.MICRO):
                self._pass("micro", "micro")
            return {"micro": self._score(self.out["loss"]["micro"], self.out["accuracy"]["micro"])}
        if rung in ("", "quality"):
            self._everywhere(Fate.QUALITY)
        if rung == "stability" or (not rung and self.config.stability.steps):
            self._everywhere(Fate.STABILITY)
        if not rung and self.config.early.keep < 1:
            with self._timed(Fate.EARLY):
                for network in self.config.networks.use:
                    self._pass("halfway", network)
                self._stop_early()
        if rung in ("", "full"):
            self._everywhere(Fate.FULL)
            return self._scores()
        if rung == "stability":
            return {}
        short = {n: self.pieces[f"quality/{n}"]["short"] for n in self.config.networks.use}
        return {n: self._score(loss, self.out["accuracy"][n]) for n, loss in short.items()}

    def _everywhere(self, stage: Fate) -> None:
        for network in self.config.networks.use:
            with self._timed(stage):
                self._pass(stage.value, network)

    def train(self) -> dict[str, float]:
        """Train to the end alone, on every network, and judge on the held-out and the test images too.

        Raises:
            Refused: the first failure, after all networks.
        """
        failure = None
        for network in self.config.networks.use:
            try:
                with self._timed(Fate.FULL):
                    self._pass("final", network)
            except Refused as refused:
                failure = failure or refused
        if failure:
            raise failure
        return dict(self.out["holdout"])

    # -- stages: each returns its piece

    def _micro(self, network: str) -> Piece:
        rules, recipe = self.config.ladder.micro, micro_recipe(self.config)
        training = self.setup.training("plain", recipe, self.task.repeat)
        self.trainings[network] = training
        training.advance(rules.look)
        # By accuracy: running statistics are so young then that the loss of a good batch layer may be above chance's.
        _, accuracy = training.evaluate(self.data.validation)
        least = least_accuracy(rules.begun, self.data.classes, way=0.1)
        if accuracy < least:
            reason = f"validation accuracy {accuracy:.1%} after {training.done} steps, below {least:.1%}"
            raise Refused(Fate.MICRO, reason)
        training.advance(rules.steps)
        loss, accuracy = training.evaluate(self.data.validation)
        if not math.isfinite(loss):
            raise Refused(Fate.MICRO, f"the validation loss is {loss} after {training.done} steps")
        return {"loss": loss, "accuracy": accuracy}

    def _quality(self, network: str) -> Piece:
        rules, training = self.config.quality, self.training(network)
        training.advance(rules.steps)
        loss, accuracy = training.evaluate(self.data.validation)
        if not math.isfinite(loss):
            raise Refused(Fate.QUALITY, f"the validation loss is {loss} after {training.done} steps")
        threshold = least_accuracy(rules.threshold, self.data.classes)
        reason = f"validation accuracy {accuracy:.1%} after {training.done} steps, below {threshold:.1%}"
        return {"accuracy": accuracy, "short": loss} | (
            {} if accuracy >= threshold else {"refused": [Fate.QUALITY, reason]}
        )

    def _stability(self, network: str) -> Piece:
        rules, part = self.config.stability, self.data.train
        shuffled = stream(self.config.recipe.seed, "attack", 0).permutation(len(part.labels))
        batch = torch.from_numpy(shuffled[: rules.batch]).to(self.device)
        images = part.images[batch].contiguous(memory_format=memory_format(self.recipe))
        model = self.setup.model(network, self.recipe, self.task.repeat)
        largest, steps, stable = gradient_ascent(model, images, part.labels[batch], rules)
        if not stable:
            raise Refused(Fate.STABILITY, f"gradient norm {largest:.1e} after {steps} steps of ascent")
        return {"gradient": largest}

    def _halfway(self, network: str) -> Piece:
        training = self.training(network)
        training.advance(max(self.config.quality.steps, round(self.config.early.at * self.recipe.steps)))
        loss, _ = training.evaluate(self.data.validation)
        return {"halfway": loss} if math.isfinite(loss) else {}

    def _stop_early(self) -> None:
        limits, halfway = self.task.limits, self.out["halfway"]
        if limits and all(halfway.get(n, math.inf) > limit for n, limit in limits.items()):
            losses = ", ".join(f"{halfway.get(n, math.inf):.3f} on {n}" for n in limits)
            share = self.config.early.keep
            raise Refused(Fate.EARLY, f"halfway losses {losses}: not among the best {share:.0%} on any network")

    def _full(self, network: str) -> Piece:
        training = self.training(network)
        training.advance(self.recipe.steps)
        loss, accuracy = training.evaluate(self.data.validation)
        if not math.isfinite(loss):
            raise Refused(Fate.FULL, f"the validation loss is {loss} after {training.done} steps")
        piece = {"loss": loss, "accuracy": accuracy}
        if "shift" in self.config.objectives.also:
            losses = [training.evaluate(part)[0] for part in shifted(self.data.validation)]
            if not all(map(math.isfinite, losses)):
                raise Refused(Fate.FULL, f"the loss on shifted images is {max(losses)} after {training.done} steps")
            piece["shift"] = math.fsum(losses) / len(losses)
        return piece

    def _final(self, network: str) -> Piece:
        training = self.training(network)
        piece = self._full(network)
        holdout, _ = training.evaluate(self.data.holdout)
        _, test = training.evaluate(self.data.test)
        if not math.isfinite(holdout):
            raise Refused(Fate.FULL, f"the held-out loss is {holdout} after {training.done} steps")
        return piece | {"holdout": holdout, "test": test}

    def _scores(self) -> dict[str, float]:
        scores = {n: self._score(loss, self.out["accuracy"][n]) for n, loss in self.out["loss"].items()}
        for name in self.config.objectives.also:
            with self._timed(Fate.FULL):
                scores[name] = self._further(name)
        return scores

    def _further(self, name: str) -> float:
        if name == "traffic":
            return traffic(self.graph)
        if name == "margin":
            return margin(self.out["gradient"])
        if name == "shift":
            losses = [self.pieces[f"full/{n}"]["shift"] for n in self.config.networks.use]
            return math.fsum(losses) / len(losses)
        network = self.config.networks.use[0]
        self._pass("small_batch", network)
        return float(self.pieces[f"small_batch/{network}"]["score"])

    def _small_batch(self, network: str) -> Piece:
        recipe = self.recipe.model_copy(update={"batch": self.config.objectives.small_batch, "accumulate": 1})
        training = self.setup.training(network, recipe, self.task.repeat)
        self.trainings[f"small_batch/{network}"] = training
        training.advance(recipe.steps)
        loss, accuracy = training.evaluate(self.data.validation)
        if not math.isfinite(loss):
            raise Refused(Fate.FULL, f"the validation loss is {loss} after training with batches of {recipe.batch}")
        return {"score": self._score(loss, accuracy)}

    def _score(self, loss: float, accuracy: float) -> float:
        return loss if self.config.objectives.score == "loss" else 1 - accuracy

    # -- their parts

    def piece(self, stage: str, network: str) -> Piece:
        """The piece of a stage on a network, from the cache if it is there. A refusal is a piece too, with the key
        `refused`: fate and reason. Where the stage trains, `steps` are those that its training has done by then."""
        key = f"{stage}/{network}"
        self.used.append(key)
        if key in self.pieces:
            self.cached += 1
            return self.pieces[key]
        try:
            piece: Piece = getattr(self, f"_{stage}")(network)
        except Refused as refused:
            piece = {"refused": [refused.fate, str(refused)]}
        except Diverged as diverged:
            piece = {"refused": [_FATES[stage], str(diverged)]}
        name = _training_of(key)
        if stage in _FATES and name in self.trainings:
            piece["steps"] = self.trainings[name].done
            if stage in _ENDS:
                del self.trainings[name]
        self.pieces[key] = piece
        return piece

    def _pass(self, stage: str, network: str) -> None:
        """Go through a stage on a network."""
        piece = self.piece(stage, network)
        for name, value in piece.items():
            if name in self.out:
                self.out[name][network] = value
        if refusal := piece.get("refused"):
            where = f" ({network})" if len(self.config.networks.use) > 1 else ""
            raise Refused(Fate(refusal[0]), f"{refusal[1]}{where}")

    def training(self, network: str) -> Training:
        """The training on a network, begun if it was not."""
        if network not in self.trainings:
            self.trainings[network] = self.setup.training(network, self.recipe, self.task.repeat)
        return self.trainings[network]

    def _trained(self) -> float:
        steps: dict[str, int] = {}
        for key in self.used:  # stages of one training go on from one another
            name = _training_of(key)
            steps[name] = max(steps.get(name, 0), self.pieces.get(key, {}).get("steps", 0))
        return equivalents(self.config, load_data(self.config.data), steps) if any(steps.values()) else 0.0

    def _outcome(self, fate: Fate, reason: str, scores: dict[str, float] | None = None) -> Outcome:
        peak = peak_memory(self.device)
        return Outcome(
            fate,
            reason,
            scores or {},
            **self.out,
            seconds=self.seconds,
            rung=self.task.rung if fate in (Fate.PASSED, Fate.SCORED) else "",
            trained=self._trained(),
            peak=peak,
            cached=self.cached,
            pieces=self.pieces,
        )

    @contextmanager
    def _timed(self, stage: Fate) -> Iterator[None]:
        self.stage = stage
        with timed(self.seconds, stage.value):
            yield
