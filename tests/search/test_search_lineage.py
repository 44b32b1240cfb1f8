import re
from itertools import pairwise
from pathlib import Path

import pytest
from search_fabricated import THREE, Fabrication, chain_of_three, finished, printed, quiet, stored

from normforge.errors import RunError, UnknownNameError
from normforge.ir.layers import parse
from normforge.passes import simplify
from normforge.search.config import load
from normforge.search.reports import lineage
from normforge.search.reports.summary import summary_of
from normforge.search.space import Gene
from normforge.search.store import Store


@pytest.fixture(scope="module", params=[1, 3])
def run(request, tmp_path_factory) -> Path:
    """Finished runs with one and with three networks."""
    more = [] if request.param == 1 else [THREE, "evolution.crossover=0.3"]
    return finished(tmp_path_factory.mktemp("runs") / "run", *more)


def test_ancestors_lead_back_to_a_fresh_layer(tmp_path):
    first, second, third = chain_of_three(tmp_path)
    store = Store(tmp_path)
    assert [c.index for c in lineage.ancestors(store, third)] == [third, second, first]
    assert [c.index for c in lineage.ancestors(store, first)] == [first]
    assert lineage.ancestors(store, 999) == []
    store.close()
    console = quiet(400)
    lineage.show(f"{tmp_path}#{third}", console)
    text = printed(console)
    at = [text.index(f"  #{i}  scored") for i in (third, second, first)]
    assert at == sorted(at) and "fresh" in text[at[2] :] and f"mutated from #{first}" in text[at[1] : at[2]]
    assert "[-" in text and "{+" in text
    assert f'normforge check "{tmp_path}#{third}"' in text


def test_both_parents_of_a_mix_are_ancestors(tmp_path):
    made = Fabrication(tmp_path, load("digits", ["evolution.crossover=0.6"]))
    made.draw(60, static=0.2)
    made.close()
    store = Store(tmp_path)
    events = {int(e.key): e.data for e in store.records("candidate")}
    mixed = max(i for i, d in events.items() if len(d["parents"]) == 2)

    def closure(i: int) -> set[int]:
        return {i}.union(*map(closure, events[i]["parents"]))

    found = lineage.ancestors(store, mixed)
    store.close()
    assert {c.index for c in found} == closure(mixed) and len(found) == len(closure(mixed))
    by_index = {c.index: c for c in found}
    steps = lineage.line(found)
    assert steps[0].index == mixed and not steps[-1].parents
    assert all(a.parents[0] == b.index for a, b in pairwise(steps))
    assert by_index[mixed].outcome.fate == events[mixed]["fate"]


@pytest.mark.parametrize(
    "rules", ["evolution.protocol=paper", "evolution.protocol=structural", "evolution.crossover=1"]
)
def test_genes_are_compared_where_children_keep_their_numbers(rules):
    config = load("digits", [rules])
    parent, child = ((Gene("tanh", (0,)), Gene(name, inputs)) for name, inputs in (("neg", (4,)), ("add", (4, 3))))
    kept = config.evolution.mutation == "redraw"
    assert lineage.gene_changes(parent, child, config) == (["n5: neg(n4) → add(n4, v1)"] if kept else [])


def test_changes_of_a_formula():
    before, after = "x * sigmoid(v1 * x) * gamma + beta", "x * tanh(v1 * x) / std[w,h](x) * gamma + beta"
    found = lineage.changes(before, after)
    assert found.index(("+", "tanh")) == found.index(("-", "sigmoid")) + 1
    assert "".join(t for kind, t in found if kind != "-") == after
    assert lineage.changes(after, after) == [("=", after)]
    assert lineage.changes("a " * 3000, "b " * 3000) == [("-", "a " * 3000), ("+", "b " * 3000)]


def test_show_tells_fate_reason_and_formulas(run):
    summary = summary_of(run)
    console = quiet(400)
    lineage.show(f"{run}#120", console)  # the hostile one
    text = printed(console)
    assert "#120: error" in text and "</script><img src=x onerror=alert(1)> [bold]&amp;" in text
    assert "\x1b[2J" not in text and "simplified" in text
    best = quiet(400)
    lineage.show(f"{run}#best", best)
    assert f'normforge export "{run}#' in printed(best)
    again = stored(run, "rerank")
    networks = summary_of(run).config.networks.use
    name = re.match(r"(#\d+): scored", printed(best)).group(1)
    assert name in again and all(f"{again[name]['holdout'][n]:.4g}" in printed(best) for n in networks)
    drawn = re.search(r"drawn as     (.*)", printed(best)).group(1)
    simplified = re.search(r"simplified   (.*)", printed(best)).group(1)
    assert simplified == str(simplify(parse(drawn)))
    ten = quiet(400)
    lineage.show(str(run), ten)
    rows = re.findall(r"^(#\d+) ", printed(ten), re.MULTILINE)
    assert rows == [layer.name for layer in summary.best(10)] and rows[0] == summary.ranked[0].name
    refused = next(int(k) for k, d in stored(run, "candidate").items() if d["fate"] == "degenerate")
    lineage.show(f"{run}#{refused}", quiet())


def test_show_of_what_is_not_there(run):
    for reference, error in ((f"{run}#999", UnknownNameError), (f"{run}#x", UnknownNameError), ("no#1", RunError)):
        with pytest.raises(error):
            lineage.show(reference, quiet())
