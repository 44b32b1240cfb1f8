import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import GraphError, OptionError
from normforge.ir import evaluate, parse, verify
from normforge.search import space
from normforge.search.config import Space
from normforge.search.space import PAPER, Gene, SearchSpace
from normforge.streams import stream

seeds = st.integers(0, 2**32)


def draw(seed: int) -> space.Genotype:
    return PAPER.random(stream(seed, "test", 0))


def test_the_paper_has_24_primitives():
    assert len(PAPER.primitives) == 4 + 8 + 3 * 4


def test_streams_are_named_by_all_three():
    first = stream(0, "ask", 0).random()
    assert first == stream(0, "ask", 0).random()
    assert len({first, stream(1, "ask", 0).random(), stream(0, "probe", 0).random(), stream(0, "ask", 1).random()}) == 4


@given(seeds)
def test_draws_are_deterministic_valid_and_round_trip(seed):
    genotype = draw(seed)
    assert genotype == draw(seed)
    assert len(genotype) == 10
    graph = PAPER.to_graph(genotype)
    verify(graph)
    assert graph is not PAPER.to_graph(genotype) and graph == PAPER.to_graph(genotype)
    assert space.from_json(space.to_json(genotype)) == genotype


@given(seeds)
def test_a_draw_has_a_value_of_the_shape_of_x(seed):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    values = {"x": x} | {name: np.ones(4) for name in ("v0", "v1", "gamma", "beta")}
    assert evaluate(PAPER.to_graph(draw(seed)), values, groups=2)["y"].shape == x.shape


@given(seeds)
def test_mutation_changes_exactly_one_gene(seed):
    parent = draw(seed)
    child = PAPER.mutate(stream(seed, "mutate", 0), parent)
    assert sum(a != b for a, b in zip(parent, child, strict=True)) == 1
    verify(PAPER.to_graph(child))


def test_mutation_reaches_every_node_and_primitive():
    parent, rng = draw(0), stream(0, "mutate", 1)
    changed, names = set(), set()
    for _ in range(2000):
        child = PAPER.mutate(rng, parent)
        at = next(i for i in range(10) if child[i] != parent[i])
        changed.add(at)
        names.add(child[at].primitive)
    assert changed == set(range(10))
    assert names == set(PAPER.primitives)


BN_RELU = "relu((x - mean[b,w,h](x)) / std[b,w,h](x) * v1 + v0) * gamma + beta"


@pytest.mark.parametrize("layer", [f"evonorm-{k}" for k in ("b0", "b1x", "b2", "s0", "s1", "s2")] + [BN_RELU])
def test_known_layers_are_in_the_space(layer):
    if layer == "evonorm-b1x":  # B1 adds the constant 1, which v1 stands for at the start
        layer = "x / max(std[b,w,h](x), (x + v1) * rms[w,h](x)) * gamma + beta"
    genotype = PAPER.encode(parse(layer), stream(0, "test", 1))
    assert len(genotype) == 10
    assert PAPER.to_graph(genotype).hash == parse(layer).hash
    assert space.from_json(space.to_json(genotype)) == genotype


@given(seeds)
def test_every_drawn_layer_can_be_encoded_again(seed):
    graph = PAPER.to_graph(draw(seed))
    if len(graph.nodes) > 6:  # a bare x or v0 has no last node of its own
        assert PAPER.to_graph(PAPER.encode(graph, stream(seed, "test", 1))) == graph


@pytest.mark.parametrize(
    ("layer", "message"),
    [("bn-relu", "gamma"), ("evonorm-b1", "const"), ("gamma * erf(x) + beta", "erf"), ("layernorm-gelu", "gamma")],
)
def test_what_the_space_cannot_say(layer, message):
    with pytest.raises(GraphError, match=message):
        PAPER.encode(parse(layer), stream(0, "test", 0))


def test_custom_primitives_are_formulas():
    drawn = SearchSpace(Space(nodes=2, custom={"swish": "a * sigmoid(b * a)", "relu": "max(a, 0)"}))
    graph = drawn.to_graph((Gene("swish", (0, 3)), Gene("relu", (4,))))
    assert graph.hash == parse("relu(x * sigmoid(v1 * x)) * gamma + beta").hash


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Space(operations=("add", "sigmod")), "did you mean 'sigmoid'"),
        (Space(index_sets=("w,h,d",)), "no index set 'w,h,d'"),
        (Space(custom={"f": "c + 1"}), "space.custom.f"),
        (Space(custom={"f": "b + 1"}), "formula of a"),
        (Space(custom={"add": "a"}), "no name twice"),
        (Space(custom={"f": "a +"}), "space.custom.f"),
        (Space(operations=("mean",), index_sets=()), "no primitive"),
    ],
)
def test_a_space_that_cannot_be(config, message):
    with pytest.raises(OptionError, match=message) as caught:
        SearchSpace(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gene", [Gene("pow", (0, 1)), Gene("add", (0,)), Gene("neg", (4,)), Gene("neg", (-1,))])
def test_what_is_no_gene_is_refused(gene):
    with pytest.raises(GraphError, match="not a gene"):
        PAPER.to_graph((gene,))
