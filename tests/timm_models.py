"""timm's own tests of its models, on models that were converted: all that pass unconverted are to pass.

    python tests/timm_models.py                        # half an hour on two cores; fetches timm's source distribution
    python tests/timm_models.py --layer evonorm-s0 --models resnet18
    python tests/timm_models.py --source timm-1.0.31.tar.gz

`tests/test_models.py` of the installed version's source distribution is run twice, over the tests of `MODELS`: as it is
and with `timm.create_model` returning what `nf.convert` makes of its model. Tests that need what is not here, such as
pretrained weights, fail in both. Nothing of timm's is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

MODELS = (
    "resnet18", "seresnet18", "resnetv2_18", "mobilenetv2_100", "mobilenetv3_small_050", "efficientnet_b0",
    "regnetx_002", "ghostnet_100", "convnext_atto", "vit_tiny_patch16_224", "mixer_s32_224", "levit_128s",
)  # fmt: skip
CONFTEST = """
import json, os, pathlib
import timm

made = timm.create_model
LAYER, MODELS = os.environ["LAYER"], os.environ["MODELS"].split(",")
outcomes = {}


def converted(*args, **kwargs):
    import normforge as nf

    model = made(*args, **kwargs)
    return nf.convert(model, LAYER, inplace=True)[0]


if LAYER:
    timm.create_model = timm.models.create_model = timm.models._factory.create_model = converted


def pytest_collection_modifyitems(config, items):
    of = lambda item: getattr(getattr(item, "callspec", None), "params", {}).get("model_name")
    items[:] = [item for item in items if of(item) in MODELS]


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome == "skipped":
        said = str(report.longrepr).strip().splitlines()[-1:] if report.outcome == "failed" else []
        outcomes[report.nodeid] = [report.outcome, *said]


def pytest_sessionfinish(session):
    if os.environ.get("PYTEST_XDIST_WORKER") is None:
        pathlib.Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))
"""


def fetched(folder: Path, source: Path | None) -> Path:
    """timm's test file, out of the source distribution of the version that is installed."""
    if source is None:
        name = f"timm=={version('timm')}"
        print(f"fetching the source of {name} with pip", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", name]
        subprocess.run([*command, "-d", str(folder)], check=True)
        source = next(folder.glob("timm-*.tar.gz"))
    with tarfile.open(source) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("/tests/test_models.py"))
        member.name = "test_models.py"
        archive.extract(member, folder, filter="data")
    return folder / "test_models.py"


def run(folder: Path, layer: str, models: str, workers: int) -> dict[str, list[str]]:
    """The outcome of each test: passed, failed with a line that says why, or skipped."""
    path = folder / f"outcomes-{layer or 'as they are'}.json"
    env = {**os.environ, "LAYER": layer, "MODELS": models, "OUTCOMES": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers), "test_models.py"]
    print(f"\n{layer or 'unconverted'}", flush=True)
    subprocess.run([*command, "--tb=line", "-W", "ignore"], cwd=folder, env=env)
    found: dict[str, list[str]] = json.loads(path.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="same", help="that models are converted to")
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument("--source", type=Path, help="a source distribution of timm that is there already")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetched(folder, options.source)
        (folder / "conftest.py").write_text(CONFTEST)
        before = run(folder, "", options.models, options.workers)
        after = run(folder, options.layer, options.models, options.workers)
    passed = [test for test, (outcome, *_) in before.items() if outcome == "passed"]
    lost = {test: after.get(test, ["not run"]) for test in passed if after.get(test, [""])[0] != "passed"}
    for test, outcome in lost.items():
        print(f"{test}: {' '.join(outcome)}")
    print(f"{len(before)} tests, {len(passed)} pass as they are, {len(passed) - len(lost)} of these converted")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
