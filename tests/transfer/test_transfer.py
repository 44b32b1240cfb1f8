"""`normforge transfer` as a person meets it: one command, stopped and gone on with; tables, pages, mistakes."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import time

import pytest
import torch
from rich.console import Console
from transfer_tools import arguments, command, config, equal, normforge, same
from typer.testing import CliRunner

from normforge.cli.main import app
from normforge.cli.transfer import split
from normforge.errors import NormforgeError, OptionError, RunError
from normforge.train.harness.hold import lock
from normforge.train.transfer import data as data_of
from normforge.train.transfer import report
from normforge.train.transfer.results import Asked, Done, Entrant, cell, grouped, table, write_results
from normforge.train.transfer.run import Result, run
from normforge.train.transfer.study import entrants, transfer

TASKS = ("detection", "gan")


@pytest.mark.parametrize("task", TASKS)
def test_a_study_from_end_to_end(task, tmp_path):
    """Trainings in processes of their own; the same command trains nothing again and prints the same table."""
    batch = ["--batch", "4,2"] if task == "detection" else []
    line = arguments(task, tmp_path / "study", "--layers", "none", "--seeds", "1", *batch)
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    out = tmp_path / "study"
    rows = json.loads((out / "results.json").read_text())
    assert {row["layer"] for row in rows} == {"none"} and len(rows) == (2 if batch else 1)
    wanted = {"box_ap", "mask_ap"} if task == "detection" else {"fd", "accuracy", "score", "fd_floor"}
    assert all(wanted <= row["figures"].keys() and row["failed"] is None for row in rows)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2 and "relu(x * gamma + beta)" in page
    folder = out / "none" / f"batch-{4 if batch else 8}-seed-0"
    assert {"checkpoint.pt", "config.json", "log.jsonl", "result.json"} <= {f.name for f in folder.iterdir()}
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    again = CliRunner().invoke(app, line, catch_exceptions=False)
    assert again.exit_code == 0 and (folder / "checkpoint.pt").stat().st_mtime_ns == before
    assert again.stdout.splitlines()[-3:] == done.stdout.splitlines()[-3:]


@pytest.mark.parametrize("task", TASKS)
def test_a_training_that_was_stopped_goes_on_in_the_same_bits(task, tmp_path):
    """It is stopped within a window of the log, and where an evaluation is due."""
    asked = config(task, "run.evaluate=3", "run.checkpoint=6")
    data, device, stop = data_of.load(asked), torch.device("cpu"), []
    alone = run(asked, data, tmp_path / "alone", device)

    def tell(done, total, loss):
        if done in (2, 3):
            stop.append(done)

    for _ in range(2):
        assert run(asked, data, tmp_path / "stopped", device, tell, stop) is None
        stop.clear()
        torch.manual_seed(99)  # what the state of the process is does not matter
    on = run(asked, data, tmp_path / "stopped", device)
    assert on.figures == alone.figures and equal(on.rows, alone.rows) and on.steps == 6
    assert [row["step"] for row in on.rows] == [*range(1, 7)]
    assert same(tmp_path / "alone", tmp_path / "stopped")
    with pytest.raises(RunError, match="was started with"):
        run(asked.model_copy(update={"layer": "gn-relu"}), data, tmp_path / "stopped", device)
    with pytest.raises(RunError, match="on other data"):
        run(asked, dataclasses.replace(data, digest="another"), tmp_path / "stopped", device)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_study_that_is_killed(task, tmp_path):
    """The command and its processes, ten times at random: each training ends in the bits of one left alone."""
    options = ["--layers", "bn-relu,none", "--seeds", "1", "--workers", "2"]
    options += ["--set", "recipe.images=240" if task == "detection" else "recipe.steps=600"]
    assert normforge(command(task, tmp_path / "alone", *options)).returncode == 0
    drawn, line = random.Random(0), command(task, tmp_path / "killed", *options)
    for _ in range(10):
        process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(drawn.uniform(8, 20))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert normforge(line).returncode == 0
    for layer in ("bn-relu", "none"):
        [folder] = (tmp_path / "alone" / layer).iterdir()
        assert same(folder, tmp_path / "killed" / layer / folder.name)


ENDLESS = ("--layers", "none", "--seeds", "1", "--set", "recipe.steps=1000000", "--set", "run.checkpoint=1000000")


def started(tmp_path):
    """A study that does not end, once its training has begun; the folder of the training."""
    line = command("gan", tmp_path / "study", *ENDLESS)
    process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "study" / "none" / "batch-8-seed-0"
    while not (folder / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(1)
    return process, folder


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_keeps_a_checkpoint(number, tmp_path):
    """As Ctrl-C does, and a scheduler; exit code is 130."""
    process, folder = started(tmp_path)
    os.killpg(process.pid, number)
    said, mistakes = process.communicate(timeout=60)
    assert process.returncode == 130 and "The same command goes on from there." in said and "Traceback" not in mistakes
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["task"]["done"] > 0


def test_a_training_whose_command_was_killed_stops(tmp_path):
    """It keeps a checkpoint, and lets go of its folder."""
    process, folder = started(tmp_path)
    process.kill()
    process.communicate()
    while not (folder / "checkpoint.pt").exists():
        time.sleep(0.1)
    deadline = time.monotonic() + 60
    while True:
        try:
            lock(folder).close()
            break
        except RunError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_others_go_on_where_one_cannot(tmp_path):
    """Its reason is said at the end, and what there is is written."""
    out = tmp_path / "study"
    folder = out / "none" / "batch-8-seed-0"
    folder.mkdir(parents=True)
    (out / "study.json").write_text(json.dumps(config("gan", "recipe.batch=32").model_dump(mode="json")))
    with lock(folder):  # as another command would
        line = arguments("gan", out, "--layers", "none,bn-relu", "--seeds", "1", "--workers", "1")
        done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, RunError) and "a training is running in" in str(done.exception), done.output
    assert "memory" not in str(done.exception)
    rows = json.loads((out / "results.json").read_text())
    assert [row["layer"] for row in rows] == ["bn-relu"]


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="other things than a study"):
        transfer(config("gan"), {"none": "none"}, tmp_path, seeds=[0])
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text(json.dumps(config("gan", "recipe.batch=32").model_dump(mode="json")))
    with pytest.raises(RunError, match="another task"):
        transfer(config("detection"), {"none": "none"}, study, seeds=[0])
    with pytest.raises(RunError, match=r"was started with recipe\.steps"):
        transfer(config("gan", "recipe.steps=7"), {"none": "none"}, study, seeds=[0])


def finished(layer, seed, value, failed=None, batch=8):
    entrant = Entrant(layer, layer)
    figures = {} if failed else {"box_ap": value, "mask_ap": value / 2}
    asked = config("detection", f"recipe.batch={batch}").model_copy(update={"seed": seed})
    return Done(Asked(entrant, asked, None), Result(layer, seed, batch, 100, 6, failed, figures, seconds=60.0))


def test_failures_are_apart():
    done = [finished("a", 0, 0.2), finished("a", 1, 0.4), finished("a", 2, 0, "the loss is nan at step 3")]
    found = cell(done, "box_ap")
    assert found.mean == pytest.approx(0.3) and found.deviation == pytest.approx(0.1 * 2**0.5) and found.failed == 1
    assert str(found) == "0.300 ± 0.141, 1 failed"
    assert str(cell(done[2:], "box_ap")) == "1 failed"
    assert len(grouped([*done, finished("a", 0, 0.1, batch=2)])) == 2


def test_index_sets_are_no_markup():
    layer, console = "x / std[w,h,c/g](x) * gamma", Console(width=160)
    with console.capture() as captured:
        console.print(table(config("detection"), [finished(layer, 0, 0.2)]))
    assert layer in captured.get()


def test_the_page_vouches_for_no_text(tmp_path):
    """What comes of files and errors is text."""
    done = [finished("<script>alert(1)</script>", 0, 0, "<b>nan</b>")]
    text = report.render(config("detection"), done)
    assert "<script>" not in text and "<b>" not in text and "default-src 'none'" in text
    write_results(done, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())[0]["failed"] == "<b>nan</b>"


def test_layers_of_a_text():
    assert split("bn-relu, x / std[w,h,c/g](x) * gamma,none") == ["bn-relu", "x / std[w,h,c/g](x) * gamma", "none"]
    assert [e.slug for e in entrants({"bn-relu": "bn-relu", "none": "none"})] == ["bn-relu", "none"]
    formula = "max(x, tanh(x))"
    [entrant] = entrants({formula: formula})
    assert entrant.slug.startswith("max-x-tanh-x-") and "/" not in entrant.slug
    slugs = [e.slug for e in entrants({"runs/a#1": "x", "runs/a#best": "x", "x * gamma": "x", "x*gamma": "x"})]
    assert len({*slugs, entrants({"runs/a#1": "tanh(x)"})[0].slug}) == 5


REFUSED = {
    "detektion --out OUT": "",  # typer's own
    "detection": "--out DIRECTORY",
    "detection --out OUT --layers bn-relu,bn-relu": "bn-relu twice",
    "detection --out OUT --layers ,": "names no layer",
    "detection --out OUT --layers adaln": "is given more than x",
    "detection --out OUT --layers bn-rely": "",
    "detection --out OUT --data shape": "did you mean",
    "detection --out OUT --data shapes:here": "write shapes alone",
    "detection --out OUT --data coco:/nowhere": "/nowhere",
    "detection --out OUT --batch 8,x": "--batch is whole numbers",
    "detection --out OUT --batch 100 --set data.drawn.train=20": "is more than the 20 training images",
    "detection --out OUT --set recipe.image=3": "did you mean 'recipe.images'",
    "detection --out OUT --set seed=3": "--first-seed",
    "detection --out OUT --set recipe.steps=3 --set recipe.images=8": "say the same in two ways",
    "detection --out OUT --inception FILE": "is of gan",
    "detection --out OUT --set run.device=cuda": "torch finds no GPU",
    "gan --out OUT --layers tanh(x)": "gamma",
    "gan --out OUT --data cifar10:/nowhere": "/nowhere",
    "gan --out OUT --data imagefolder:/nowhere": "",
    "gan --out OUT --set data.size=20": "20",
    "gan --out OUT --set run.loaders=2": "there is no setting",
    "gan --out OUT --inception /nowhere": "/nowhere",
}


@pytest.mark.parametrize("line", REFUSED)
def test_mistakes_are_one_sentence_before_anything_is_written(line, tmp_path):
    out = tmp_path / "out"
    given = (str(out) if part == "OUT" else part for part in line.split())
    found = CliRunner().invoke(app, ["transfer", *given])
    assert found.exit_code and not out.exists()
    if REFUSED[line]:
        assert isinstance(found.exception, NormforgeError), found.exception
        said = str(found.exception)
        assert REFUSED[line] in said and "\n" not in said, said


def test_a_layer_that_no_network_can_give_anything(tmp_path):
    with pytest.raises(OptionError, match="given more than x"):
        transfer(config("gan"), {"cond": "cond-bn-relu"}, tmp_path / "out", seeds=[0])
