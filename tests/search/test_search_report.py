import json
import re
import statistics
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import search_fabricated as fabricated
from search_fabricated import HOSTILE, THREE, Fabrication, printed, quiet, stored

from normforge.errors import RunError
from normforge.ir import parse
from normforge.probing.behaviour import Near, behaviour
from normforge.search.config import load
from normforge.search.funnel import Fate, Outcome
from normforge.search.reports import atlas, html_page, plots
from normforge.search.reports.report import report
from normforge.search.reports.summary import plus_minus, summary_of
from normforge.search.results import Row, verdicts
from normforge.search.store import Store

NETWORKS = {"one": ["resnet"], "three": ["resnet", "mobilenet", "efficientnet"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Finished runs with one and with three networks, reported."""
    root = tmp_path_factory.mktemp("runs")
    found = {
        "one": fabricated.finished(root / "one"),
        "three": fabricated.finished(root / "three", THREE, "evolution.crossover=0.3", "objectives.also=traffic"),
    }
    for directory in found.values():
        console = quiet()
        report(directory, console)
        (directory / "printed.txt").write_text(printed(console))
    return found


@pytest.fixture(scope="module", params=["one", "three"])
def run(request, runs) -> Path:
    return runs[request.param]


class Page(HTMLParser):
    """Elements with their attributes, texts of scripts, rows of tables by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "input", "br", "img", "link"):
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        elif tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        elif tag in ("td", "th") and self.section:
            self.rows[self.section][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif self.section and {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data


def page_of(directory: Path) -> Page:
    return Page((directory / html_page.FILE).read_text())


# -- the page


def test_the_page_needs_nothing_from_outside(run):
    text = (run / html_page.FILE).read_text()
    page = Page(text)
    assert not page.tags.keys() & {"img", "link", "iframe", "object", "embed", "base"}
    assert "<metadata" not in text and "<!DOCTYPE svg" not in text
    loads = {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "style", "clip-path"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in loads:
            assert not re.search(r"//|data:|javascript:", value), (tag, name, value)
    assert not re.search(r"https?://|//\w+\.\w+|@import|url\((?!#)", text)
    (policy,) = [v for _, name, v in page.attributes if name == "content" and "default-src" in v]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("script-src")[1]
    ids = [v for _, name, v in page.attributes if name == "id"]
    local = {v[1:] for _, name, v in page.attributes if name == "xlink:href"} | set(re.findall(r"url\(#(.*?)\)", text))
    assert local and local <= set(ids)


def test_scripts_and_hostile_text_stay_apart(run):
    text = (run / html_page.FILE).read_text()
    page = Page(text)
    assert len(page.scripts) == 2  # the data, and ours
    assert "onerror" not in page.scripts[1] and "<img" not in text
    data = json.loads(page.scripts[0])
    (hostile,) = [c for c in data["candidates"] if "onerror" in c["reason"]]
    assert hostile["reason"] == f"ValueError: {HOSTILE}" and hostile["fate"] == "error"


def test_hostile_names_and_formulas_are_escaped(tmp_path):
    directory = tmp_path / "<b onclick=x>&amp;"
    made = Fabrication(directory, load("digits", ["evolution.fresh=1"]))
    index = made.candidate(Fate.SCORED, {"resnet": 0.1})
    made.events[-1] = replace(made.events[-1], formula=f"x {HOSTILE}")
    made.close()
    summary = summary_of(directory)
    page = Page(html_page.render(summary))
    assert page.tags["b"] == page.tags["img"] == 0 and len(page.scripts) == 2
    (candidate,) = json.loads(page.scripts[0])["candidates"]
    assert candidate["index"] == index and candidate["formula"] == f"x {HOSTILE}"


def test_the_page_holds_all_evaluated_candidates(run):
    evaluated = {int(k): d for k, d in stored(run, "candidate").items() if "hash" in d}
    data = json.loads(page_of(run).scripts[0])
    shown = {c["index"]: c for c in data["candidates"]}
    assert shown.keys() == evaluated.keys()
    assert data["objectives"] == [*NETWORKS[run.name], *(["traffic"] if run.name == "three" else [])]
    for index, event in evaluated.items():
        c = shown[index]
        assert (c["fate"], c["parents"], c["formula"]) == (event["fate"], event["parents"], event["formula"])
        expected = [event.get("scores", {}).get(n) for n in data["objectives"]]
        assert c["scores"] == [s if s is None else pytest.approx(s, rel=1e-4) for s in expected]
        assert (c["rank"] is not None) == (event["fate"] == "scored")
        if event["parents"]:
            before = shown[event["parents"][0]]["formula"]
            assert "".join(t for kind, t in c["changes"] if kind != "-") == c["formula"]
            assert squeezed(t for kind, t in c["changes"] if kind != "+") == squeezed(before)
            assert c["genes"]
        else:
            assert c["changes"] == [] == c["genes"]


def squeezed(pieces) -> str:
    return re.sub(r"\s", "", "".join(pieces))


def test_the_comparison_has_the_means_of_the_good_trainings(run):
    finals = stored(run, "final")
    failed = [k for k, d in finals.items() if d["fate"] != "scored"]
    assert len(failed) == 1 and failed[0].startswith("#")  # the fabricated failure is among what was found
    rows = {row[0]: row[1:] for row in page_of(run).rows["comparison"][2:]}
    assert rows.keys() == {k.rpartition("/")[0] for k in finals}
    for name, cells in rows.items():
        trained = [d for k, d in finals.items() if k.rpartition("/")[0] == name]
        good = [d for d in trained if d["fate"] == "scored"]
        expected = []
        for network in NETWORKS[run.name]:
            for what in ("loss", "accuracy", "test"):
                values = [d[what][network] for d in good]
                expected.append(f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}")
            expected.append(f"{len(trained) - len(good)}/{len(trained)}")
        assert cells == expected
    assert rows[failed[0].rpartition("/")[0]][3] == "1/3"


def test_the_funnel_counts_every_candidate(run):
    candidates = stored(run, "candidate").values()
    fates = Counter(d["fate"] for d in candidates)
    rows = page_of(run).rows["funnel"][1:]
    assert {row[0]: int(row[1]) for row in rows} == fates
    left = len(candidates)
    for row in rows[:-1]:
        left -= fates[row[0]]
        assert row[3] == str(left) and row[2] == f"{100 * fates[row[0]] / len(candidates):.1f} %"
    assert left == fates["scored"] and rows[-1][0] == "scored"
    timing = {row[0]: row[1:] for row in page_of(run).rows["timing"][1:]}
    for stage in ("static", "quality", "full"):
        spent = [d["seconds"][stage] for d in candidates if stage in d.get("seconds", {})]
        assert timing[stage][0] == f"{sum(spent):.1f}" and timing[stage][2] == str(len(spent))


def test_the_front_is_what_nothing_beats(runs):
    scored = {k: tuple(d["scores"].values()) for k, d in stored(runs["three"], "candidate").items() if "scores" in d}
    front = {
        k
        for k, mine in scored.items()
        if not any(other != mine and all(map(float.__le__, other, mine)) for other in scored.values())
    }
    shown = {row[0] for row in page_of(runs["three"]).rows["front"] if row[0].startswith("#")}
    assert {f"#{k}" for k in front} <= shown
    assert {f"#{c.index}" for c, _ in summary_of(runs["three"]).front} == {f"#{k}" for k in front}


def test_a_large_run_is_cut_to_the_best_the_latest_and_their_ancestors(runs):
    summary = summary_of(runs["three"])
    by_index = {c.index: c for c in summary.evaluated}
    assert [c.index for c in html_page.embedded(summary)] == sorted(by_index)
    for cap in (12, 25):
        kept = {c.index for c in html_page.embedded(summary, cap)}
        assert cap - 6 < len(kept) <= cap
        assert {summary.ranked[0].index, summary.evaluated[-1].index} <= kept
        for index in kept:  # back to a fresh layer
            parents = by_index[index].parents
            assert not parents or parents[0] in kept
    summary = summary_of(runs["one"])
    text = html_page.render(summary, 12)
    assert f"of {len(summary.evaluated)} evaluated candidates" in text
    assert len(json.loads(Page(text).scripts[0])["candidates"]) <= 12


@pytest.mark.parametrize("fates", [[], [Fate.DEGENERATE, Fate.PROBING], [Fate.SCORED]])
def test_a_run_that_has_just_begun(tmp_path, fates):
    made = Fabrication(tmp_path / "run", load("digits", [THREE]))
    for fate in fates:
        made.candidate(fate)
    made.close()
    console = quiet()
    report(tmp_path / "run", console)
    assert f"{len(fates)} layers drawn" in printed(console)
    assert ("No layer came through" in printed(console)) == (Fate.SCORED not in fates)
    assert "Not compared" in (tmp_path / "run" / html_page.FILE).read_text()


def test_without_a_page_and_without_a_run(tmp_path, runs):
    (tmp_path / "run").mkdir()
    for kind in ("empty", "run"):
        with pytest.raises(RunError, match="holds no search run"):
            report(tmp_path / kind, quiet())
    made = Fabrication(tmp_path / "bare", load("digits"))
    made.close()
    report(tmp_path / "bare", quiet(), html=False)
    assert not (tmp_path / "bare" / html_page.FILE).exists() and (tmp_path / "bare" / "search.png").exists()
    Store(tmp_path / "unbegun", write=True).close()
    with pytest.raises(RunError, match="has not begun"):
        report(tmp_path / "unbegun", quiet())


# -- text and pictures


def test_the_text_of_a_report(run):
    text = (run / "printed.txt").read_text()
    evaluated = sum("hash" in d for d in stored(run, "candidate").values())
    assert "121 layers drawn" in text and f"{evaluated} evaluated" in text
    summary = summary_of(run)
    for network in NETWORKS[run.name]:
        assert f"{network}: trained alike" in text
        assert all(plus_minus(row, "loss", network) in text for row in summary.rows)
    assert ("Pareto front" in text) == (run.name == "three")
    assert all(f"{row.name:11} {row.formula}" in text for row in summary.rows)
    assert (run / "search.png").stat().st_size > 20_000


def test_a_mean_of_one_training_has_no_deviation(runs):
    summary = summary_of(runs["one"])
    row = summary.rows[0]
    row.outcomes = [Outcome(Fate.SCORED, loss={"resnet": 0.5}, accuracy={"resnet": 0.9}, test={"resnet": 0.8})]
    assert plus_minus(row, "loss", "resnet") == "0.500"
    row.outcomes[0].accuracy["resnet"] = 0.15  # below twice chance: it has failed
    assert plus_minus(row, "loss", "resnet") == "-"


def test_the_best_so_far_never_rises():
    assert plots.best_so_far([3.0, 4.0, 2.0, 2.5, 1.0]).tolist() == [3.0, 3.0, 2.0, 2.0, 1.0]


def test_charts_are_of_all_scored_layers(runs):
    from matplotlib.figure import Figure

    summary = summary_of(runs["three"])
    at = [k for k, c in enumerate(summary.evaluated, 1) if c.outcome.scores]
    scores = [c.outcome.scores["mobilenet"] for c in summary.evaluated if c.outcome.scores]
    axes = Figure().subplots()
    plots.draw_progress(summary, ["mobilenet"])(axes)
    dots, steps = axes.lines
    assert dots.get_xdata().tolist() == at and dots.get_ydata().tolist() == scores
    assert steps.get_ydata()[-1] == min(scores) and steps.get_xdata()[-1] == len(summary.evaluated)
    axes = Figure().subplots()
    plots.draw_comparison(summary)(axes)
    losses = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert losses == [[row.mean("loss", n)[0] for row in summary.rows] for n in NETWORKS["three"]]


# -- telling found layers from known ones


def row(name: str, losses: list[float], near: str = "") -> Row:
    nearest = Near(near, 0.97) if near else None
    half = {"resnet": 0.5}
    outcomes = [Outcome(Fate.SCORED, loss={"resnet": x}, accuracy=half, test=half) for x in losses]
    return Row(name, "x", bool(near), 0.2, outcomes, nearest)


def test_layers_are_told_apart_by_their_trainings():
    known = row("gn-silu", [0.50, 0.51, 0.52])
    (same,) = verdicts([row("#1", [0.49, 0.51, 0.53], "gn-silu"), known], ["resnet"])
    assert not same.apart and same.trainings == (3, 3) and "cannot be told from it by 3 trainings" in str(same)
    (better,) = verdicts([row("#1", [0.30, 0.31, 0.32], "gn-silu"), known], ["resnet"])
    assert better.apart and better.better and "#1: nearest known gn-silu, cosine 0.970" in str(better)
    assert better.p == pytest.approx(1.65e-05, rel=0.01)
    (worse,) = verdicts([row("#1", [0.70, 0.71, 0.72], "gn-silu"), known], ["resnet"])
    assert worse.apart and not worse.better and "worse than it" in str(worse)
    (one,) = verdicts([row("#1", [0.3], "gn-silu"), known], ["resnet"])
    assert one.p == 1.0 and "1 and 3 trainings" in str(one)
    assert verdicts([row("#1", [0.3], "bn-relu"), known], ["resnet"]) == []


# -- the atlas


def test_the_atlas_puts_alike_layers_near_each_other():
    vectors = [
        behaviour(parse(f"{core} * gamma + beta")) for core in ("x", "x * v1", "tanh(x)", "-x", "x / rms[w,h](x)")
    ]
    places, explained = atlas._plane(vectors, fitted=5)
    (line, scaled, bent, turned, normed) = places
    assert np.allclose(line, scaled, atol=1e-3) and np.allclose(line, turned, atol=1e-3)
    assert np.linalg.norm(line - bent) > 0.1 and np.linalg.norm(line - normed) > 0.1 and 0.9 < explained <= 1.0 + 1e-9


def test_the_atlas_of_a_run(runs):
    summary = summary_of(runs["three"])
    found = atlas.atlas(summary)
    trained = [c for c in summary.evaluated if c.outcome.loss]
    assert 3 <= len(found.places) <= len(trained) and np.isfinite(found.places).all()
    assert set(found.known) == {r.name for r in summary.rows if not r.found}
    assert len(found.scores) == len(found.places) and np.nanmin(found.scores) > 0
    assert "Atlas" in (runs["three"] / html_page.FILE).read_text()
