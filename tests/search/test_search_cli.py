import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_tools import TINY, contents

SETTINGS = [*TINY, "budget.candidates=80", "workers.count=1"]


def normforge(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "normforge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def settings(*more: str) -> list[str]:
    return ["--preset", "digits", *(part for setting in (*SETTINGS, *more) for part in ("--set", setting))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "cli"
    done = normforge("search", "--out", str(directory), *settings())
    assert done.returncode == 0, done.stderr
    assert "80 layers drawn" in done.stdout and "bn-relu" in done.stdout
    return directory


def test_a_file_of_settings_goes_on_with_the_run(finished, tmp_path):
    file = tmp_path / "run.toml"
    values = dict(setting.split("=") for setting in SETTINGS)
    values |= {"networks.resnet.depths": "[1]", "final.baselines": '["bn-relu"]'}
    file.write_text("\n".join(f"{key} = {value}" for key, value in values.items()))
    before = contents(finished)
    again = normforge("search", "--out", str(finished), "--preset", "digits", "--config", str(file))
    assert again.returncode == 0, again.stderr
    assert contents(finished) == before


def test_show_tells_a_candidates_life(finished):
    best = normforge("show", f"{finished}#best")
    assert best.returncode == 0 and "scored" in best.stdout and "gamma" in best.stdout
    refused = next(key for (kind, key), data in contents(finished).items() if data["fate"] == "degenerate")
    assert "degenerate" in normforge("show", f"{finished}#{refused}").stdout
    assert normforge("check", f"{finished}#best").returncode in (0, 1)
    missing = normforge("show", f"{finished}#99999")
    assert missing.returncode == 2 and "no candidate #99999" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.slow
def test_an_estimate_evaluates_real_candidates():
    done = normforge("estimate", "--sample", "1", *settings("budget.candidates=none", "budget.evaluations=40"))
    assert done.returncode == 0, done.stderr
    assert "about 40 evaluations" in done.stdout and "eq trained" in done.stdout
    assert "1 of 2 evaluated" in done.stderr  # a sign of life where there is no terminal
    assert "GiB" in done.stdout and "MiB" in done.stdout and "bn-relu" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "recipe.stepz=3"], "did you mean 'recipe.steps'"),
        (["--set", "data.source=cifar10:/nowhere"], "/nowhere"),
        (["--set", "evolution.start=bn-relu"], "evolution.start"),
        (["--workers", "everywhere"], "workers.on"),
        (["--replay", "/nowhere"], "evolution.order = arrival"),
        (["--config", "/nowhere.toml"], "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(tmp_path, arguments, message):
    done = normforge("search", "--out", str(tmp_path / "run"), *settings(), *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_scores_come_out_for_other_tools(finished, tmp_path):
    done = normforge("report", str(finished), "--tensorboard", str(tmp_path / "tb"))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tb").rglob("events.*"))
    assert json.loads((finished / "config.json").read_text())["budget"]["candidates"] == 80
