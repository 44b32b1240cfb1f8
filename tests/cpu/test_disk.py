"""Images read from disk: what a batch is, however it is read, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.data.disk import Disk, DiskBatches, DiskPart, _crop, imagenet

pytest.importorskip("torchvision")
from torchvision import transforms

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork")  # of Python 3.12 on; `disk` says why it is safe

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SIDE = 48  # no crop is twice as large, so that each JPEG is decoded in full
BICUBIC = transforms.InterpolationMode.BICUBIC


def save(file: Path, rng: np.random.Generator, width: int, height: int, mode: str = "RGB") -> None:
    """Smooth noise, as an image that a JPEG keeps."""
    coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file)


def write_tree(directory: Path, validation: str = "val", count: int = 12) -> Path:
    """JPEGs and PNGs of 40 to 90 pixels, some grey, some with a palette, one in a folder of its own."""
    rng = np.random.default_rng(0)
    for part, images in (("train", count), (validation, 3)):
        for name in CLASSES:
            folder = directory / part / name
            (folder / "more").mkdir(parents=True)
            for i in range(images):
                ending, mode = [("JPEG", "RGB"), ("png", "P"), ("jpg", "L"), ("png", "RGBA")][i % 4]
                place = folder / "more" if i == 5 else folder
                save(place / f"{i:02}.{ending}", rng, *rng.integers(40, 91, size=2), mode)
    return directory


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def disk(tree) -> Disk:
    return imagenet(tree)


def own(tree: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return shutil.copytree(tree, tmp_path / "images")


def standardised(image: Image.Image) -> torch.Tensor:
    steps = [transforms.ToTensor(), transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
    return transforms.Compose(steps)(image)


def batches(part: DiskPart, steps: int, **more) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = DiskBatches(part, **{"batch": 8, "side": SIDE, "seed": 3, "device": CPU, **more})
    given = [made.next() for _ in range(steps)]
    made.close()
    return given


def check_equal(first, second) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def refused(directory: Path, *words: str) -> None:
    """It is refused, by one sentence with all of the words."""
    with pytest.raises(OptionError) as e:
        imagenet(directory)
    assert "\n" not in str(e.value) and ". " not in str(e.value), str(e.value)
    assert all(word in str(e.value) for word in (f"imagenet:{directory}: ", *words)), str(e.value)


# files


def test_files_are_found_by_class_and_name(tree, disk):
    assert disk.classes == 3 and disk.names == CLASSES
    assert len(disk.train) == 36 and len(disk.validation) == 9
    assert disk.train.labels.dtype == np.int64 and disk.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert {Path(file) for file in disk.train.files} == {f for f in (tree / "train").rglob("*") if f.is_file()}
    for file, label in zip(disk.train.files, disk.train.labels, strict=True):
        assert Path(file).relative_to(tree / "train").parts[0] == CLASSES[label]


def test_the_digest_is_of_names_and_sizes(tree, disk, tmp_path):
    copy = own(tree, tmp_path)
    assert imagenet(copy).digest == disk.digest and len(disk.digest) == 32
    (copy / "val").rename(copy / "valid")
    assert imagenet(copy).digest == disk.digest
    file = copy / "train" / "bee" / "03.png"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    longer = imagenet(copy).digest
    file.write_bytes(whole[::-1])
    assert imagenet(copy).digest == disk.digest != longer
    file.rename(file.with_name("93.png"))
    assert imagenet(copy).digest not in (disk.digest, longer)


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_the_validation_folder_may_be_called_otherwise(tmp_path, name):
    assert len(imagenet(write_tree(tmp_path, name, count=1)).validation) == 9


def test_folders_that_are_no_data_set(tree, tmp_path):
    layout = "DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE"
    refused(tmp_path / "none", "no such directory", layout)
    refused(tmp_path, "no folder train", layout)
    (tmp_path / "train").mkdir()
    refused(tmp_path, "no folder val, validation, valid or test", layout)
    (tmp_path / "val").mkdir()
    refused(tmp_path, "no class folders in", str(tmp_path / "train"), layout)
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "val" / "0.jpg").touch()  # as the validation images of ImageNet are packed
    refused(tmp_path, "no class folders in", str(tmp_path / "val"), layout)
    (tmp_path / "val" / "ant").mkdir()
    refused(tmp_path, "one class folder only")
    (tmp_path / "val" / "bee").mkdir()
    refused(tmp_path, "bee is in val but not in train", "same class folders")
    (tmp_path / "train" / "aardvark").mkdir()
    refused(tmp_path, "aardvark is in train but not in val")


def test_classes_without_images_and_files_that_are_not_there(tree, tmp_path):
    copy = own(tree, tmp_path)
    for file in (copy / "val" / "bee").iterdir():
        file.rename(file.with_suffix(".txt"))
    refused(copy, "no images in", str(copy / "val" / "bee"))
    nowhere = copy / "val" / "bee" / "9.jpg"
    nowhere.symlink_to(copy / "none")
    refused(copy, str(nowhere), "cannot be read")


# training


def test_a_batch_is_what_pillow_and_torchvision_make(disk):
    n, seed, side = len(disk.train), 3, SIDE
    given = batches(disk.train, 9, seed=seed)  # two epochs of four, four images left out of each, and one more
    mirrored = 0
    for step, (images, labels) in enumerate(given):
        epoch, number = divmod(step, 4)
        chosen = stream(seed, "epoch", epoch).permutation(n)[8 * number : 8 * number + 8]
        assert images.shape == (8, 3, side, side) and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert labels.tolist() == disk.train.labels[chosen].tolist()
        for image, i in zip(images, chosen, strict=True):
            rng = stream(seed, "crop", epoch * n + int(i))
            source = Image.open(disk.train.files[i])
            left, top, right, bottom = _crop(rng, *source.size)
            expected = transforms.functional.resized_crop(
                source.convert("RGB"), top, left, bottom - top, right - left, [side, side], BICUBIC
            )
            if rng.random() < 0.5:
                expected, mirrored = transforms.functional.hflip(expected), mirrored + 1
            torch.testing.assert_close(image, standardised(expected))
    assert 20 < mirrored < 52  # of 72
    whole = batches(disk.train, 1, seed=seed, flip=False)[0][0]
    same = [torch.equal(a, b) for a, b in zip(whole, given[0][0], strict=True)]
    assert 0 < sum(same) < 8
    assert all(s or torch.equal(a.flip(2), b) for s, a, b in zip(same, whole, given[0][0], strict=True))


def test_crops_are_those_of_torchvision(monkeypatch):
    """Its own function, with draws from our generator; it rounds to float32 between them."""
    rng = np.random.default_rng()
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda t, low, high: t.fill_(rng.uniform(float(low), float(high))))
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor(rng.integers(low, high, size)))
    boxes = []
    for key in range(2000):
        width, height = [(500, 375), (60, 90), (600, 30), (30, 500), (1, 1)][key % 5]
        rng = stream(0, "crop", key)
        top, left, h, w = transforms.RandomResizedCrop.get_params(
            torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]
        )
        expected = left, top, left + w, top + h
        box = _crop(stream(0, "crop", key), width, height)
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
        assert max(abs(a - b) for a, b in zip(box, expected, strict=True)) <= 1
        boxes.append(box == expected)
    assert sum(boxes) >= 1990


def test_a_large_jpeg_is_decoded_small(tmp_path):
    file = tmp_path / "0.jpg"
    save(file, np.random.default_rng(0), 1600, 1200)
    part = DiskPart((str(file),), np.zeros(1, np.int64))
    for epoch, (images, _) in enumerate(batches(part, 8, batch=1, side=32, flip=False)):
        box = _crop(stream(3, "crop", epoch), 1600, 1200)
        full = Image.open(file).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        difference = (images[0] - standardised(full)).abs().mean()
        assert 1e-4 < difference < 0.03, box  # of the deviation: up to two of 255 grey levels, but not none


@pytest.mark.parametrize("more", [{"workers": 2}, {"workers": 1, "rank": 1, "world": 2}])
def test_workers_change_nothing(disk, more):
    check_equal(batches(disk.train, 6, **{**more, "workers": 0}), batches(disk.train, 6, **more))


def test_processes_share_a_batch(disk):
    whole = batches(disk.train, 6)
    shares = [batches(disk.train, 6, rank=rank, world=2) for rank in range(2)]
    for (images, labels), first, second in zip(whole, *shares, strict=True):
        assert torch.equal(images, torch.stack([first[0], second[0]], 1).flatten(0, 1))
        assert torch.equal(labels, torch.stack([first[1], second[1]], 1).flatten())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stopped", [2, 4, 5])  # in the middle of an epoch, at its end, in the next one
def test_an_interrupted_stream_goes_on(disk, workers, stopped):
    whole = batches(disk.train, 7)
    first = DiskBatches(disk.train, 8, SIDE, 3, CPU, workers)
    given = [first.next() for _ in range(stopped)]
    state = json.loads(json.dumps(first.state_dict()))
    first.next()  # what is given or read ahead after the state was taken is not in it
    second = DiskBatches(disk.train, 8, SIDE, 3, CPU, workers)
    second.load_state_dict(state)
    check_equal(whole, given + [second.next() for _ in range(7 - stopped)])
    first.load_state_dict(state)
    check_equal(whole[stopped : stopped + 1], [first.next()])
    first.close()
    second.close()
    check_equal(whole[stopped + 1 : stopped + 2], [first.next()])  # it starts again
    first.close()


def test_other_random_numbers_are_left_alone(disk):
    before = torch.get_rng_state()
    batches(disk.train, 1, workers=1)
    list(disk.validation.batches(9, SIDE, CPU, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_end_when_closed_and_outlive_ctrl_c(disk):
    before = set(multiprocessing.active_children())
    made = DiskBatches(disk.train, 8, SIDE, 3, CPU, workers=2)
    assert set(multiprocessing.active_children()) == before
    given = [made.next()]  # of the first worker; the second may be starting still
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for _ in range(6):
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        given.append(made.next())
    check_equal(given, batches(disk.train, 7))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    made.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_while_training(tree, tmp_path, workers):
    copy = own(tree, tmp_path)
    part = imagenet(copy).train
    whole = batches(part, 4)
    bad = Path(part.files[stream(3, "epoch", 0).permutation(36)[20]])  # in the third batch
    content = bad.read_bytes()
    made = DiskBatches(part, 8, SIDE, 3, CPU, workers)
    given = [made.next(), made.next()]
    made.close()  # the workers may have read it already
    for damaged in (content[: len(content) // 2], b"", b"no image"):
        bad.write_bytes(damaged)
        with pytest.raises(OptionError, match=r"cannot be read: .*: replace or remove it") as e:
            made.next()
        assert str(bad) in str(e.value) and "\n" not in str(e.value)
        assert made.state_dict() == {"step": 2}
    bad.write_bytes(content)
    check_equal(whole, [*given, made.next(), made.next()])
    made.close()


def test_deep_images_are_refused(tmp_path):
    file = tmp_path / "0.png"
    Image.fromarray(np.full((60, 60), 1000, np.uint16)).save(file)
    part = DiskPart((str(file),), np.zeros(1, np.int64))
    with pytest.raises(OptionError, match=r"0\.png cannot be read: it has more than 8 bits a pixel"):
        next(part.batches(1, SIDE, CPU))


def test_batches_that_cannot_be(disk):
    with pytest.raises(OptionError, match="a batch of 37 is larger than the 36 training images: lower it"):
        DiskBatches(disk.train, 37, SIDE, 0, CPU)
    with pytest.raises(OptionError, match="a batch of 9 cannot be shared by 2 processes: give a multiple of 2"):
        DiskBatches(disk.train, 9, SIDE, 0, CPU, world=2)
    assert len(batches(disk.train, 3, batch=36)) == 3


# evaluation


@pytest.mark.parametrize("side", [24, SIDE, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_middle_of_each_image(disk, side, workers):
    given = list(disk.validation.batches(4, side, CPU, workers))
    assert [len(images) for images, _ in given] == [len(labels) for _, labels in given] == [4, 4, 1]
    assert torch.cat([labels for _, labels in given]).tolist() == disk.validation.labels.tolist()
    cut = transforms.Compose([transforms.Resize(side + 32, BICUBIC), transforms.CenterCrop(side)])
    expected = [standardised(cut(Image.open(file).convert("RGB"))) for file in disk.validation.files]
    torch.testing.assert_close(torch.cat([images for images, _ in given]), torch.stack(expected))


def test_evaluation_names_an_unreadable_image(tree, tmp_path):
    copy = own(tree, tmp_path)
    part = imagenet(copy).validation
    bad = copy / "val" / "bee" / "00.JPEG"
    bad.write_bytes(bad.read_bytes()[:-200])
    given = part.batches(3, SIDE, CPU, workers=1)
    assert next(given)[1].tolist() == [0, 0, 0]
    with pytest.raises(OptionError, match=r"bee/00\.JPEG cannot be read"):
        next(given)
