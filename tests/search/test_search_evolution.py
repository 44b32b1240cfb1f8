import math
import subprocess
import sys

import pytest

from normforge.search import space
from normforge.search.config import Evolution
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.streams import stream


def identity(genotype: space.Genotype) -> str:
    return space.to_graph(genotype).hash


def make(**rules) -> TournamentEvolution:
    return TournamentEvolution(Evolution(**rules), nodes=10, seed=0, identity=identity)


def member(index: int, *scores: float) -> Member:
    return Member(index, space.random_genotype(stream(0, "member", index), 10), scores)


def test_proposals_depend_on_index_and_population_alone():
    one, other = make(), make()
    for evolution in (one, other):
        for i in range(20):
            evolution.tell(member(i, float(i)))
    assert [one.ask(i) for i in range(30)] == [other.ask(i) for i in reversed(range(30))][::-1]


def test_the_oldest_leaves():
    evolution = make(window=3)
    for i in range(5):
        evolution.tell(member(i, float(i)))
    assert [m.index for m in evolution.population] == [2, 3, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_never_win(bad):
    evolution = make(tournament=1.0)
    evolution.tell(member(0, 1.0, 1.0))
    for i in range(1, 10):
        evolution.tell(member(i, bad, 0.0))
    assert {evolution.winner(stream(0, "t", i)).index for i in range(50)} == {0}


def test_with_one_objective_the_best_of_the_tournament_wins():
    evolution = make(tournament=1.0)
    for i in range(10):
        evolution.tell(member(i, abs(i - 4.0)))
    assert {evolution.winner(stream(0, "t", i)).index for i in range(20)} == {4}


def test_with_several_objectives_winners_come_from_the_front():
    evolution = make(tournament=1.0)
    for i, scores in enumerate([(0.0, 2.0), (1.0, 1.0), (2.0, 0.0), (2.0, 2.0), (1.5, 1.5)]):
        evolution.tell(member(i, *scores))
    assert {evolution.winner(stream(0, "t", i)).index for i in range(200)} == {0, 1, 2}


def test_a_child_computes_another_function_and_names_its_parent():
    evolution = make(fresh=0.0, attempts=50)
    evolution.tell(member(3, 1.0))
    before = identity(evolution.population[0].genotype)
    children = [evolution.ask(i) for i in range(10)]
    assert all(c.parent == 3 for c in children)
    assert all(identity(c.genotype) != before for c in children)


def test_the_share_of_fresh_layers():
    evolution = make(fresh=0.5)
    evolution.tell(member(0, 1.0))
    fresh = sum(evolution.ask(i).parent is None for i in range(200))
    assert 70 < fresh < 130


def test_the_front_end_needs_no_torch():
    code = (
        "import sys, normforge.search.runner, normforge.search.evolution, normforge.search.report; "
        "sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
