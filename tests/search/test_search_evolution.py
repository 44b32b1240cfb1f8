import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import OptionError
from normforge.ir import parse
from normforge.ir.ops import Op
from normforge.search import moves
from normforge.search.config import Evolution, Space, load
from normforge.search.evolution import Member, Proposal, TournamentEvolution
from normforge.search.objectives import traffic
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


def test_the_first_layers_are_fresh_until_enough_were_scored():
    evolution = make(first=3, fresh=0.0, window=2)
    for i in range(3):
        assert not any(evolution.ask(k).parents for k in range(5))
        evolution.tell(member(i, math.nan))
        evolution.tell(member(i, float(i)))
    assert all(evolution.ask(k).parents for k in range(5))


def test_grown_draws_read_x():
    evolution = make(draws="grown")
    graphs = [PAPER.to_graph(evolution.ask(i).genotype) for i in range(20)]
    assert all(any(n.op is Op.INPUT for n in g.nodes) for g in graphs)
    assert [evolution.ask(i).genotype for i in range(5)] == [moves.grown(stream(0, "ask", i), PAPER) for i in range(5)]


@pytest.mark.parametrize(("mutation", "least", "most"), [("redraw", 1, 1), ("moves", 2, 10), ("both", 1, 10)])
def test_what_a_mutation_changes(mutation, least, most):
    """A redraw differs in one gene; a move draws those that the output does not read anew."""
    evolution = make(mutation=mutation, fresh=0.0, attempts=1)
    parent = PAPER.encode(parse("tanh(x) / rms[w,h](x) * gamma + beta"), stream(0, "s", 0))
    evolution.tell(Member(0, parent, (1.0,)))
    differ = [sum(a != b for a, b in zip(evolution.ask(i).genotype, parent, strict=True)) for i in range(60)]
    assert min(differ) >= least and max(differ) <= most
    assert 15 < sum(n > 1 for n in differ) < 45 if mutation == "both" else max(differ) > 1 or mutation == "redraw"


def test_the_share_of_grafts_names_two_parents():
    evolution = make(grafts=0.5, fresh=0.0, mutation="moves")
    for i in range(6):
        evolution.tell(Member(i, moves.grown(stream(0, "grown", i), PAPER), (float(i),)))
    children = [evolution.ask(i) for i in range(100)]
    grafted = [c for c in children if len(c.parents) == 2]
    assert 35 < len(grafted) < 65
    by_index = {m.index: {g.primitive for g in moves.active(m.genotype)} for m in evolution.population}
    for child in grafted:
        one, two = child.parents
        assert {g.primitive for g in moves.active(child.genotype)} <= by_index[one] | by_index[two]


def named(index: int, formula: str, *scores: float) -> Member:
    return Member(index, PAPER.encode(parse(f"({formula}) * gamma + beta"), stream(0, "named", index)), scores)


def winners(evolution: TournamentEvolution) -> set[int]:
    return {evolution.winner(stream(0, "t", i)).index for i in range(50)}


@pytest.mark.parametrize("selection", ["pareto", "average", "first", "nsga2"])
def test_ties_go_to_the_layer_of_less_traffic(selection):
    """The gradient of a mean is the same wherever x is, so its backward does not read x; -tanh(x) has a node more."""
    best, level, longer = (
        named(i, text, s, s)
        for i, (text, s) in enumerate([("tanh(tanh(tanh(x)))", 1.0), ("tanh(x)", 1.02), ("-tanh(x)", 1.01)])
    )
    worse = named(3, "sigmoid(x)", 1.001, 1.06)
    cheap = named(4, "tanh(mean[w,h](x))", 1.04, 1.04)
    assert traffic(PAPER.to_graph(best.genotype)) > traffic(PAPER.to_graph(cheap.genotype))
    for ties, winner in ((0.0, 0), (0.015, 2), (0.03, 1), (0.045, 4)):
        evolution = make(tournament=1.0, selection=selection, ties=ties)
        for one in (best, level, longer, worse, cheap):
            evolution.tell(one)
        assert winners(evolution) == {winner}


# tanh and its negative are one line; tanh of a normalized layer and sigmoid are lines of their own.
FAMILY = {"tanh(x)": 0.0, "-tanh(x)": 3.14159, "tanh(tanh(x))": 0.05, "sigmoid(x)": 0.8, "tanh(x / std[b,w,h](x))": 1.5}


def angle(genotype: Genotype) -> np.ndarray | None:
    """A behaviour of two numbers, on which the layers lie as in `FAMILY`."""
    graph = PAPER.to_graph(genotype)
    for formula, a in FAMILY.items():
        if graph.hash == parse(f"({formula}) * gamma + beta").hash:
            return np.float32([math.cos(a), math.sin(a)])
    return None


def niched(scores: dict[str, float], **rules) -> TournamentEvolution:
    evolution = TournamentEvolution(Evolution(**rules), PAPER, 0, identity, behaviour=angle)
    for i, (formula, score) in enumerate(scores.items()):
        evolution.tell(named(i, formula, score))
    return evolution


@pytest.mark.parametrize("selection", ["pareto", "average", "first", "nsga2"])
def test_the_best_of_each_niche_can_be_a_parent(selection):
    scores = {"tanh(x)": 1.2, "-tanh(x)": 1.1, "sigmoid(x)": 1.4, "tanh(tanh(x))": 1.3, "tanh(x / std[b,w,h](x))": 1.0}
    assert [m.index for m in niched(scores, selection=selection, niche=0.98).parents()] == [4, 1, 2]
    assert len(niched(scores, selection=selection, niche=0.0).parents()) == 5
    assert len(niched(scores, selection=selection, niche=0.9999).parents()) == 4  # tanh(x) and -tanh(x) alone are one
    evolution = niched(scores, selection=selection, niche=0.98, fresh=0.0, tournament=0.01, tournament_least=1)
    assert {evolution.ask(i).parents[0] for i in range(40)} == {4, 1, 2}


def test_a_niche_is_free_when_its_best_has_left_the_window():
    evolution = niched({"tanh(x)": 1.0, "tanh(tanh(x))": 1.2, "sigmoid(x)": 1.1}, niche=0.98, window=3)
    assert [m.index for m in evolution.parents()] == [0, 2]
    evolution.tell(named(3, "-tanh(x)", 1.3))
    assert [m.index for m in evolution.population] == [1, 2, 3]
    assert [m.index for m in evolution.parents()] == [2, 1]


def test_layers_without_behaviour_are_niches_of_their_own():
    evolution = niched({"log(x)": 1.0, "exp(x)": 1.1, "tanh(x)": 1.2}, niche=0.5)
    assert len(evolution.parents()) == 3
    assert len(niched({"log(x)": 1.0, "exp(x)": 1.1}, niche=0.5).parents()) == 2


def test_within_a_niche_ties_go_to_the_smaller_layer():
    scores = {"tanh(tanh(x))": 1.0, "tanh(x)": 1.01}
    assert [m.index for m in niched(scores, niche=0.9).parents()] == [0]
    assert [m.index for m in niched(scores, niche=0.9, ties=0.02).parents()] == [1]


def test_niches_need_a_behaviour():
    with pytest.raises(OptionError, match=r"evolution\.niche"):
        make(niche=0.9)


def test_the_structural_protocol_is_decided_by_seed_index_and_what_was_told():
    rules = load("digits", ["evolution.protocol=structural", "evolution.niche=0.9", "evolution.grafts=0.5"]).evolution

    def proposals() -> list[Proposal]:
        evolution = TournamentEvolution(rules, PAPER, 3, identity, behaviour=angle)
        made = []
        for i in range(25):
            made.append(evolution.ask(i))
            evolution.tell(Member(i, made[-1].genotype, (float(stream(0, "score", i).random()),) * 2))
        return made

    first = proposals()
    assert first == proposals()
    assert not any(p.parents for p in first[:8]) and {1, 2} <= {len(p.parents) for p in first[8:]}


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
