import pytest

from normforge.errors import OptionError, RunError
from normforge.search.config import PRESETS, PROTOCOLS, Config, Evolution, check_same, load, unflat
from normforge.train.config import NETWORKS, Networks
from normforge.train.settings import flat


def test_a_preset_with_overrides():
    config = load("digits", ["recipe.steps=150", "final.baselines=bn-relu,gn-silu", "budget.candidates=7", "seed=3"])
    assert (config.recipe.steps, config.final.baselines) == (150, ("bn-relu", "gn-silu"))
    assert (config.budget.candidates, config.seed, config.preset) == (7, 3, "digits")
    assert load("digits", ["budget.candidates=none"]).budget.candidates is None
    assert load("digits", ["space.index_sets=w,h; b,w,h"]).space.index_sets == ("w,h", "b,w,h")
    assert load("digits", ["space.custom.relu=max(a, 0)"]).space.custom == {"relu": "max(a, 0)"}


def test_a_file_comes_after_the_preset_and_before_overrides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'preset = "hour"\nseed = 5\n[recipe]\nsteps = 120\nrate = 0.2\n'
        '[networks]\nuse = ["vit"]\n[networks.vit]\ndim = 24\n[space.custom]\nrelu = "max(a, 0)"\n'
    )
    config = load("digits", ["recipe.rate=0.3"], file)
    assert config.preset == "hour" and config.data.source == "fractals"
    assert (config.seed, config.recipe.steps, config.recipe.rate) == (5, 120, 0.3)
    assert (config.networks.use, config.networks.vit.dim) == (("vit",), 24)
    assert config.space.custom == {"relu": "max(a, 0)"}
    for text, message in (("[recipe]\nstepz = 3", "did you mean 'recipe.steps'"), ("x = [", "is not TOML")):
        file.write_text(text)
        with pytest.raises(OptionError, match=message):
            load("digits", [], file)
    with pytest.raises(OptionError, match="cannot be read"):
        load("digits", [], tmp_path / "missing.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_stored_is_read_back(preset):
    config = load(preset, ["space.custom.relu=max(a, 0)", "budget.candidates=3"])
    assert unflat(dict(flat(config))) == config
    with pytest.raises(RunError, match="another version"):
        unflat({**dict(flat(config)), "space.old": 1})


def test_protocols_of_evolution():
    structural = load("digits", ["evolution.protocol=structural", "evolution.draws=random"]).evolution
    assert (structural.draws, structural.mutation, structural.selection) == ("random", "moves", "average")
    assert structural.model_copy(update={"draws": "grown"}) == Evolution(protocol="structural")
    assert unflat(dict(flat(Config(evolution=structural)))).evolution == structural
    paper = load("digits", ["evolution.lag=3", "evolution.start=bn-relu", "evolution.protocol=paper"]).evolution
    assert paper == Evolution(protocol="paper", lag=3, start=("bn-relu",))
    assert paper.model_copy(update={"protocol": None}) == Evolution(lag=3, start=("bn-relu",))
    for values in PROTOCOLS.values():
        assert values.keys() <= Evolution.model_fields.keys() - set(Evolution.OPEN)


def test_a_protocol_goes_before_the_presets_settings(tmp_path, monkeypatch):
    chosen = {"protocol": "structural", "fresh": 0.3, "lag": 5}
    monkeypatch.setitem(PRESETS, "structural", {"evolution": chosen})
    assert load("structural").evolution == Evolution(**chosen)
    assert load("structural", ["evolution.fresh=0.4"]).evolution == Evolution(**chosen | {"fresh": 0.4})
    paper = Evolution(protocol="paper", lag=5)
    assert load("structural", ["evolution.protocol=paper"]).evolution == paper
    file = tmp_path / "run.toml"
    file.write_text('[evolution]\nprotocol = "paper"\n')
    assert load("structural", [], file).evolution == paper
    assert load("structural", ["evolution.protocol=none"]).evolution == Evolution(lag=5)


def test_every_network_has_a_section():
    assert set(NETWORKS) == set(Networks.model_fields) - {"use", "groups"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.stepz=3"], "did you mean 'recipe.steps'"),
        (["recpe.steps=3"], "did you mean 'recipe.steps'"),
        (["recipe=3"], "no setting 'recipe'"),
        (["recipe.steps"], "key=value"),
        (["recipe.steps=many"], "recipe.steps = 'many'"),
        (["recipe.steps=-1"], "recipe.steps = '-1'"),
        (["recipe.rate=nan"], "recipe.rate"),
        (["quality.steps=500"], "quality.steps"),
        (["evolution.protocol=papers"], "evolution.protocol"),
        (["evolution.protocol=paper", "evolution.fresh=0.3"], "fresh = 0.5"),
        (["recipe.nesterov=true", "recipe.momentum=0"], "needs recipe.momentum"),
        (["final.baselines=bn-rel"], "did you mean 'bn-relu'"),
        (["networks.use="], "networks.use"),
        (["networks.use=resnet,resnet"], "twice"),
        (["networks.use=resnets"], "networks.use = 'resnets'"),
        (["objectives.also=margin", "stability.steps=0"], "stability.steps above 0"),
    ],
)
def test_a_wrong_override_is_one_sentence(overrides, message):
    with pytest.raises(OptionError, match=message) as caught:
        load("digits", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset():
    with pytest.raises(OptionError, match="did you mean 'demo'"):
        load("dem")


def test_only_budget_workers_and_cache_may_change():
    saved = dict(flat(Config()))
    check_same(saved, load("digits", ["budget.minutes=9", "workers.count=1", "cache.file=e.db"]), "runs/demo")
    for override in ("seed=1", "space.nodes=4", "recipe.rate=0.2", "final.seeds=1", "data.source=fractals"):
        key = override.split("=")[0]
        with pytest.raises(RunError, match=f"{key} = "):
            check_same(saved, load("digits", [override]), "runs/demo")
    older = {key: value for key, value in saved.items() if not key.startswith("filters.")}
    check_same(older, Config(), "runs/demo")  # a run of before there was the setting is one with its default
    with pytest.raises(RunError, match="signal = 0"):
        check_same(older, load("digits", ["filters.signal=1.5"]), "runs/demo")
    with pytest.raises(RunError, match="another version"):
        check_same({**saved, "space.old": 1}, Config(), "runs/demo")
    older = {key: value for key, value in saved.items() if key != "evolution.draws"}
    check_same(older, Config(), "runs/demo")  # there was no such setting, so it was as the default is
    with pytest.raises(RunError, match=r"evolution\.draws"):
        check_same(older, load("digits", ["evolution.draws=grown"]), "runs/demo")
