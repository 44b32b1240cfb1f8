"""Run directories without a run: events as the runner writes them, of layers from the real space with made-up fates."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console

from normforge.search import events, objectives, results
from normforge.search.config import Config, load
from normforge.search.events import Began, Candidate, Compared, Reranked
from normforge.search.evolution import Member, Proposal, TournamentEvolution
from normforge.search.funnel import Fate, Outcome, formula
from normforge.search.space import SearchSpace
from normforge.search.store import Store
from normforge.train.settings import flat

HOSTILE = "</script><img src=x onerror=alert(1)> [bold]&amp; \x1b[2J"
THREE = "networks.use=resnet,mobilenet,efficientnet"
CLASSES = 10
# Shares of the candidates that are evaluated, and seconds of the stages that they come through.
FATES = {
    Fate.PROBING: 0.3,
    Fate.QUALITY: 0.25,
    Fate.STABILITY: 0.05,
    Fate.FULL: 0.02,
    Fate.ERROR: 0.02,
    Fate.TIMEOUT: 0.01,
    Fate.SCORED: 0.35,
}
SECONDS = {"probing": 0.05, "quality": 1.5, "stability": 2.5, "full": 3.0}


class Fabrication:
    """A store that is filled candidate by candidate."""

    def __init__(self, directory: Path, config: Config, seed: int = 0) -> None:
        self.config, self.rng = config, np.random.default_rng(seed)
        self.space = SearchSpace(config.space)
        self.store = Store(directory, write=True)
        self.evolution = TournamentEvolution(config.evolution, self.space, seed, repr)
        self.elapsed, self.index = 0.0, 0
        self.events: list[events.Event] = []
        self.session()

    def session(self) -> None:
        count = sum(isinstance(e, Began) for e in [*events.every(self.store), *self.events])
        settings = dict(flat(self.config))
        self.events.append(Began(count, self.elapsed, settings, "0" * 32, CLASSES, "cpu", "machine", "code"))

    def candidate(self, fate: Fate, scores: dict[str, float] | None = None, reason: str = "", tell: bool = True) -> int:
        """One more candidate, with that fate; returns its index."""
        index, proposal = self.index, self.evolution.ask(self.index)
        self.index += 1
        self.elapsed += float(self.rng.uniform(0.1, 2.0))
        networks = self.config.networks.use
        if fate in (Fate.DEGENERATE, Fate.DUPLICATE):
            outcome = Outcome(fate, reason or "type: the output does not vary along s", seconds={"static": 0.004})
            self.add(index, proposal, outcome)
            return index
        stages = ("probing", "quality", "stability", "full")
        came = stages[: stages.index(fate) + 1] if fate in stages else stages
        seconds = {
            stage: round(SECONDS[stage] * len(networks) * float(self.rng.uniform(0.5, 1.5)), 4) for stage in came
        }
        outcome = Outcome(fate, reason or f"refused in {fate}", seconds=seconds)
        if fate is Fate.SCORED:
            scores = scores or {n: float(self.rng.uniform(0.3, 2.3)) for n in objectives.names(self.config)}
            outcome = Outcome(
                fate,
                "",
                scores,
                loss={n: scores[n] for n in networks},
                accuracy={n: 1 / (1 + scores[n]) for n in networks},
                gradient=dict.fromkeys(networks, 321.0),
                seconds=seconds,
            )
            if tell:
                self.evolution.tell(Member(index, proposal.genotype, tuple(scores.values())))
        elif fate is Fate.TIMEOUT:
            outcome = Outcome(fate, reason or "stopped at the time limit of 180 s")
        graph = self.space.to_graph(proposal.genotype)
        self.add(index, proposal, outcome, hash=graph.structure, formula=formula(graph))
        return index

    def add(self, index: int, proposal: Proposal, outcome: Outcome, **keys: str) -> None:
        made = Candidate(index, self.elapsed, proposal.genotype, proposal.parents, outcome=outcome, **keys)
        self.events.append(made)

    def draw(self, count: int, static: float = 0.6) -> None:
        """Candidates with fates by the shares above, `static` of them refused without numbers."""
        for _ in range(count):
            if self.rng.random() < static:
                self.candidate(Fate.DEGENERATE if self.rng.random() < 0.8 else Fate.DUPLICATE)
            else:
                self.candidate(list(FATES)[self.rng.choice(len(FATES), p=list(FATES.values()))])
        self.flush()

    def end(self) -> None:
        """Re-ranking and comparison; the second repeat of the first layer fails."""
        final = self.config.final
        self.flush()
        top = results.best_distinct(results.scored(self.store), final.candidates, self.space)
        for layer in top:
            self.events.append(Reranked(layer.name, self.elapsed, self.trained()))
        self.flush()
        found = results.reranked(self.store, top, final.best)
        for repeat in range(1, final.seeds + 1):
            for k, (name, _) in enumerate(results.final_layers(found, self.config, self.space)):
                outcome = self.trained(fails=(k, repeat) == (0, 2))
                self.events.append(Compared(f"{name}/{repeat}", self.elapsed, outcome))
        self.flush()

    def trained(self, *, fails: bool = False) -> Outcome:
        if fails:
            return Outcome(Fate.FULL, "the loss is nan at step 7", seconds={"full": 1.0})
        networks = self.config.networks.use
        draw = {k: {n: float(self.rng.uniform(0.3, 0.9)) for n in networks} for k in ("loss", "accuracy", "test")}
        holdout = {n: float(self.rng.uniform(0.3, 0.9)) for n in networks}
        return Outcome(Fate.SCORED, scores=dict(holdout), holdout=holdout, seconds={"full": 4.0}, **draw)

    def flush(self) -> None:
        self.store.append(e.record() for e in self.events)
        self.events = []

    def close(self) -> None:
        self.flush()
        self.store.close()


def finished(directory: Path, *overrides: str, drawn: int = 120, static: float = 0.6) -> Path:
    """A run that has come to its end, with a hostile reason among the refused."""
    run = Fabrication(directory, load("digits", overrides))
    run.draw(drawn, static)
    run.candidate(Fate.ERROR, reason=f"ValueError: {HOSTILE}")
    run.end()
    run.close()
    return directory


def quiet(width: int = 120) -> Console:
    return Console(file=StringIO(), width=width)


def printed(console: Console) -> str:
    return console.file.getvalue()


def stored(directory: Path, kind: str) -> dict[str, dict]:
    """The data of all events of a kind, by key."""
    store = Store(directory)
    found = {r.key: r.data for r in store.records(kind)}
    store.close()
    return found


def chain_of_three(directory: Path) -> list[int]:
    """A run with a fresh layer, its child and its grandchild, whose indices are returned, and others between them."""
    rules = ["evolution.fresh=0", "evolution.tournament_least=1", "evolution.window=1"]
    made = Fabrication(directory, load("digits", rules))
    chain = []
    for score in (0.9, 0.8, 0.7):
        made.candidate(Fate.DEGENERATE)
        chain.append(made.candidate(Fate.SCORED, {"resnet": score}))
        made.candidate(Fate.SCORED, {"resnet": 5.0 + score}, tell=False)
    made.close()
    return chain
