"""COCO, or any data set in the layout of COCO 2017: annotations read and checked at the start, images when asked for.

Format: cocodataset.org, "Data format" and "Results format".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normforge.errors import OptionError
from normforge.train.transfer.detection.scene import Found, Scene

_LAYOUT = (
    "lay it out as COCO 2017: annotations/instances_train2017.json, annotations/instances_val2017.json, and their "
    "images in the folders train2017 and val2017; the names may also be without 2017"
)
_ENTRIES = {  # what is read of an annotation file
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}
_KINDS = {int: "a whole number", str: "a text", list: "a list"}
_FAR = 1e5  # pixels; edges of polygons are followed point by point, so a damaged coordinate would take all memory
_CORNERS = 3  # of a polygon, at least; pycocotools would take two for a box


@dataclass(frozen=True, slots=True)
class _Image:
    """An image on disk and its instances, whose masks are run lengths: they are far smaller than polygons in Python.

    Attributes:
        id: in the annotation file. file: its path. width, height: in pixels.
        boxes: (n, 4) of float32. labels: (n,) of int64. crowd: (n,) of bool. runs: of the masks, compressed.
    """

    id: int
    file: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    runs: tuple[bytes, ...]


@dataclass(eq=False)
class CocoScenes:
    """A part of a data set in COCO's layout, by ascending id of the images.

    Attributes:
        names: of the categories, by ascending id; label k is `names[k - 1]`.
        categories: ids of the categories; label k is `categories[k - 1]`.
        images: what is known of the images.
        digest: blake2b of the annotation file and of the images' names and sizes, hex; no pixel is read for it.
        source: how the user named the data set, for messages.
    """

    names: tuple[str, ...]
    categories: tuple[int, ...]
    images: tuple[_Image, ...]
    digest: str
    source: str

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the images, in their order."""
        return tuple(image.id for image in self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        """A scene, its image read from disk and its masks decoded; threads may do so at once.

        Raises:
            OptionError: the image cannot be read, or is not of the size that its annotations are for.
        """
        image = self.images[index]
        masks = np.zeros((0, image.height, image.width), np.uint8)
        if image.runs:
            size = [image.height, image.width]
            masks = _masks(self.source).decode([{"size": size, "counts": runs} for runs in image.runs])
            masks = np.ascontiguousarray(masks.transpose(2, 0, 1))
        return Scene(
            torch.from_numpy(_pixels(image, self.source).transpose(2, 0, 1).copy()),
            torch.from_numpy(image.boxes),
            torch.from_numpy(image.labels),
            torch.from_numpy(masks),
            torch.from_numpy(image.crowd),
        )


def coco(directory: Path) -> tuple[CocoScenes, CocoScenes]:
    """The parts for training and for validation.

    Boxes are cut at the image's border. Boxes without width or height and masks without a pixel are dropped: COCO's own
    evaluation counts them as missed. Images without an instance, regions of many objects aside, are left out of
    training, as torchvision's reference training leaves out those without annotations; in validation they are kept.

    Args:
        directory: with `annotations/instances_train2017.json`, `annotations/instances_val2017.json`, and the images in
            `train2017` and `val2017`; other endings than 2017, or none, do as well. All annotations are read and
            checked at once: for COCO itself that takes minutes.

    Raises:
        OptionError: files or folders that are missing, damaged, or do not fit together; parts of different categories,
            without masks, or without an instance; faster-coco-eval that cannot be imported.
    """
    source = f"coco:{directory}"
    _masks(source)
    files = {part: _files(directory, part, source) for part in ("val", "train")}
    # The smaller part first, so that what is wrong with both is said sooner.
    validation, train = (_scenes(*files[part], source, training=part == "train") for part in files)
    ours, theirs = (set(zip(scenes.categories, scenes.names, strict=True)) for scenes in (train, validation))
    if ours != theirs:
        number, name = min(ours ^ theirs)
        there, missing = ("train", "val") if (number, name) in ours else ("val", "train")
        raise OptionError(
            f"{source}: the category {name} of id {number} is in {files[there][0].name} but not in "
            f"{files[missing][0].name}: give both the same categories"
        )
    return train, validation


def check_images(scenes: CocoScenes, most: int = 4000) -> None:
    """Look at the heads of image files, so that one that is no image, or of another size, is found before a training.

    Args:
        most: files that are opened; of more, every second, third, ... is.

    Raises:
        OptionError: a file that cannot be read, which is named.
    """
    for image in scenes.images[:: math.ceil(len(scenes) / most)]:
        _pixels(image, scenes.source, head=True)


def results(found: Found, scenes: CocoScenes, index: int) -> list[dict[str, Any]]:
    """Rows of COCO's results format, for `json.dump`: a list of those of all images is what `loadRes` reads.

    Args:
        found: in the image `scenes[index]`.

    Returns:
        A row for each, with `image_id` and `category_id` of the annotation file, `bbox` as left, top, width, height,
        `score`, and `segmentation` as compressed run lengths.
    """
    if not len(found.scores):
        return []
    corners = found.boxes.double().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    runs = _masks(scenes.source).encode(np.asfortranarray(found.masks.cpu().numpy().transpose(1, 2, 0)))
    return [
        {
            "image_id": scenes.images[index].id,
            "category_id": scenes.categories[label - 1],
            "bbox": box,
            "score": score,
            "segmentation": {"size": [int(side) for side in run["size"]], "counts": run["counts"].decode()},
        }
        for label, box, score, run in zip(found.labels.tolist(), boxes, found.scores.tolist(), runs, strict=True)
    ]


def _masks(source: str) -> Any:
    """The module that codes masks."""
    try:
        return import_module("faster_coco_eval.core.mask")
    except ImportError as e:
        reason = str(e).split("\n")[0]
        raise OptionError(
            f"{source} needs faster-coco-eval, which cannot be imported: {reason}: pip install 'normforge[transfer]'"
        ) from None


def _files(directory: Path, part: str, source: str) -> tuple[Path, Path]:
    """The annotation file and the folder of images of a part."""
    if not directory.is_dir():
        raise OptionError(f"{source}: there is no such directory: {_LAYOUT}")
    folder = directory / "annotations"
    there = {file.stem: file for file in sorted(folder.glob(f"instances_{part}*.json"))}
    usual = [there[name] for name in (f"instances_{part}2017", f"instances_{part}") if name in there]
    if not there:
        raise OptionError(f"{source}: there is no file {folder / f'instances_{part}2017.json'}: {_LAYOUT}")
    if not usual and len(there) > 1:
        one, other = list(there.values())[:2]
        raise OptionError(
            f"{source}: both {one.name} and {other.name} are in {folder}: name one instances_{part}.json, and its "
            f"folder of images {part}"
        )
    file = (usual or list(there.values()))[0]
    images = directory / file.stem.removeprefix("instances_")
    if not images.is_dir():
        raise OptionError(f"{source}: there is no folder {images} with the images of {file.name}: {_LAYOUT}")
    return file, images


def _scenes(file: Path, folder: Path, source: str, *, training: bool) -> CocoScenes:
    """A part, once all of its annotations are checked."""
    where = f"{source}: {file.name}"
    content, digest = _content(file, where)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    label_of = {number: k for k, number in enumerate(sorted(names), 1)}
    entries = {entry["id"]: entry for entry in content["images"]}
    for kind, kept in (("categories", names), ("images", entries)):
        if len(kept) != len(content[kind]):
            raise OptionError(f"{where}: two of its {kind} have the same id: give each its own")
    instances, boxed = _instances(content["annotations"], entries, label_of, where)
    if boxed and not any(not crowd for some in instances.values() for _, _, crowd, _ in some):
        raise OptionError(f"{where} has boxes but no masks: give its annotations a segmentation, as COCO's have")
    images = []
    for number, entry in sorted(entries.items()):
        path = str(folder / entry["file_name"])
        try:
            size = Path(path).stat().st_size
        except (OSError, ValueError) as e:  # ValueError: of a name with a zero byte
            reason = getattr(e, "strerror", None) or str(e)
            raise OptionError(f"{where} names the image {path}, which cannot be read: {reason}: put it there") from None
        digest.update(os.fsencode(f"{entry['file_name']}\0{size}\0"))
        some = instances[number]
        crowd = np.array([region for _, _, region, _ in some], bool)
        if training and crowd.all():
            continue
        boxes = np.array([box for box, _, _, _ in some], np.float32).reshape(-1, 4)
        labels = np.array([label for _, label, _, _ in some], np.int64)
        runs = tuple(run for _, _, _, run in some)
        images.append(_Image(number, path, entry["width"], entry["height"], boxes, labels, crowd, runs))
    if all(image.crowd.all() for image in images):
        raise OptionError(f"{where}: no image has an instance with a box and a mask: annotate some")
    categories = tuple(label_of)
    return CocoScenes(
        tuple(names[number] for number in categories), categories, tuple(images), digest.hexdigest(), source
    )


def _content(file: Path, where: str) -> tuple[dict[str, Any], Any]:
    """An annotation file in which all entries have what is read of them, and the hash of its bytes."""
    try:
        text = file.read_bytes()
        content = json.loads(text)
    except OSError as e:
        raise OptionError(f"{where} cannot be read: {e.strerror}: change its permissions") from None
    except ValueError as e:  # also of bytes that are no text
        raise OptionError(f"{where} is damaged, it is not JSON: {e}: fetch or write it again") from None
    for kind, keys in _ENTRIES.items():
        entries = content.get(kind) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise OptionError(f"{where} has no list of {kind}: give a file of COCO's instances")
        for k, entry in enumerate(entries):
            for key, type_ in keys.items():
                if not isinstance(entry, dict) or type(entry.get(key)) is not type_:
                    raise OptionError(
                        f"{where}: entry {k} of its {kind} has no {key} that is {_KINDS[type_]}: add it, or remove the "
                        "entry"
                    )
            if kind == "images" and min(entry["width"], entry["height"]) < 1:
                raise OptionError(f"{where}: the image {entry['file_name']} has no width or no height: correct it")
    return content, hashlib.blake2b(text, digest_size=16)


_Instance = tuple[np.ndarray, int, bool, bytes]  # box, label, whether it is a crowd, runs


def _instances(
    annotations: list[dict[str, Any]], entries: dict[int, dict[str, Any]], label_of: dict[int, int], where: str
) -> tuple[dict[int, list[_Instance]], int]:
    """Instances by the id of their image, and the number of those that have a box, with or without a mask."""
    instances: dict[int, list[_Instance]] = {number: [] for number in entries}
    mask, boxed = _masks(where), 0
    for annotation in annotations:
        this = f"{where}: annotation {annotation['id']}"
        entry = entries.get(annotation["image_id"])
        if entry is None:
            raise OptionError(f"{this} is of image {annotation['image_id']}, which is not in it: add or remove it")
        label = label_of.get(annotation["category_id"])
        if label is None:
            raise OptionError(
                f"{this} is of category {annotation['category_id']}, which is not in it: add or remove it"
            )
        try:
            box = _box(annotation["bbox"], entry["width"], entry["height"])
            if not (box[2:] > box[:2]).all():
                continue
            crowd = bool(annotation.get("iscrowd"))
            boxed += not crowd
            runs = _runs(annotation.get("segmentation"), entry["height"], entry["width"], mask)
        except (ValueError, TypeError, RuntimeError, OverflowError) as e:
            reason = str(e).split("\n")[0].rstrip(".")
            raise OptionError(f"{this} cannot be read: {reason}: correct or remove it") from None
        if runs:
            instances[entry["id"]].append((box, label, crowd, runs))
    return instances, boxed


def _box(bbox: list[Any], width: int, height: int) -> np.ndarray:
    """(4,) of float32: left, top, right, bottom inside the image."""
    numbers = np.asarray(bbox, np.float64)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError("its bbox is not four finite numbers")
    left, top, wide, high = numbers.tolist()
    corners = [min(max(left, 0), width), min(max(top, 0), height)]
    corners += [min(max(left + wide, 0), width), min(max(top + high, 0), height)]
    return np.array(corners, np.float32)  # where rounding leaves no width, it has none


def _runs(segmentation: Any, height: int, width: int, mask: Any) -> bytes:
    """The compressed run lengths of a mask; nothing where it has no pixel."""
    if not segmentation:
        return b""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in map(_polygon, segmentation) if len(polygon) >= 2 * _CORNERS]
        if not polygons:
            return b""
        runs = mask.merge(mask.frPyObjects(polygons, height, width))
    elif not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("its segmentation is neither polygons nor run lengths")
    elif segmentation["size"] != [height, width]:
        raise ValueError(f"its mask is for a size of {segmentation['size']}, the image has {[height, width]}")
    elif isinstance(segmentation["counts"], list):
        counts = segmentation["counts"]
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
            raise ValueError(f"its runs are not whole numbers that add up to the {height * width} pixels of the image")
        runs = mask.frPyObjects(segmentation, height, width)
    else:
        runs = {"size": [height, width], "counts": segmentation["counts"]}
        mask.decode(runs)  # raises where they do not fill the image
        runs = mask.merge([runs])  # of one type, whatever was given
    return bytes(runs["counts"]) if mask.area(runs) else b""


def _polygon(points: Any) -> list[float]:
    coordinates = np.asarray(points, np.float64)
    if coordinates.ndim != 1 or len(coordinates) % 2 or not (np.abs(coordinates) <= _FAR).all():
        raise ValueError("a polygon of it is not a list of x, y, x, y, ... in pixels")
    polygon: list[float] = coordinates.tolist()
    return polygon


def _pixels(image: _Image, source: str, *, head: bool = False) -> np.ndarray:
    """(H, W, 3) of uint8; nothing of it where only the head of the file is looked at."""
    from PIL import Image

    try:
        with Image.open(image.file) as opened:
            if opened.mode[0] in "IF":  # Pillow would clip them to white
                raise ValueError("it has more than 8 bits a pixel")
            if opened.size != (image.width, image.height):
                raise ValueError(
                    f"it has {opened.width}×{opened.height} pixels, by its annotations {image.width}×{image.height}"
                )
            return np.zeros((0, 0, 3), np.uint8) if head else np.asarray(opened.convert("RGB"))
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format
        reason = str(e).split("\n")[0] or type(e).__name__
        raise OptionError(f"{source}: the image {image.file} cannot be read: {reason}: replace it") from None
