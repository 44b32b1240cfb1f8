"""`normforge train` from the command line, on files as people have them."""

import fcntl
import json

import numpy as np
import pytest
import torch
from PIL import Image
from train_tools import config, normforge, refused, training

from normforge.errors import OptionError, RunError, UnknownNameError
from normforge.train.harness import RECIPES, evaluate_checkpoint, load_config, load_trained, train
from normforge.train.models import image_side, make_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images as ImageNet's: photographs of three patterns, of different sizes."""
    root, rng = tmp_path_factory.mktemp("images") / "data", np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 6)):
        for label, name in enumerate(("checks", "columns", "rows")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                height, width = rng.integers(40, 80, 2)
                row, column = np.mgrid[:height, :width] // 8 % 2
                pattern = (row ^ column, column, row)[label]
                noisy = 255 * pattern[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 20, (height, width, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.jpg")
    return root


def test_folders_of_images_from_end_to_end(folders, tmp_path):
    """Both steps; the evaluation of the checkpoint prints the last line of the training."""
    out = tmp_path / "run"
    options = ["--data", f"imagenet:{folders}", "--model", "resnet18", "--layer", "gn-silu", "--recipe", "resnet"]
    settings = (
        "data.size=32", "data.test_size=40", "recipe.batch=15", "recipe.epochs=5", "recipe.warmup_epochs=1",
        "recipe.rate_for=none", "recipe.rate=0.02", "recipe.dtype=float32", "run.loaders=1",
    )  # fmt: skip
    command = ["train", "--out", str(out), *options, *(part for s in settings for part in ("--set", s))]
    done = normforge(*command)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert "resnet18 with gn-silu" in first and "60 images of imagenet:" in first and "20 steps of 15" in first
    assert last.startswith("test after 20 steps: loss ")
    assert float(last.rpartition(" ")[2]) > 0.5  # of three classes
    judged = normforge("train", "--eval", str(out))
    assert judged.returncode == 0, judged.stderr
    assert judged.stdout == f"{last}\n"
    assert {f.name for f in out.iterdir()} == {"checkpoint.pt", "config.json", "curves.png", "lock", "log.jsonl"}
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [4, 8, 12, 16, 20] and rows[-1]["pipeline_images_a_second"] > 0
    again = normforge(*command)
    assert again.stdout.splitlines()[-1] == last


def test_files_that_are_no_images_to_train_on(folders, tmp_path):
    sentence = refused(normforge("train", "--out", str(tmp_path / "run"), "--data", f"imagenet:{folders}/train"))
    assert "train" in sentence and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (["model=resnet5O"], UnknownNameError, "did you mean 'resnet50'"),
        (["model=proxy/resnt"], UnknownNameError, "did you mean 'proxy/resnet'"),
        (["layer=tanh(x"], ValueError, "tanh"),
        (["layer=same"], OptionError, "proxy/resnet has no norms of its own"),
        (["model=nf_resnet50", "layer=gn-silu"], OptionError, "no norm that .* could stand in the place of"),
        (["data.source=fractal"], OptionError, "did you mean 'fractals'"),
        (["data.source=imagenet:"], OptionError, "say where it is"),
        (["data.test_size=64"], OptionError, "data.test_size is of imagenet:DIR"),
        (["recipe.agc=0.1", "recipe.clip_norm=1"], OptionError, "choose one"),
        (["recipe.drop_path=0.1"], OptionError, "neither dropout nor stochastic depth"),
        (["model=vgg11", "recipe.drop_path=0.1"], OptionError, "timm's vgg11 cannot be made .* drop_path_rate = 0.1"),
        (["run.parallel=fsdp", "recipe.layout=nchw"], OptionError, "start several, by torchrun"),
        (["run.parallel=fsdp"], OptionError, "recipe.layout=nchw"),
        (["model=vgg11"], OptionError, "vgg11 cannot be trained on 2 images of 8 pixels: "),
        (["model=resnet18", "recipe.batch=1"], OptionError, "resnet18 cannot be trained on 1 images of 8 pixels: "),
        (["model=proxy/vit", "data.crop=4"], OptionError, "proxy/vit cannot be evaluated on images of 8 pixels: "),
        (["layer=adaln"], OptionError, "needs scale, shift beside x"),
        (["recipe.batch=300"], OptionError, "is more than the 200 training images of fractals"),
        (["recipe.batch=20", "recipe.accumulate=3"], OptionError, "give a multiple of 3"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(tmp_path, given, error, words):
    with pytest.raises(error, match=words) as e:
        train(config(*given), tmp_path / "run")
    assert "\n" not in str(e.value) or "tanh" in words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("nfnets", [], "there is no recipe 'nfnets'; did you mean 'nfnet'"),
        ("small", ["recipe.rat=1"], "there is no setting 'recipe.rat'; did you mean 'recipe.rate'"),
        ("small", ["recipe.rate=fast"], "recipe.rate = 'fast' cannot be"),
        ("small", ["recipe.rate"], "sets nothing"),
        ("missing.toml", [], "cannot be read"),
        ("small", ["recipe.steps=5", "recipe.epochs=2"], "recipe.steps and recipe.epochs say the same"),
        ("small", ["recipe.ema=often"], "^recipe.ema = 'often' cannot be"),
    ],
)
def test_settings_that_there_are_not(recipe, given, words):
    with pytest.raises(OptionError, match=words):
        load_config(recipe, given)


def test_a_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "nfnet"\nmodel = "nfnet_f1"\n[recipe]\nsteps = 70\nwarmup = 7\n')
    made = load_config(str(file), ["recipe.batch=32"])
    assert (made.model, made.recipe.agc, made.recipe.batch) == ("nfnet_f1", 0.01, 32)
    resolved = made.recipe.resolved(1000)
    assert (resolved.steps, resolved.warmup) == (70, 7)
    file.write_text("[recipe]\nepochs = 100\n")
    assert load_config(str(file), ["recipe.steps=5"]).recipe.resolved(1000).steps == 5
    file.write_text('name = ["nfnet"]')
    with pytest.raises(OptionError, match="there is no recipe"):
        load_config(str(file))
    file.write_text("[recipe]\nlearning_rate = 1\n")
    with pytest.raises(OptionError, match=r"no setting 'recipe\.learning_rate'"):
        load_config(str(file))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_count_in_epochs(name):
    recipe = load_config(name).recipe
    resolved = recipe.resolved(100 * recipe.batch)
    assert resolved.steps == 100 * recipe.epochs and resolved.warmup == 100 * recipe.warmup_epochs


def test_a_training_that_diverges_says_so(tmp_path):
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+: lower recipe\.rate"):
        train(config("layer=x * gamma + beta", "recipe.rate=1e30", "recipe.warmup_epochs=0"), tmp_path)


def test_layers_are_kept_as_names_or_formulas(tmp_path):
    file = tmp_path / "layer.txt"
    file.write_text("x * sigmoid(x) / std[w,h](x) * gamma + beta")
    out = tmp_path / "run"
    done = normforge(*training(out, "recipe.steps=4"), "--layer", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["layer"].startswith("x * sigmoid(x)")


def test_the_model_can_be_taken_away(tmp_path):
    train(config("recipe.ema=0.5", "layer=evonorm-b0"), tmp_path)
    model, made = load_trained(tmp_path)
    assert made == config("recipe.ema=0.5", "layer=evonorm-b0") and not model.training
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 4)
    assert not torch.equal(weight, state["model"][name])  # but the average of it
    loss, accuracy = state["test"]
    assert evaluate_checkpoint(tmp_path) == f"test after 12 steps: loss {loss:.4f}, accuracy {accuracy:.4f}"
    with pytest.raises(OptionError, match=r"has 5 classes, and .* was trained on 10"):
        evaluate_checkpoint(tmp_path, source=f"npz:{_archive(tmp_path)}")
    with pytest.raises(RunError, match="there is no checkpoint"):
        evaluate_checkpoint(tmp_path / "elsewhere")


def _archive(folder):
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(50, 8, 8)), y=np.arange(50) % 5)
    return folder / "x.npz"


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="holds other things than a training"):
        train(config(), tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"
    with pytest.raises(RunError, match="cannot be used"):
        train(config(), tmp_path / ("x" * 300))


def test_one_training_in_a_directory(tmp_path):
    train(config(), tmp_path)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="a training is running in"):
            train(config(), tmp_path)
    train(config(), tmp_path)


def test_evaluation_takes_no_other_settings(tmp_path):
    assert "takes model from" in refused(normforge("train", "--eval", str(tmp_path), "--model", "resnet18"))
    assert "recipe.rate" in refused(normforge("train", "--eval", str(tmp_path), "--set", "recipe.rate=1"))
    assert "--out" in refused(normforge("train"))


def test_settings_are_explained():
    said = normforge("train", "--settings", "--recipe", "nfnet").stdout
    assert "recipe.agc = 0.01    # λ of adaptive gradient clipping" in said
    assert len(said.splitlines()) > 60


def test_tensorboard_reads_what_is_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(config("run.tensorboard=true"), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    read = events.Scalars("validation_loss")
    assert [(e.step, e.value) for e in read] == [(r["step"], pytest.approx(r["validation_loss"])) for r in logged]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "evonorm-s0"),
        ("timm/nf_resnet26", None),
        ("mobilenetv2_035", "same"),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_models_of_timm(name, layer):
    options = {"networks": config().networks, "in_channels": 1, "classes": 5, "size": 32}
    one, again, other = (make_model(name, layer, seed=s, **options) for s in (0, 0, 1))
    logits = one.eval()(torch.zeros(2, 1, 32, 32))
    assert logits.shape == (2, 5)
    assert all(map(torch.equal, one.state_dict().values(), again.state_dict().values()))
    assert not all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_sizes_that_models_are_meant_for():
    assert (image_side("nfnet_f0"), image_side("nfnet_f0", test=True)) == (192, 256)
    assert (image_side("resnet50"), image_side("tf_efficientnet_b3")) == (224, 300)


def test_stochastic_depth_and_dropout_reach_the_model():
    model = make_model(
        "nf_resnet50", None, networks=config().networks, in_channels=1, classes=5, size=32, seed=0, drop=0.3,
        drop_path=0.2,
    )  # fmt: skip
    assert model.config.drop_rate == 0.3 and model.config.stochastic_depth == 0.2
