import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.search.config import Evolution, Space
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.selection import best_first, crowding, front, mean_ranks, nsga2_ranking
from normforge.search.space import PAPER, Genotype, SearchSpace
from normforge.streams import stream


def identity(genotype: Genotype) -> str:
    return PAPER.to_graph(genotype).hash


def make(**rules) -> TournamentEvolution:
    return TournamentEvolution(Evolution(**rules), PAPER, seed=0, identity=identity)


def member(index: int, *scores: float) -> Member:
    return Member(index, PAPER.random(stream(0, "member", index)), scores)


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
    assert all(c.parents == (3,) for c in children)
    assert all(identity(c.genotype) != before for c in children)


def test_the_share_of_fresh_layers():
    evolution = make(fresh=0.5)
    evolution.tell(member(0, 1.0))
    fresh = sum(not evolution.ask(i).parents for i in range(200))
    assert 70 < fresh < 130


def test_selection_by_the_mean_rank():
    evolution = make(tournament=1.0, selection="average")
    # The first is best by far in a score of wide range; the second by a little in two others.
    for i, scores in enumerate([(0.0, 0.5, 0.5), (10.0, 0.1, 0.1), (20.0, 0.9, 0.9)]):
        evolution.tell(member(i, *scores))
    assert {evolution.winner(stream(0, "t", i)).index for i in range(20)} == {1}


def test_selection_by_the_first_network():
    evolution = make(tournament=1.0, selection="first")
    for i in range(5):
        evolution.tell(member(i, abs(i - 3.0), -abs(i - 3.0)))
    assert {evolution.winner(stream(0, "t", i)).index for i in range(20)} == {3}


def test_nsga2_keeps_the_first_front_and_its_ends():
    evolution = make(window=4, selection="nsga2")
    points = [(0.0, 4.0), (4.0, 0.0), (2.0, 2.0), (2.1, 1.9), (5.0, 5.0), (1.0, 3.0)]
    for i, scores in enumerate(points):
        evolution.tell(member(i, *scores))
    kept = {m.index for m in evolution.population}
    assert {0, 1} <= kept and 4 not in kept and len(kept) == 4


def brute_front(scores):
    def beaten(a):
        return any(all(y <= x for x, y in zip(a, b, strict=True)) and b != a for b in scores)

    return [i for i, a in enumerate(scores) if not beaten(a)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_fronts_are_as_defined(scores):
    first = brute_front(scores)
    assert front(scores) == first
    assert set(best_first(scores)[: len(first)]) == set(first)
    assert set(nsga2_ranking(scores)[: len(first)]) == set(first)
    assert sorted(best_first(scores)) == sorted(nsga2_ranking(scores)) == list(range(len(scores)))


def test_mean_ranks_share_ties():
    assert mean_ranks([(1.0, 5.0), (1.0, 4.0), (3.0, 3.0)]).tolist() == [(0.5 + 2) / 2, (0.5 + 1) / 2, (2 + 0) / 2]


def test_crowding_is_that_of_nsga2():
    distance = crowding([(0.0, 4.0), (1.0, 2.0), (4.0, 0.0)])
    assert distance[0] == distance[2] == math.inf
    assert distance[1] == (4.0 - 0.0) / 4.0 + (4.0 - 0.0) / 4.0


def test_layers_to_start_with_come_first_and_crossover_names_two_parents():
    start = [PAPER.random(stream(9, "s", i)) for i in range(2)]
    evolution = TournamentEvolution(Evolution(fresh=0.0, crossover=1.0), PAPER, 0, identity, start)
    assert [evolution.ask(i).genotype for i in range(2)] == start
    for i in range(6):
        evolution.tell(member(i, float(i)))
    children = [evolution.ask(i) for i in range(2, 12)]
    assert all(len(c.parents) == 2 for c in children)
    by_index = {m.index: m.genotype for m in evolution.population}
    for child in children:  # but for the one mutated gene, each gene is that of a parent
        one, other = (by_index[i] for i in child.parents)
        foreign = [g for g, a, b in zip(child.genotype, one, other, strict=True) if g not in (a, b)]
        assert len(foreign) <= 1


def test_a_space_without_batch_moments_draws_none():
    drawn = SearchSpace(Space(batch=False))
    assert not any("b,w,h" in name for name in drawn.primitives)
    assert len(drawn.primitives) == 4 + 8 + 3 * 3


def test_the_front_end_needs_no_torch():
    code = (
        "import sys, normforge.search.run, normforge.search.evolution, normforge.search.reports.report; "
        "sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
