"""Filters before a slot: what each refuses, and that the search among behaviours misses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tools import TINY, contents, quiet

from normforge.ir import Graph, parse
from normforge.passes import Degeneracy
from normforge.probing.behaviour import LENGTH, behaviour, cosines
from normforge.search import events
from normforge.search.behaviours import FEWEST, Behaviours
from normforge.search.config import Space, load
from normforge.search.events import Candidate
from normforge.search.filters import Filters, Keys
from normforge.search.funnel import Fate, Outcome
from normforge.search.run import run
from normforge.search.space import SearchSpace
from normforge.search.store import Store
from normforge.streams import stream

START = ["filters.start=0.9999"]
ALL = ["filters.family=true", "filters.behaviour=0.995", "filters.signal=1.5", "filters.probing=true"]


def filters(*settings: str) -> Filters:
    return Filters(load("digits", settings))


def first_refusal(settings: list[str], *formulas: str) -> Outcome | None:
    """What becomes of the last of some layers, the others having taken slots."""
    made = filters(*settings)
    for index, formula in enumerate(formulas[:-1]):
        refused, keys = made.refuse(parse(formula))
        assert refused is None
        made.add(index, keys)
    return made.refuse(parse(formulas[-1]))[0]


@pytest.mark.parametrize(
    ("settings", "formulas", "fate", "reason"),
    [
        ([], ["mean[w,h](x) * gamma"], Fate.DEGENERATE, "type: "),
        ([], ["tanh(x)", "relu(x)", "max(0, x)"], Fate.DUPLICATE, "hash: the same function as candidate 1"),
        ([], ["exp(x)", "max(exp(x), x)"], Fate.DUPLICATE, "fingerprint: the same numbers as candidate 0"),
        (ALL[:1], ["tanh(x) * gamma", "-tanh(x) * gamma"], Fate.DUPLICATE, "family: of one family with candidate 0"),
        (ALL[1:2], ["relu(x)", "tanh(x)", "erf(x)"], Fate.DUPLICATE, "behaviour: cosine 0.9991 with candidate 1"),
        (
            START,
            ["tanh(x)", "x * sigmoid(x)", "x * sigmoid(v1 * x)"],
            Fate.DUPLICATE,
            "start: cosine 1.0000 with candidate 1",
        ),
        (ALL[2:3], ["relu(x)"], Fate.GATE, "2 × scale 1.00): above 1.5"),
        (ALL[2:3], ["x / rms[w,h,c/g](x)"], Fate.GATE, "for R² 0.99"),
        (ALL[3:], ["max(x, 40)"], Fate.PROBING, "dx is zero on normal noise"),
    ],
)
def test_what_a_filter_refuses(settings: list[str], formulas: list[str], fate: Fate, reason: str) -> None:
    refused = first_refusal(settings, *formulas)
    assert refused is not None and refused.fate is fate
    assert reason in refused.reason
    if settings:
        assert first_refusal([], *formulas) is None


def test_a_refused_layer_is_no_earlier_one() -> None:
    made = filters(*ALL)
    for _ in range(2):
        refused, keys = made.refuse(parse("relu(x)"))
        assert refused is not None and refused.fate is Fate.GATE and keys == Keys(seconds=keys.seconds)
        assert list(keys.seconds) == ["static", "signal"]


def test_a_restored_candidate_is_an_earlier_one() -> None:
    made, again = filters(*ALL), filters(*ALL)
    layers = [parse(f) for f in ("gn-silu", "tanh(x) * gamma", "evonorm-s1", "evonorm-b0")]
    for index, layer in enumerate(layers):
        refused, keys = made.refuse(layer)
        assert refused is None
        made.add(index, keys)
        again.add(index, again.restored(layer, keys.stored))
    for formula in ("gn-silu", "-gamma * tanh(x)", "evonorm-s2", "gn-relu", "relu(x)"):
        one, other = made.refuse(parse(formula))[0], again.refuse(parse(formula))[0]
        assert (one is None) == (formula == "gn-relu")
        assert one == other


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    """Also with more workers; what it refuses depends on what was stored before it stopped."""
    bodies = ("tanh(x)", "evonorm-s1", "-tanh(x)", "evonorm-s2", "x + x", "abs(tanh(x))", "max(x, 0)")
    start = ";".join(b if b.startswith("evo") else f"({b}) * gamma + beta" for b in bodies)
    common, whole, parts = [*TINY, *ALL, f"evolution.start={start}"], tmp_path / "whole", tmp_path / "parts"
    for directory, budget, workers in ((whole, 16, 1), (parts, 2, 1), (parts, 16, 2)):
        more = [f"budget.candidates={budget}", f"workers.count={workers}"]
        assert run(load("digits", [*common, *more]), directory, quiet(), work="search_faults:at_once")
    one, other = ({k: v for k, v in contents(d).items() if k[0] == "candidate"} for d in (whole, parts))
    assert one == other
    store = Store(whole)
    found = list(events.each(store, Candidate))
    store.close()
    reasons = [c.outcome.reason.partition(":")[0] for c in found[:7]]
    assert reasons[:4] == ["", "", "behaviour", "behaviour"]
    assert [c.outcome.fate for c in found[4:7]] == [Fate.DEGENERATE, Fate.SCORED, Fate.GATE]
    assert all(c.family for c in found if c.evaluated)
    assert "signal" in found[6].outcome.seconds


def test_one_family_does_the_same() -> None:
    """Random layers, and each with more that gamma and beta absorb: also what falls together by chance."""
    small, layers = SearchSpace(Space(nodes=5)), {}
    for index in range(700):
        graph = small.to_graph(small.random(stream(77, "family", index)))
        if graph.hash not in layers and not Degeneracy().run(graph):
            layers[graph.hash] = graph
            body = str(graph).removesuffix(" * gamma + beta")
            twin = parse(f"(({body}) * -3 * sqrt(v1) + abs(v0)) * gamma + beta")
            layers[twin.hash] = twin
    families: dict[str, list[Graph]] = {}
    for graph in layers.values():
        families.setdefault(graph.family_hash, []).append(graph)
    assert len(families) < 0.6 * len(layers)
    checked = 0
    for members in families.values():
        # A parameter beside gamma and beta may be written anew too, and is not where behaviour has moved it to.
        plain = next((g for g in members if {p.name for p in g.params} <= {"gamma", "beta"}), None)
        reference = behaviour(plain) if plain else None
        for graph in members if reference is not None else ():
            vector = behaviour(graph)
            assert vector is not None and cosines(vector[None], reference)[0] > 0.9999, graph
            checked += graph is not plain
    assert checked > 20


# -- the search among behaviours


def unit(vectors: np.ndarray) -> np.ndarray:
    scaled = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (np.rint(scaled * 2**20) / 2**20).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 2 * FEWEST + 40),
    rank=st.sampled_from([1, 2, 8, 40, LENGTH]),
    noise=st.sampled_from([0.0, 1e-4, 0.01, 0.3]),
    least=st.sampled_from([0.0, 0.5, 0.9, 0.995, 0.9999]),
)
def test_the_nearest_is_that_of_all(seed: int, count: int, rank: int, noise: float, least: float) -> None:
    """Also among copies, opposites, and vectors that the directions do not see."""
    rng = np.random.default_rng(seed)
    space = rng.standard_normal((rank, LENGTH))
    vectors = rng.standard_normal((count, rank)) @ space + noise * rng.standard_normal((count, LENGTH))
    vectors[count // 2 :] = np.where(rng.random() < 0.5, -1, 1) * vectors[rng.integers(count, size=count - count // 2)]
    stored, index = unit(vectors), Behaviours()
    for number, vector in enumerate(stored):
        index.add(1000 - number, vector)
    assert len(index) == count
    asked = [stored[rng.integers(count)], unit(rng.standard_normal(LENGTH)), unit(rng.standard_normal(rank) @ space)]
    for vector in [*asked, unit(asked[0] + 0.09 / LENGTH**0.5 * rng.standard_normal(LENGTH))]:
        found = cosines(stored, vector)
        best = int(np.argmax(found))
        assert index.nearest(vector, least) == ((1000 - best, found[best]) if found[best] >= least else None)


def test_nothing_is_near_in_an_empty_store() -> None:
    vector = behaviour(parse("gn-silu"))
    assert vector is not None
    assert Behaviours().nearest(vector, 0.0) is None
