"""COCO's layout: what is read of it, what is written for COCO's own evaluation, and every mistake in it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transfer_tools import config

from normforge.errors import OptionError
from normforge.train.transfer.data import load
from normforge.train.transfer.detection.coco import CocoScenes, check_images, coco, results
from normforge.train.transfer.detection.scene import Found, Scenes
from normforge.train.transfer.run import run

CATEGORIES = {90: "toothbrush", 3: "car", 17: "cat"}  # neither sorted nor without gaps
WIDTH, HEIGHT = 40, 30
GREY, EMPTY, BARE, CROWD_ONLY = 5, 6, 7, 8  # ids of images of train


def ellipse(rng: np.random.Generator) -> np.ndarray:
    """(H, W) of bool: one that lies inside the image."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    a, b = rng.uniform(4, 9, 2)
    return ((x - rng.uniform(10, 30)) / a) ** 2 + ((y - rng.uniform(10, 20)) / b) ** 2 <= 1


def annotation(number: int, image: int, category: int, rng: np.random.Generator, form: str) -> dict[str, Any]:
    """An annotation whose mask is written as polygon, compressed or uncompressed run lengths."""
    if form == "polygon":
        angles = np.linspace(0, 2 * np.pi, 9)[:-1]
        center, radii = rng.uniform([10, 10], [30, 20]), rng.uniform(4, 9, 2)
        points = (center + radii * np.stack([np.cos(angles), np.sin(angles)], 1)).round(2)
        left, top = points.min(0).tolist()
        right, bottom = points.max(0).tolist()
        segmentation: Any = [points.ravel().tolist(), [1.0, 1.0, 2.0, 1.0]]  # two points are no polygon
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "iscrowd": 0,
            "bbox": [left, top, right - left, bottom - top],
            "area": 1.0,
            "segmentation": segmentation,
        }
    mask = ellipse(rng)
    run = reference_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = reference_mask.toBbox(run).tolist()
    if form == "compressed":
        segmentation = {"size": [HEIGHT, WIDTH], "counts": run["counts"].decode()}
    else:
        flat = mask.ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *ends, flat.size]).tolist()
        segmentation = {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": int(form == "crowd"),
        "bbox": box,
        "area": 1.0,
        "segmentation": segmentation,
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data set of 12 images, of which 8 are for training, listed in no order."""
    rng = np.random.default_rng(0)
    annotations: dict[str, list[dict[str, Any]]] = {"train2017": [], "val2017": []}
    images: dict[str, list[dict[str, Any]]] = {"train2017": [], "val2017": []}
    forms = ("polygon", "compressed", "uncompressed")
    number = 0
    for image in (3, 1, 2, GREY, 4, EMPTY, BARE, CROWD_ONLY, 104, 101, 103, 102):
        part = "train2017" if image < 100 else "val2017"
        (tmp_path / part).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH) if image == GREY else (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / f"{image}.png")
        images[part].append({"id": image, "file_name": f"{image}.png", "width": WIDTH, "height": HEIGHT})
        if image in (BARE, 104):
            continue
        for k, category in enumerate(CATEGORIES if image not in (CROWD_ONLY, EMPTY) else ()):
            number += 1
            annotations[part].append(annotation(number, image, category, rng, forms[(k + image) % 3]))
        if image in (2, CROWD_ONLY, 103):
            number += 1
            annotations[part].append(annotation(number, image, 3, rng, "crowd"))
    whole = annotations["train2017"][0]
    nothing = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    annotations["train2017"] += [
        whole | {"id": 900, "bbox": [5, 5, 0, 9]},
        whole | {"id": 901, "image_id": EMPTY, "segmentation": nothing},
        whole | {"id": 902, "image_id": EMPTY, "segmentation": [[5, 5, 5, 5, 5, 5]]},
        whole | {"id": 903, "image_id": EMPTY, "bbox": [WIDTH + 3, 5, 4, 4]},
    ]
    (tmp_path / "annotations").mkdir()
    for part in annotations:
        content = {
            "info": {},
            "images": images[part],
            "annotations": annotations[part],
            "categories": [{"id": k, "name": name, "supercategory": "thing"} for k, name in CATEGORIES.items()],
        }
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return tmp_path


def reference(directory: Path, part: str) -> COCO:
    """The annotations as pycocotools reads them."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(directory / "annotations" / f"instances_{part}.json"))


def test_parts_images_and_categories(directory: Path) -> None:
    train, validation = coco(directory)
    scenes: Scenes = train
    assert scenes.names == ("car", "cat", "toothbrush")
    assert train.categories == validation.categories == (3, 17, 90)
    assert [CATEGORIES[k] for k in train.categories] == [*train.names]
    # In training, images without an instance are left out: not annotated, empty ones only, a crowd only.
    assert train.ids == (1, 2, 3, 4, GREY)
    assert validation.ids == (101, 102, 103, 104)
    assert len(train) == 5
    bare = validation[validation.ids.index(104)]
    assert bare.boxes.shape == (0, 4) and bare.masks.shape == (0, HEIGHT, WIDTH) and bare.crowd.shape == (0,)
    check_images(train)
    check_images(validation, 1)


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_scenes_are_what_pycocotools_reads(directory: Path, part: str) -> None:
    scenes = coco(directory)[part == "val2017"]
    truth = reference(directory, part)
    crowds = 0
    for index, number in enumerate(scenes.ids):
        scene = scenes[index]
        with Image.open(directory / part / f"{number}.png") as image:
            np.testing.assert_array_equal(scene.image.numpy(), np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        rows = [row for row in truth.imgToAnns[number] if row["id"] < 900]
        assert [scenes.categories[label - 1] for label in scene.labels] == [row["category_id"] for row in rows]
        assert scene.crowd.tolist() == [bool(row["iscrowd"]) for row in rows]
        for row, box, mask in zip(rows, scene.boxes, scene.masks, strict=True):
            x, y, w, h = row["bbox"]
            assert torch.equal(box, torch.tensor([x, y, x + w, y + h], dtype=torch.float32))
            # pycocotools would draw two points as a box.
            polygons = isinstance(row["segmentation"], list)
            np.testing.assert_array_equal(
                mask.numpy(),
                truth.annToMask(row | {"segmentation": row["segmentation"][:1]} if polygons else row),
            )
        crowds += int(scene.crowd.sum())
        assert scene.image.dtype == scene.masks.dtype == torch.uint8
        assert scene.boxes.dtype == torch.float32 and scene.labels.dtype == torch.int64
    assert crowds == 1


def test_a_box_is_cut_at_the_border(directory: Path) -> None:
    edit(directory, "train2017", lambda content: content["annotations"][0].update(bbox=[-2, 4, 100, 8.5]))
    train, _ = coco(directory)
    first = json.loads((directory / "annotations/instances_train2017.json").read_text())["annotations"][0]
    assert train[train.ids.index(first["image_id"])].boxes[0].tolist() == [0, 4, WIDTH, 12.5]


def perfect(scenes: CocoScenes, index: int) -> Found:
    """What a perfect detector finds."""
    scene = scenes[index]
    kept = ~scene.crowd
    scores = torch.linspace(0.9, 0.5, int(kept.sum()))
    return Found(scene.boxes[kept], scores, scene.labels[kept], scene.masks[kept])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_results_are_perfect_to_cocos_own_evaluation(directory: Path, kind: str) -> None:
    # Two points that are no polygon would be drawn by pycocotools.
    edit(directory, "val2017", without_two_points)
    _, validation = coco(directory)
    rows = [row for k in range(len(validation)) for row in results(perfect(validation, k), validation, k)]
    file = directory / "results.json"
    file.write_text(json.dumps(rows))
    assert {row["category_id"] for row in rows} == set(CATEGORIES)
    assert {row["image_id"] for row in rows} == {101, 102, 103}
    truth = reference(directory, "val2017")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(str(file)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[:3].tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_results_are_read_by_faster_coco_eval(directory: Path) -> None:
    from faster_coco_eval import COCO as Faster

    _, validation = coco(directory)
    rows = results(perfect(validation, 0), validation, 0)
    there = Faster(str(directory / "annotations" / "instances_val2017.json")).loadRes(json.loads(json.dumps(rows)))
    np.testing.assert_array_equal(there.annToMask(there.anns[1]), validation[0].masks[0].numpy())


def test_nothing_found_gives_no_rows(directory: Path) -> None:
    _, validation = coco(directory)
    assert results(perfect(validation, 3), validation, 3) == []


def without_two_points(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        if isinstance(row["segmentation"], list):
            row["segmentation"] = row["segmentation"][:1]


def test_other_names_of_the_parts(directory: Path) -> None:
    before = coco(directory)
    for part in ("train", "val"):
        (directory / f"{part}2017").rename(directory / part)
        (directory / f"annotations/instances_{part}2017.json").rename(directory / f"annotations/instances_{part}.json")
    for was, now in zip(before, coco(directory), strict=True):
        assert now.ids == was.ids and now.digest == was.digest


def test_the_digest_is_of_annotations_and_files(directory: Path) -> None:
    train, validation = coco(directory)
    assert train.digest != validation.digest
    assert [scenes.digest for scenes in coco(directory)] == [train.digest, validation.digest]
    (directory / "train2017" / "1.png").open("ab").write(b"\0")
    assert coco(directory)[0].digest != train.digest
    assert coco(directory)[1].digest == validation.digest
    edit(directory, "val2017", lambda content: content["annotations"].pop())
    assert coco(directory)[1].digest != validation.digest


def edit(directory: Path, part: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an annotation file."""
    file = directory / "annotations" / f"instances_{part}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first(**fields: object) -> Callable[[dict[str, Any]], None]:
    """Change fields of the first annotation."""
    return lambda content: content["annotations"][0].update(fields)


def every(**fields: object) -> Callable[[dict[str, Any]], None]:
    """Change fields of all annotations."""
    return lambda content: [row.update(fields) for row in content["annotations"]] and None


RUNS = {"size": [HEIGHT, WIDTH], "counts": "34"}
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no categories": (lambda c: c.pop("categories"), "has no list of categories"),
    "annotations are no list": (lambda c: c.update(annotations={}), "has no list of annotations"),
    "an image without a name": (lambda c: c["images"][0].pop("file_name"), "entry 0 of its images has no file_name"),
    "an id of text": (lambda c: c["images"][1].update(id="1"), "entry 1 of its images has no id that is a whole"),
    "an entry of text": (lambda c: c["annotations"].insert(0, "x"), "entry 0 of its annotations has no id"),
    "no width": (lambda c: c["images"][0].update(width=0), "has no width or no height"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "entry 0 of its annotations has no bbox that is a list"),
    "two images of one id": (lambda c: c["images"].append(c["images"][0]), "two of its images have the same id"),
    "two categories of one id": (lambda c: c["categories"][0].update(id=3), "two of its categories have the same id"),
    "unknown image": (first(image_id=77), "annotation 1 is of image 77, which is not in it"),
    "unknown category": (first(category_id=4), "annotation 1 is of category 4, which is not in it"),
    "three numbers of a box": (first(bbox=[1, 2, 3]), "its bbox is not four finite numbers"),
    "a box that is not finite": (first(bbox=[1, 2, 3, float("nan")]), "its bbox is not four finite numbers"),
    "a box of words": (first(bbox=[1, 2, 3, "wide"]), "annotation 1 cannot be read"),
    "no masks": (every(segmentation=[]), "has boxes but no masks"),
    "no instances": (every(iscrowd=1), "no image has an instance"),
    "no annotations": (lambda c: c.update(annotations=[]), "no image has an instance"),
    "an odd polygon": (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "is not a list of x, y"),
    "a polygon far away": (first(segmentation=[[1, 2, 3, 4e9, 5, 6]]), "is not a list of x, y"),
    "a bare polygon": (first(segmentation=[1, 2, 3, 4, 5, 6]), "is not a list of x, y"),
    "a mask of text": (first(segmentation="x"), "neither polygons nor run lengths"),
    "a mask of another size": (first(segmentation=RUNS | {"size": [3, 4]}), "is for a size of [3, 4]"),
    "runs too short": (first(segmentation=RUNS), "annotation 1 cannot be read"),
    "runs too long": (first(segmentation=RUNS | {"counts": "0P3PPPPPPPPP1"}), "annotation 1 cannot be read"),
    "runs cut off": (first(segmentation=RUNS | {"counts": "garbage"}), "annotation 1 cannot be read"),
    "runs that do not add up": (first(segmentation=RUNS | {"counts": [3, 4]}), "add up to the 1200 pixels"),
    "negative runs": (first(segmentation=RUNS | {"counts": [-1, 1201]}), "add up to the 1200 pixels"),
    "another category": (lambda c: c["categories"][0].update(name="brush"), "the category"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_annotations_are_one_sentence(directory: Path, name: str) -> None:
    change, words = CHANGES[name]
    edit(directory, "train2017", change)
    sentence(directory, words, "train2017")


def sentence(directory: Path, *words: str) -> None:
    with pytest.raises(OptionError) as caught:
        coco(directory)
    message = str(caught.value)
    assert message.startswith(f"coco:{directory}") and "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_damaged_files_are_one_sentence(directory: Path) -> None:
    sentence(directory / "nowhere", "there is no such directory", "annotations/instances_train2017.json")
    file = directory / "annotations" / "instances_train2017.json"
    whole = file.read_bytes()
    for damaged in (whole[:-20], b"\xff" + whole, b""):
        file.write_bytes(damaged)
        sentence(directory, "instances_train2017.json is damaged, it is not JSON")
    file.write_bytes(b"[]")
    sentence(directory, "has no list of categories")
    file.write_bytes(whole)
    (directory / "train2017" / "1.png").rename(directory / "away.png")
    sentence(directory, str(directory / "train2017" / "1.png"), "No such file")
    (directory / "train2017").rename(directory / "train")
    sentence(directory, f"there is no folder {directory / 'train2017'}", "instances_val2017.json")
    for ending in ("a", "b"):
        file.with_stem(f"instances_train_{ending}").write_bytes(whole)
    file.unlink()
    sentence(directory, "both instances_train_a.json and instances_train_b.json")
    for other in file.parent.glob("instances_train*"):
        other.unlink()
    sentence(directory, f"there is no file {file}", "train2017 and val2017")


def test_a_broken_image_is_named(directory: Path) -> None:
    train, validation = coco(directory)
    file = directory / "val2017" / "103.png"
    whole = file.read_bytes()
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(file)
    for wrong, reason in ((file.read_bytes(), f"{WIDTH + 1}×{HEIGHT} pixels"), (b"no image", "cannot identify")):
        file.write_bytes(wrong)
        with pytest.raises(OptionError, match=reason) as caught:
            check_images(validation)
        assert str(file) in str(caught.value)
        check_images(validation, 1)  # which opens the first one alone
        with pytest.raises(OptionError, match=reason):
            validation[2]
    file.write_bytes(whole[: len(whole) // 2])  # its head is whole
    check_images(validation)
    with pytest.raises(OptionError, match="cannot be read") as caught:
        validation[2]
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    deep = directory / "train2017" / "1.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(deep)
    with pytest.raises(OptionError, match="more than 8 bits"):
        check_images(train)


def test_a_missing_package_is_one_sentence(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    sentence(directory, "needs faster-coco-eval", "pip install 'normforge[transfer]'")


def test_what_a_detector_finds_is_written_for_cocos_own_evaluation(directory: Path, tmp_path: Path) -> None:
    settings = "recipe.images=8", "recipe.batch=2", "run.loaders=2", f"data.source=coco:{directory}"
    asked = config("detection", *settings)
    result = run(asked, load(asked), tmp_path / "run", torch.device("cpu"))
    assert result is not None and result.failed is None and result.steps == 4
    truth, file = directory / "annotations" / "instances_val2017.json", tmp_path / "run" / "detections.json"
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated = COCOeval(COCO(str(truth)), COCO(str(truth)).loadRes(str(file)), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    assert evaluated.stats[0] == pytest.approx(result.figures["box_ap"], abs=1e-6)
    rows = json.loads(file.read_text())
    assert {row["image_id"] for row in rows} <= {101, 102, 103, 104}
    assert rows and {row["category_id"] for row in rows} <= {*CATEGORIES}
