from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.ir import parse, verify
from normforge.ir.types import FULL
from normforge.search import moves
from normforge.search.config import Space
from normforge.search.moves import MOVES, active
from normforge.search.space import INITIAL, PAPER, Gene, Genotype, SearchSpace
from normforge.streams import stream

SMALL = Space(nodes=4, operations=("add", "tanh", "mean"), index_sets=("w,h", "w,h,c"))
CUSTOM = Space(
    nodes=7, operations=("mul", "rms"), batch=False, custom={"swish": "a * sigmoid(b * a)", "relu": "max(a, 0)"}
)
SPACES = [PAPER, *map(SearchSpace, (SMALL, CUSTOM, Space(batch=False), Space(nodes=1)))]

seeds = st.integers(0, 2**32)
spaces = st.sampled_from(SPACES)


def layer(space: SearchSpace, seed: int) -> Genotype:
    """Half of them grown, since those read more of their genes."""
    rng = stream(seed, "layer", 0)
    return moves.grown(rng, space) if seed % 2 else space.random(rng)


def encoded(formula: str) -> Genotype:
    return PAPER.encode(parse(f"({formula}) * gamma + beta"), stream(0, "encoded", 0))


def words(genotype: Genotype) -> Counter[str]:
    """How often each primitive is active."""
    return Counter(gene.primitive for gene in active(genotype))


def reads_x(genotype: Genotype) -> bool:
    return any(0 in gene.inputs for gene in active(genotype))


def unrolled(genotype: Genotype) -> str:
    """The active graph as one text, whatever the numbers of its nodes."""
    texts = ["x", "0", "v0", "v1"]
    for name, inputs in genotype:
        texts.append(f"{name}({', '.join(texts[i] for i in inputs)})")
    return texts[-1]


@given(spaces, seeds)
def test_the_active_graph_is_the_layer(space, seed):
    genotype = layer(space, seed)
    genes = active(genotype)
    assert unrolled(genes) == unrolled(genotype) and space.to_graph(genes) == space.to_graph(genotype)
    read = {i for gene in genes for i in gene.inputs}
    assert all(INITIAL + k in read for k in range(len(genes) - 1))


@pytest.mark.parametrize("kind", MOVES)
@given(spaces, seeds)
def test_moved_layers_are_valid_and_decided_by_stream_and_parent(kind, space, seed):
    parent = layer(space, seed)
    child = moves.apply(kind, stream(seed, "move", 0), space, parent)
    assert child == moves.apply(kind, stream(seed, "move", 0), space, parent)
    if child is None:
        assert kind != "insert" or len(active(parent)) == space.nodes or not reads_x(parent)
        return
    assert len(child) == space.nodes and reads_x(child)
    verify(space.to_graph(child))


@given(spaces, seeds)
def test_grown_layers_are_valid_and_read_x(space, seed):
    genotype = moves.grown(stream(seed, "grow", 0), space)
    assert genotype == moves.grown(stream(seed, "grow", 0), space)
    assert len(genotype) == space.nodes
    assert min(moves.LEAST, space.nodes) <= len(active(genotype)) <= min(moves.MOST, space.nodes)
    assert reads_x(genotype)
    graph = space.to_graph(genotype)
    verify(graph)
    assert graph.output.axes == FULL


def test_a_space_of_moments_alone_has_grown_layers():
    space = SearchSpace(Space(nodes=3, operations=("mean",), index_sets=("w,h",)))
    assert reads_x(moves.grown(stream(0, "grow", 0), space))


@given(spaces, seeds, seeds)
def test_grafted_layers_are_valid_and_decided_by_stream_and_parents(space, seed, other):
    one, two = layer(space, seed), layer(space, other)
    child = moves.graft(stream(seed, "graft", 0), space, one, two)
    assert child == moves.graft(stream(seed, "graft", 0), space, one, two)
    if child is not None:
        assert len(child) == space.nodes and reads_x(child)
        verify(space.to_graph(child))
        assert sum(words(child).values()) <= space.nodes
        assert not words(child) - (words(one) + words(two))


@given(seeds)
def test_an_insertion_adds_one_node_and_keeps_all_others(seed):
    parent = moves.grown(stream(seed, "grow", 0), PAPER)
    child = moves.apply("insert", stream(seed, "move", 0), PAPER, parent)
    assert sum((words(child) - words(parent)).values()) == 1 and not words(parent) - words(child)


@given(seeds)
def test_a_deletion_adds_nothing(seed):
    parent = layer(PAPER, seed)
    child = moves.apply("delete", stream(seed, "move", 0), PAPER, parent)
    if child:
        assert not words(child) - words(parent) and words(child) != words(parent)


@given(seeds)
def test_a_change_is_of_one_primitive_to_one_of_as_many_operands(seed):
    parent = moves.grown(stream(seed, "grow", 0), PAPER)
    child = moves.apply("change", stream(seed, "move", 0), PAPER, parent)
    parent, child = active(parent), active(child)
    ((old, new),) = [(a, b) for a, b in zip(parent, child, strict=True) if a != b]
    assert old.inputs == new.inputs and old.primitive != new.primitive


@given(seeds)
def test_a_swap_is_of_one_operand(seed):
    parent = layer(PAPER, seed)
    child = moves.apply("swap", stream(seed, "move", 0), PAPER, parent)
    if child:
        assert unrolled(child) != unrolled(parent) and not words(child) - words(parent)
        assert child[-1].primitive == parent[-1].primitive


def reached(kind: str, parent: Genotype, space: SearchSpace = PAPER, draws: int = 400) -> set[str]:
    rng = stream(0, "reached", 0)
    return {unrolled(child) for _ in range(draws) if (child := moves.apply(kind, rng, space, parent))}


def test_all_single_changes_of_a_moment_are_reached():
    others = {name for name, p in PAPER.primitives.items() if p.arity == 1} - {"rms[w,h]"}
    assert reached("change", encoded("rms[w,h](x)")) == {f"{name}(x)" for name in others}


def test_half_of_the_changes_of_a_moment_are_of_its_index_set():
    rng, parent = stream(0, "half", 0), encoded("rms[w,h](x)")
    names = Counter(words(moves.apply("change", rng, PAPER, parent)).most_common(1)[0][0] for _ in range(300))
    of_the_moment = sum(n for name, n in names.items() if name.startswith("rms["))
    assert 150 < of_the_moment < 210  # half, and 3 in 19 of the others


def test_all_single_deletions_and_swaps_are_reached():
    parent = encoded("tanh(x) / rms[w,h](x)")
    assert reached("delete", parent) == {"tanh(x)", "rms[w,h](x)", "div(x, rms[w,h](x))", "div(tanh(x), x)"}
    found = reached("swap", parent)
    assert {"div(tanh(v1), rms[w,h](x))", "div(tanh(x), rms[w,h](tanh(x)))", "div(x, rms[w,h](x))"} <= found
    assert len(found) == 3 + 4 + 5 + 5  # operands of tanh, rms and div; one order of tanh and rms is there


def test_insertions_reach_every_edge_operand_and_primitive():
    space = SearchSpace(SMALL)
    found = reached("insert", (*space.random(stream(0, "room", 0))[:3], Gene("tanh", (0,))), space)
    for u in ("tanh", "mean[w,h]", "mean[w,h,c]"):
        assert {f"{u}(tanh(x))", f"tanh({u}(x))"} <= found
    above = {f"add({o}, tanh(x))" for o in ("x", "0", "v0", "v1")} | {
        f"add(tanh(x), {o})" for o in ("x", "0", "v0", "v1")
    }
    below = {f"tanh(add({o}, x))" for o in ("x", "0", "v0", "v1")} | {
        f"tanh(add(x, {o}))" for o in ("x", "0", "v0", "v1")
    }
    assert above | below | {"add(tanh(x), tanh(x))"} <= found
    assert len(found) == 6 + 9 + 8 - 2  # tanh(tanh(x)) and tanh(add(x, x)) are reached in two ways


def test_a_wrapped_node_is_replaced_wherever_it_is_read():
    space = SearchSpace(Space(operations=("tanh", "div", "neg", "rms"), index_sets=("w,h",)))
    found = reached("wrap", encoded("tanh(x) / rms[w,h](tanh(x))"), space, 4000)
    for u in ("tanh", "neg", "rms[w,h]"):
        assert {  # x, tanh(x), the moment, the whole
            f"div(tanh({u}(x)), rms[w,h](tanh({u}(x))))",
            f"div({u}(tanh(x)), rms[w,h]({u}(tanh(x))))",
            f"div(tanh(x), {u}(rms[w,h](tanh(x))))",
            f"{u}(div(tanh(x), rms[w,h](tanh(x))))",
        } <= found
    quotients = 2 * (4 + 5 + 6 + 7) - 4  # the wrapped node is either operand, any node before it the other
    assert len(found) == 3 * 4 + quotients - 2  # tanh of tanh, and tanh(x) over all, are reached in two ways


def test_a_graft_takes_a_subtree_of_the_donor():
    rng = stream(0, "graft", 1)
    one, two = encoded("tanh(x)"), encoded("x / rms[w,h](v1 + -x)")
    subtrees = ["neg(x)", "add(v1, neg(x))", "rms[w,h](add(v1, neg(x)))", "div(x, rms[w,h](add(v1, neg(x))))"]
    found = {unrolled(moves.graft(rng, PAPER, one, two)) for _ in range(200)}
    assert found == {*subtrees[:3], *(f"tanh({tree})" for tree in subtrees)}


def test_what_does_not_fit():
    space = SearchSpace(Space(nodes=2, operations=("tanh", "neg"), index_sets=()))
    full, rng = (Gene("tanh", (0,)), Gene("neg", (4,))), stream(0, "full", 0)
    assert moves.apply("insert", rng, space, full) is None
    assert moves.apply("delete", rng, space, (Gene("tanh", (0,)), Gene("neg", (0,)))) is None
    one, tanh = SearchSpace(Space(nodes=1, operations=("tanh",))), (Gene("tanh", (0,)),)
    assert all(moves.apply(kind, rng, one, tanh) is None for kind in MOVES)
    assert moves.graft(rng, one, tanh, (Gene("tanh", (2,)),)) is None
    assert {moves.move(rng, one, tanh) for _ in range(30)} == {(Gene("tanh", (i,)),) for i in (1, 2, 3)}  # redrawn


@pytest.mark.parametrize("space", SPACES[:3])
def test_moves_reach_every_primitive_and_no_other(space):
    rng, found = stream(0, "walk", 0), set()
    layer = moves.grown(rng, space)
    for _ in range(1500):
        layer = moves.move(rng, space, layer)
        found |= words(layer).keys()
    assert found == set(space.primitives)


@given(seeds)
def test_a_space_without_batch_moments_never_gets_one(seed):
    space, rng = SearchSpace(Space(batch=False)), stream(seed, "no batch", 0)
    layer = moves.grown(rng, space)
    for _ in range(5):
        layer = moves.graft(rng, space, moves.move(rng, space, layer), moves.grown(rng, space)) or layer
        assert not any("[b" in gene.primitive for gene in layer)
