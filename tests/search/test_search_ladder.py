"""The ladder of fidelities: who is promoted, rung by rung; runs with it go the same way however they are run."""

import dataclasses
import math
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_tools import TINY, contents, quiet, start, wait_for_candidates
from search_fabricated import printed

from normforge.errors import OptionError
from normforge.ir import parse
from normforge.search import results
from normforge.search.config import Config, load
from normforge.search.cost import equivalents
from normforge.search.evaluate import Evaluation, run_task
from normforge.search.events import Began, Compared, candidate, candidates, find
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.funnel import Fate, Outcome, least_accuracy
from normforge.search.ladder import Ladder
from normforge.search.provenance import Provenance
from normforge.search.reports.lineage import show
from normforge.search.reports.report import print_so_far, report
from normforge.search.reports.summary import summary_of
from normforge.search.run import run
from normforge.search.run.session import Session
from normforge.search.space import PAPER
from normforge.search.store import Store
from normforge.search.tasks import Task
from normforge.train.config import DataConfig, Networks
from normforge.train.data import load_data, shrunk
from normforge.train.networks.cost import multiply_adds

RUNGS = ("micro", "quality", "full", "stability")
MADE_UP = "search_faults:made_up"
FABRICATED = [
    *TINY,
    "ladder.use=micro,quality,full,stability",
    "ladder.promote=0.8,0.8,1",
    "networks.use=resnet,mobilenet",
    "evolution.lag=5",
    "budget.candidates=600",
    "budget.trained=60",
]
REAL = [
    *TINY,
    "ladder.use=micro,quality,full,stability",
    "ladder.micro.steps=4",
    "ladder.micro.look=2",
    "ladder.micro.batch=8",
    "ladder.micro.begun=0",
    "networks.plain.channels=4,8",
]


# -- the rule

results_in_turn = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60)


@given(results_in_turn, st.sampled_from([(0.25,), (0.5,), (1.0,), (0.5, 0.3), (1.0, 0.5)]))
def test_promotions_are_of_the_best_share_of_a_rung_the_highest_rung_first(told, shares):
    ladder = Ladder(("low", "middle", "high"), shares)
    by_rung = (shares * 2)[:2]
    waiting = [(0, index) for index in range(len(told))]
    known: list[dict[int, int]] = [{}, {}, {}]
    promoted: list[set[int]] = [set(), set()]

    def due(rung: int) -> list[int]:
        """As the rule says it: among the best of what came through, not promoted."""
        passed = sorted((score, index) for index, score in known[rung].items())
        best = passed[: int(by_rung[rung] * len(passed))]
        return [index for _, index in best if index not in promoted[rung]]

    while waiting:
        rung, index = waiting.pop(0)
        score, passes = told[(index + rung) % len(told)]
        if passes:
            known[rung][index] = score
            ladder.tell(rung, index, (float(score),))
        while promotion := ladder.next():
            who, to = promotion
            below = ("low", "middle", "high").index(to) - 1
            assert who == due(below)[0]
            assert below == 1 or not due(1)  # a higher rung comes first
            promoted[below].add(who)
            waiting.append((below + 1, who))
        assert not due(0) and not due(1)


def test_without_a_ladder_nobody_is_promoted():
    ladder = Ladder(("",), (0.25,))
    for index in range(8):
        ladder.tell(0, index, (float(index),))
    assert ladder.next() is None


def test_layers_of_several_networks_are_promoted_by_mean_rank():
    ladder = Ladder(("low", "high"), (0.34,))
    for index, scores in enumerate([(1.0, 9.0), (2.0, 2.0), (3.0, 3.0)]):
        ladder.tell(0, index, scores)
    assert ladder.next() == (1, "high") and ladder.next() is None


def test_a_layer_of_a_higher_rung_wins_a_tournament_and_keeps_its_age():
    config = load("digits", ["evolution.window=3", "evolution.tournament=1"])
    evolution = TournamentEvolution(config.evolution, PAPER, 0, repr)
    for index, score in enumerate((0.1, 0.5, 0.3)):
        evolution.tell(Member(index, (), (score,)))
    evolution.tell(Member(1, (), (7.0, 8.0), rung=1))
    assert [m.index for m in evolution.population] == [0, 1, 2]
    assert evolution.winner(np.random.default_rng(0)).index == 1
    evolution.tell(Member(3, (), (0.2,)))  # 0 leaves
    evolution.tell(Member(0, (), (0.2,), rung=2))  # it has left
    assert [m.index for m in evolution.population] == [1, 2, 3]
    evolution.tell(Member(4, (), (0.2,)))  # 1 leaves
    assert evolution.winner(np.random.default_rng(0)).scores == (0.2,)


def test_a_niche_keeps_the_best_of_its_highest_rung():
    rules = load("digits", ["evolution.niche=0.9", "evolution.selection=average", "evolution.ties=0.5"]).evolution
    tanh, relu = (
        PAPER.encode(parse(f"{f} * gamma + beta"), np.random.default_rng(0)) for f in ("tanh(x)", "max(x, 0)")
    )
    behaviour = {tanh: np.array([1.0, 0.0]), relu: np.array([0.0, 1.0])}
    evolution = TournamentEvolution(rules, PAPER, 0, repr, behaviour=behaviour.__getitem__)
    for index, genotype in enumerate((tanh, tanh, relu)):
        evolution.tell(Member(index, genotype, (0.1 * (index + 1),)))
    assert [m.index for m in evolution.parents()] == [0, 2]
    evolution.tell(Member(1, tanh, (7.0, 8.0), rung=1))
    assert [m.index for m in evolution.parents()] == [1, 2]


# -- runs of fabricated evaluations


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "ladder"
    assert run(load("digits", [*FABRICATED, "workers.count=1"]), directory, quiet(), work=MADE_UP)
    return directory


def test_a_run_climbs_the_ladder(finished):
    stored = contents(finished)
    rungs = {key.partition("/")[2] for kind, key in stored if kind == "promoted"}
    assert rungs == set(RUNGS[1:])
    for kind, key in stored:
        if kind == "promoted":
            index, _, rung = key.partition("/")
            below = RUNGS[RUNGS.index(rung) - 1]
            before = stored["candidate", index] if below == "micro" else stored["promoted", f"{index}/{below}"]
            assert (before["fate"], before["rung"]) == ("passed", below)
    assert any(data["fate"] == "stability" for data in stored.values())
    # No layer is drawn when as much was trained as the budget has; what is under way ends, and what is due goes up.
    spent = [data.get("trained", 0) for (kind, _), data in stored.items() if kind in ("candidate", "promoted")]
    assert 60 <= sum(spent) <= 60 + 10 * max(spent)


def test_found_is_what_came_through_the_last_rung(finished):
    store = Store(finished)
    scored, everyone = results.scored(store), candidates(store)
    passed = [key.partition("/")[0] for (kind, key), data in contents(finished).items() if data["fate"] == "scored"
              and kind == "promoted"]  # fmt: skip
    assert sorted(c.index for c in scored) == sorted(map(int, passed))
    for layer in scored:
        assert list(layer.outcome.scores) == ["resnet", "mobilenet"] and layer.outcome.rung == "stability"
        assert "micro" in layer.outcome.loss
        assert candidate(store, layer.index) == layer
        assert layer.outcome.trained == pytest.approx(1 + 2 + 4)
    unstable = [c for c in everyone if c.outcome.fate is Fate.STABILITY]
    assert unstable and all(c.outcome.rung == "full" and c.outcome.scores for c in unstable)
    store.close()
    summary = summary_of(finished)
    assert [c.index for c in summary.ranked] == [c.index for c in scored]
    assert summary.drawn == sum(kind == "candidate" for kind, _ in contents(finished))
    assert summary.trained == pytest.approx(sum(c.outcome.trained for c in everyone))
    at = [point.trained for point in summary.curve]
    assert at == sorted(at) and len(at) == len(scored) and at[-1] <= summary.trained
    console = quiet()
    report(finished, console)
    assert "eq trained" in printed(console) and "passed" in printed(console)


def test_four_workers_go_the_same_way(finished, tmp_path):
    assert run(load("digits", [*FABRICATED, "workers.count=4"]), tmp_path / "four", quiet(), work=MADE_UP)
    assert contents(tmp_path / "four") == contents(finished)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(finished, tmp_path):
    directory = tmp_path / "killed"
    process = start(directory, *FABRICATED, "workers.count=2", work="search_faults:made_up_to_300")
    wait_for_candidates(directory, 9)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    kept = contents(directory)
    assert 0 < len(kept) < len(contents(finished))
    assert run(load("digits", FABRICATED), directory, quiet(), work=MADE_UP)
    assert contents(directory) == contents(finished)
    assert kept.items() <= contents(directory).items()
    assert run(load("digits", FABRICATED), directory, quiet(), work="search_faults:missing")  # nothing is left to do


def test_found_layers_are_trained_until_they_are_told_from_known_ones(tmp_path):
    most = 6
    config = load("digits", [*FABRICATED, "final.best=2", "final.seeds=2", f"final.apart={most}"])
    assert run(config, tmp_path / "whole", quiet(), work=MADE_UP)
    summary = summary_of(tmp_path / "whole")
    told = results.verdicts(summary.rows, config.networks.use)
    assert len(told) == 2
    repeats = {}
    for _, key in (k for k in contents(tmp_path / "whole") if k[0] == Compared.TYPE):
        name, _, repeat = key.rpartition("/")
        repeats.setdefault(name, set()).add(int(repeat))
    for verdict in told:  # the number after the seeds is the second ranking's
        assert repeats[verdict.found] == {1, 2} | set(range(4, 2 + verdict.trainings[0]))
        assert verdict.apart or verdict.trainings[0] == most
    near = {v.near.name for v in told}
    assert all(repeats[name] == {1, 2} for name in set(config.final.baselines) - near)
    console = quiet()
    report(tmp_path / "whole", console, html=False)
    assert all(str(v) in " ".join(printed(console).split()) for v in told)


def test_a_larger_budget_goes_on(finished, tmp_path):
    small = [*FABRICATED, "budget.trained=30"]
    assert run(load("digits", small), tmp_path / "grown", quiet(), work=MADE_UP)
    before = contents(tmp_path / "grown")
    assert run(load("digits", FABRICATED), tmp_path / "grown", quiet(), work=MADE_UP)
    after, straight = contents(tmp_path / "grown"), contents(finished)
    searched = ("candidate", "promoted")
    assert {k: v for k, v in after.items() if k[0] in searched} == {
        k: v for k, v in straight.items() if k[0] in searched
    }
    assert {k for k in before if k[0] in searched} < {k for k in after if k[0] in searched}


def test_a_session_that_goes_on_counts_from_what_is_stored(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config, summary = load("digits", FABRICATED), summary_of(finished)
    store = Store(tmp_path / "run", write=True)
    began = find(store, Began, "0")
    origin = Provenance(began.digest, began.classes, began.device, began.machine, began.code)
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"device": began.device})})
    progress = Session(config, store, origin, PAPER).progress
    store.close()
    assert +progress.fates == +summary.fates and progress.drawn == summary.drawn
    assert progress.evaluated == len(summary.evaluated)
    assert progress.promoted == sum(kind == "promoted" for kind, _ in contents(finished))
    assert progress.trained == pytest.approx(summary.trained)
    assert progress.before == (progress.elapsed, progress.evaluated) and progress.rate == 0
    assert {c.index for c in progress.leaders} <= {c.index for c in summary.ranked} and progress.leaders


def test_an_interrupted_run_says_what_it_has_and_how_to_look_at_it(finished):
    console = quiet()
    print_so_far(finished, console)
    text = printed(console)
    assert "layers drawn" in text and "scored" in text
    reference = re.search(r'next: normforge show "(.+)"', text)[1]
    shown = quiet()
    show(reference, shown)
    assert "scored" in printed(shown) and "micro" in printed(shown)


def test_a_ladder_of_one_rung_scores_by_it(tmp_path):
    settings = [*FABRICATED, "ladder.use=micro", "ladder.promote=0.5", "budget.trained=8"]
    assert run(load("digits", settings), tmp_path / "micro", quiet(), work=MADE_UP)
    summary = summary_of(tmp_path / "micro")
    assert summary.objectives == ("micro",) and len(summary.curve) == len(summary.ranked) > 0
    assert not any(kind == "promoted" for kind, _ in contents(tmp_path / "micro"))
    report(tmp_path / "micro", quiet())
    assert len(summary.rows) == 2


# -- evaluations


def task(name: str, config: Config, rung: str, **fields) -> Task:
    return Task("0", parse(name), config, rung=rung, **fields)


@pytest.mark.usefixtures("one_thread")
def test_rungs_are_stages_of_the_funnel_and_count_what_they_train():
    config = load("digits", REAL)
    found = {rung: run_task(task("gn-silu", config, rung)) for rung in RUNGS}
    assert [o.fate for o in found.values()] == [Fate.PASSED] * 3 + [Fate.SCORED]
    assert [o.rung for o in found.values()] == list(RUNGS)
    assert [list(o.seconds) for o in found.values()] == [["probing", "micro"], ["quality"], ["full"], ["stability"]]
    assert [list(o.scores) for o in found.values()] == [["micro"], ["resnet"], ["resnet"], []]
    whole = run_task(task("gn-silu", load("digits", TINY), ""))
    assert found["full"].scores == whole.scores and found["stability"].gradient == whole.gradient
    assert found["micro"].trained == 1.0 and found["stability"].trained == 0 and whole.trained == 1.0
    resnet = multiply_adds("resnet", config.networks, 1, 10, 8) * 64
    plain = multiply_adds("plain", config.networks, 1, 10, 8) * 8
    assert found["full"].trained == pytest.approx(2 * resnet / (4 * plain), abs=1e-4)
    assert found["quality"].trained == pytest.approx(1 * resnet / (4 * plain), abs=1e-4)
    again = run_task(task("gn-silu", config, "full", known=found["full"].pieces))
    assert again.cached == 1 and (again.scores, again.trained) == (found["full"].scores, found["full"].trained)
    climbed = found["stability"].after(found["full"].after(found["quality"].after(found["micro"])))
    assert climbed.fate is Fate.SCORED and climbed.scores == whole.scores and climbed.gradient == whole.gradient
    assert Outcome.from_json(climbed.to_json()) == dataclasses.replace(climbed, pieces={})


@pytest.mark.usefixtures("one_thread")
def test_what_has_not_begun_to_learn_is_stopped_at_the_look():
    config = load("digits", [*REAL, "ladder.micro.begun=10"])
    outcome = run_task(task("gn-silu", config, "micro"))
    assert outcome.fate is Fate.MICRO and "after 2 steps, below 19.0%" in outcome.reason
    assert outcome.trained == 0.5 and not outcome.rung and not outcome.scores
    evaluation = Evaluation(task("gn-silu", config, "micro", repeat=3))
    evaluation.run()
    assert not evaluation.trainings or evaluation.trainings["micro"].done == 2


def test_multiply_adds_of_a_plain_network_by_hand():
    networks = Networks(plain={"channels": [4, 8, 16]})
    convolutions = 9 * (3 * 4 * 64 + 4 * 8 * 64 + 8 * 16 * 16)
    assert multiply_adds("plain", networks, 3, 10, 8) == convolutions + 16 * 10


def test_equivalents_are_of_the_first_rung():
    data = load_data(DataConfig())
    both = ["networks.use=resnet,mobilenet", "quality.steps=50", "recipe.steps=200"]
    whole, short = load("digits", both), load("digits", [*both, "ladder.use=quality,full"])
    assert equivalents(whole, data, {"resnet": 200, "mobilenet": 200}) == 1.0
    assert equivalents(short, data, {"resnet": 200, "mobilenet": 200}) == 4.0
    assert equivalents(load("digits", ["ladder.use=micro"]), data, {"micro": 30}) == 0.25


def test_small_images_are_averages():
    config = DataConfig(source="fractals", fractals={"size": 12, "train": 64, "held_out": 30})
    data, small = load_data(config), shrunk(config, 4)
    assert small.train.images.shape == (64, data.train.images.shape[1], 4, 4)
    means = data.train.images[0, 0].reshape(4, 3, 4, 3).mean((1, 3)).flatten()
    assert torch.corrcoef(torch.stack([means, small.train.images[0, 0].flatten()]))[0, 1] > 0.9999
    assert small.train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert small.train.images.std().item() == pytest.approx(1, abs=1e-5)
    assert shrunk(config, 12) is data and small.digest != data.digest


# -- settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ladder.use=full,micro"], "in this order"),
        (["ladder.use=micro,micro"], "in this order"),
        (["ladder.use=stability"], "ranks nothing"),
        (["ladder.use=micro,full", "ladder.promote=0.5,0.5"], "one value"),
        (["ladder.promote=0"], "ladder.promote"),
        (["ladder.use=full,stability", "stability.steps=0"], "stability.steps above 0"),
        (["ladder.use=micro", "ladder.micro.look=500"], "ladder.micro.look"),
        (["ladder.use=micro,full", "early.keep=0.5"], "early.keep"),
        (["ladder.use=full,stability", "objectives.also=margin"], "margin"),
        (["ladder.use=micro,quality", "objectives.also=traffic"], "rung full"),
        (["ladder.use=micro", "evolution.order=arrival"], "arrival"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(OptionError, match=message):
        load("digits", overrides)


def test_the_least_accuracy_makes_sense_for_two_classes_and_for_many():
    assert least_accuracy(2.0, 10) == 0.2 and least_accuracy(2.0, 1000) == 0.002
    assert least_accuracy(1.5, 2, way=0.1) == pytest.approx(0.55) and least_accuracy(1.5, 10, way=0.1) == 0.15
    assert least_accuracy(2.0, 2) == 0.75 and math.isclose(least_accuracy(2.0, 3), 2 / 3)
