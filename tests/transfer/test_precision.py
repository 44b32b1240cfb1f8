"""Average precision is that of COCO's own evaluation, by either backend."""

from __future__ import annotations

import contextlib
import io
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from normforge.errors import OptionError
from normforge.train.transfer.detection.precision import AveragePrecision
from normforge.train.transfer.detection.scene import Found, Scene

BACKENDS = ["faster_coco_eval", "pycocotools"]
SIDE, CLASSES = 64, 4
FIGURES = ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]


def ellipse(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """(S, S) of uint8: what fills a box."""
    x, y = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    wide, high = max(right - left, 1), max(bottom - top, 1)
    inside = ((2 * x - left - right) / wide) ** 2 + ((2 * y - top - bottom) / high) ** 2 <= 1
    return inside.astype(np.uint8)


def example(rng: np.random.Generator, crowds: bool = True) -> tuple[Scene, Found]:
    """A scene, and what a detector finds that misses some, invents some and is not exact."""
    count = int(rng.integers(0, 7))
    corners = rng.uniform(0, SIDE - 24, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(6, 24, (count, 2))], 1).astype(np.float32)
    labels = rng.integers(1, CLASSES, count)  # of the last class there is none
    crowd = (rng.random(count) < 0.15) & crowds
    masks = np.stack([ellipse(*box) for box in boxes]) if count else np.zeros((0, SIDE, SIDE), np.uint8)
    near = [k for k in range(count) for _ in range(rng.integers(0, 4))]
    moved = boxes[near] + rng.normal(0, 1.5, (len(near), 4))
    invented = rng.uniform(0, SIDE - 10, (3, 2))
    guessed = np.concatenate([moved, np.concatenate([invented, invented + 9], 1)]).astype(np.float32)
    of = np.concatenate([labels[near], rng.integers(1, CLASSES + 1, 3)])
    of = np.where(rng.random(len(of)) < 0.1, rng.integers(1, CLASSES + 1, len(of)), of)
    scores = rng.uniform(0.05, 1, len(guessed)).astype(np.float32)
    order = np.argsort(-scores)
    found = np.stack([ellipse(*(box + rng.normal(0, 1, 4))) for box in guessed])
    return (
        Scene(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), *map(torch.from_numpy, (boxes, labels, masks, crowd))),
        Found(*map(torch.from_numpy, (guessed[order], scores[order], of[order], found[order]))),
    )


def rows(boxes: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor, image: int) -> list[dict[str, Any]]:
    """Annotations or results of an image."""
    made = []
    for box, label, mask in zip(boxes.double().tolist(), labels.tolist(), masks.numpy(), strict=True):
        run = coding.encode(np.asfortranarray(mask))
        made.append(
            {
                "image_id": image,
                "category_id": label,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": float(mask.sum()),
                "segmentation": run,
            }
        )
    return made


def official(examples: list[tuple[Scene, Found]]) -> dict[str, float]:
    """The figures by pycocotools alone."""
    truth, found = [], []
    for image, (scene, guess) in enumerate(examples):
        for row, crowd in zip(rows(scene.boxes, scene.labels, scene.masks, image), scene.crowd, strict=True):
            truth.append(row | {"id": len(truth) + 1, "iscrowd": int(crowd)})
        for row, score in zip(rows(guess.boxes, guess.labels, guess.masks, image), guess.scores, strict=True):
            found.append(row | {"score": float(score)})
    figures: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = {
            "info": {},
            "images": [{"id": k, "height": SIDE, "width": SIDE} for k in range(len(examples))],
            "annotations": truth,
            "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES + 1)],
        }
        dataset.createIndex()
        results = dataset.loadRes(found)
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(dataset, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures += evaluation.stats[:3].tolist()
    return dict(zip(FIGURES, figures, strict=True))


def measured(examples: list[tuple[Scene, Found]], backend: str) -> dict[str, float]:
    precision = AveragePrecision(backend)
    for scene, found in examples:
        precision.update(found, scene)
    return precision.compute()


@pytest.mark.parametrize("backend", BACKENDS)
def test_figures_are_cocos(backend: str) -> None:
    rng = np.random.default_rng(7)
    examples = [example(rng) for _ in range(40)]
    assert sum(int(scene.crowd.sum()) for scene, _ in examples) > 5
    expected = official(examples)
    assert all(0.05 < value < 0.95 for value in expected.values())  # or the comparison would say little
    got = measured(examples, backend)
    assert list(got) == FIGURES
    assert got == pytest.approx(expected, rel=0, abs=1e-6)
    # Crowds taken for instances make another figure: they do go through.
    plain = [(Scene(s.image, s.boxes, s.labels, s.masks, torch.zeros_like(s.crowd)), f) for s, f in examples]
    assert abs(measured(plain, backend)["mask_ap"] - expected["mask_ap"]) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_none_and_nothing_to_find(backend: str) -> None:
    rng = np.random.default_rng(3)
    scenes = [example(rng, crowds=False)[0] for _ in range(8)]
    perfect = [(s, Found(s.boxes, torch.ones(len(s.labels)), s.labels, s.masks)) for s in scenes]
    assert measured(perfect, backend) == pytest.approx(dict.fromkeys(FIGURES, 1.0), abs=1e-6)
    none = [(s, Found(s.boxes[:0], torch.ones(0), s.labels[:0], s.masks[:0])) for s in scenes]
    assert measured(none, backend) == dict.fromkeys(FIGURES, 0.0)
    bare = [(Scene(s.image, s.boxes[:0], s.labels[:0], s.masks[:0], s.crowd[:0]), f) for s, f in perfect]
    for examples in (bare, [(s, n) for (s, _), (_, n) in zip(bare, none, strict=True)], []):
        figures = measured(examples, backend)
        assert list(figures) == FIGURES and all(math.isnan(value) for value in figures.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_silent(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    scene, found = example(rng)
    many = Found(*(x.repeat(101, *[1] * (x.ndim - 1)) for x in (found.boxes, found.scores, found.labels, found.masks)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured([], backend)
        measured([(scene, many)], backend)
    out, err = capfd.readouterr()
    assert not out and not err


def test_a_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"no backend 'pycoco': .*did you mean 'pycocotools'\?"):
        AveragePrecision("pycoco")
    for module, backend, words in (
        ("faster_coco_eval.core.mask", BACKENDS[0], "needs faster_coco_eval, .*pip install 'normforge\\[transfer\\]'$"),
        ("pycocotools.mask", BACKENDS[1], "needs pycocotools, .*pip install pycocotools$"),
        ("torchmetrics.detection", BACKENDS[0], "needs torchmetrics, .*pip install 'normforge\\[transfer\\]'$"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(OptionError, match=words) as caught:
                AveragePrecision(backend)
            assert "\n" not in str(caught.value)


def test_the_default_backend_needs_no_pycocotools() -> None:
    code = (
        "import sys; sys.modules['pycocotools'] = None; import torch;"
        "from normforge.train.transfer.detection.precision import AveragePrecision;"
        "assert 'torchmetrics' not in sys.modules;"  # only a metric that is made imports it
        "from normforge.train.transfer.detection.scene import Found, Scene;"
        "box, one = torch.tensor([[1., 1., 5., 5.]]), torch.ones(1, dtype=torch.int64);"
        "mask = torch.ones(1, 8, 8).byte();"
        "p = AveragePrecision(); p.update(Found(box, torch.ones(1), one, mask), Scene(mask, box, one, mask, one > 1));"
        "print(p.compute()['mask_ap'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) == pytest.approx(1)
