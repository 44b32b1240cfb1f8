import pytest

from normforge.errors import OptionError, RunError
from normforge.search.config import Config, check_same, flat, load


def test_a_preset_with_overrides():
    config = load("demo", ["recipe.steps=150", "final.baselines=bn-relu,gn-silu", "budget.candidates=7", "seed=3"])
    assert (config.recipe.steps, config.final.baselines) == (150, ("bn-relu", "gn-silu"))
    assert (config.budget.candidates, config.seed, config.preset) == (7, 3, "demo")
    assert load("demo", ["budget.candidates=none"]).budget.candidates is None


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
        (["recipe.nesterov=true", "recipe.momentum=0"], "needs recipe.momentum"),
        (["final.baselines=bn-rel"], "did you mean 'bn-relu'"),
        (["network.widths="], "network.widths"),
    ],
)
def test_a_wrong_override_is_one_sentence(overrides, message):
    with pytest.raises(OptionError, match=message) as caught:
        load("demo", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset():
    with pytest.raises(OptionError, match="did you mean 'demo'"):
        load("dem")


def test_only_budget_and_workers_may_change():
    saved = dict(flat(Config()))
    check_same(saved, load("demo", ["budget.minutes=9", "workers.count=1"]), "runs/demo")
    for override in ("seed=1", "space.nodes=4", "recipe.rate=0.2", "final.seeds=1"):
        key = override.split("=")[0]
        with pytest.raises(RunError, match=f"{key} = "):
            check_same(saved, load("demo", [override]), "runs/demo")
    with pytest.raises(RunError, match="another version"):
        check_same({**saved, "space.old": 1}, Config(), "runs/demo")
