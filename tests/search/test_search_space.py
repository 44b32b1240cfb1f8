import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import GraphError
from normforge.ir import evaluate, parse, verify
from normforge.search import space
from normforge.search.space import Gene
from normforge.search.streams import stream

seeds = st.integers(0, 2**32)


def draw(seed: int, nodes: int = 10) -> space.Genotype:
    return space.random_genotype(stream(seed, "test", 0), nodes)


def test_the_paper_has_24_primitives():
    assert len(space.PRIMITIVES) == 4 + 8 + 3 * 4


def test_streams_are_named_by_all_three():
    first = stream(0, "ask", 0).random()
    assert first == stream(0, "ask", 0).random()
    assert len({first, stream(1, "ask", 0).random(), stream(0, "probe", 0).random(), stream(0, "ask", 1).random()}) == 4


@given(seeds)
def test_draws_are_deterministic_valid_and_round_trip(seed):
    genotype = draw(seed)
    assert genotype == draw(seed)
    assert len(genotype) == 10
    graph = space.to_graph(genotype)
    verify(graph)
    assert graph is not space.to_graph(genotype) and graph == space.to_graph(genotype)
    assert space.from_json(space.to_json(genotype)) == genotype


@given(seeds)
def test_a_draw_has_a_value_of_the_shape_of_x(seed):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    values = {"x": x} | {name: np.ones(4) for name in ("v0", "v1", "gamma", "beta")}
    assert evaluate(space.to_graph(draw(seed)), values, groups=2)["y"].shape == x.shape


@given(seeds)
def test_mutation_changes_exactly_one_gene(seed):
    parent = draw(seed)
    child = space.mutate(stream(seed, "mutate", 0), parent)
    assert sum(a != b for a, b in zip(parent, child, strict=True)) == 1
    verify(space.to_graph(child))


def test_mutation_reaches_every_node_and_primitive():
    parent, rng = draw(0), stream(0, "mutate", 1)
    changed, names = set(), set()
    for _ in range(2000):
        child = space.mutate(rng, parent)
        at = next(i for i in range(10) if child[i] != parent[i])
        changed.add(at)
        names.add(child[at].primitive)
    assert changed == set(range(10))
    assert names == set(space.PRIMITIVES)


def test_a_known_layer_is_in_the_space():
    b2 = (
        Gene("std[b,w,h]", (0,)),
        Gene("rms[w,h]", (0,)),
        Gene("neg", (0,)),
        Gene("add", (5, 6)),
        Gene("max", (4, 7)),
        Gene("div", (0, 8)),
    )
    assert space.to_graph(b2).hash == parse("evonorm-b2").hash


@pytest.mark.parametrize("gene", [Gene("pow", (0, 1)), Gene("add", (0,)), Gene("neg", (4,)), Gene("neg", (-1,))])
def test_what_is_no_gene_is_refused(gene):
    with pytest.raises(GraphError, match="not a gene"):
        space.to_graph((gene,))
