import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normforge.cache import cache_directory
from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.config import DataConfig
from normforge.train.data import Data, load_data
from normforge.train.data.arrays import Arrays, split_all, split_official
from normforge.train.data.augment import augment
from normforge.train.data.fractals import fractals
from normforge.train.data.shift import shifted

pytest.importorskip("torchvision")

FRACTALS = "1330d320f95a760f5efaf36dc8f37f9e"
SMALL = {"size": 8, "classes": 5, "train": 100, "held_out": 50}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMFORGE_CACHE", str(tmp_path / "cache"))
    load_data.cache_clear()


def options(source: str, **more) -> DataConfig:
    return DataConfig.model_validate({"source": source, **more})


def parts(data: Data):
    return data.train, data.validation, data.holdout, data.test


def check_whole(data: Data, counts: list[int], shape: tuple[int, ...]) -> None:
    assert [len(p.images) for p in parts(data)] == [len(p.labels) for p in parts(data)] == counts
    for part in parts(data):
        assert part.images.shape[1:] == shape and part.images.dtype == torch.float32
        assert part.labels.dtype == torch.int64 and 0 <= part.labels.min() <= part.labels.max() < data.classes
    mean, deviation = data.train.images.mean((0, 2, 3)), data.train.images.std((0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=1e-4, atol=0)
    assert len(data.digest) == 32 and int(data.digest, 16) >= 0


def refused(config: DataConfig, *words: str) -> str:
    """It is refused, by one sentence with all of the words."""
    with pytest.raises(OptionError) as e:
        load_data(config)
    assert "\n" not in str(e.value) and all(word in str(e.value) for word in words), str(e.value)
    return str(e.value)


# digits


def test_digits_are_split_without_overlap():
    data = load_data(options("digits"))
    check_whole(data, [900, 297, 300, 300], (1, 8, 8))
    together = torch.cat([p.images for p in parts(data)])
    assert len(together.unique(dim=0)) >= 1795  # the data set itself repeats an image at most
    other = load_data(options("digits", seed=1))
    assert data.classes == other.classes == 10 and data.digest != other.digest
    assert not torch.equal(data.train.labels, other.train.labels)


def test_data_are_loaded_once():
    assert load_data(options("digits")) is load_data(options("digits"))


# fractals


def test_fractals_are_the_same_on_every_machine():
    data = load_data(options("fractals"))
    check_whole(data, [6000, 1333, 1333, 1334], (1, 12, 12))
    assert data.digest == FRACTALS  # pinned: change VERSION of the generator with it


def test_fractals_are_balanced_and_named_by_their_index():
    data = load_data(options("fractals", fractals=SMALL))
    check_whole(data, [100, 16, 16, 18], (1, 8, 8))
    assert data.train.labels.bincount().tolist() == [20] * 5
    # More images, in several blocks, and further classes leave an image what it is.
    base = fractals(options("fractals", fractals=SMALL).fractals, 0).images
    more = fractals(options("fractals", fractals={**SMALL, "train": 1500}).fractals, 0).images
    assert np.array_equal(base, more[:150])
    classes = fractals(options("fractals", fractals={**SMALL, "classes": 10}).fractals, 0).images
    assert np.array_equal(base[:5], classes[:5]) and not np.array_equal(base[5:10], classes[5:10])
    assert not np.array_equal(base, fractals(options("fractals", fractals=SMALL).fractals, 1).images)


def test_fractals_are_kept_on_disk_and_mended():
    config = options("fractals", fractals=SMALL)
    digest = load_data(config).digest
    (kept,) = cache_directory().rglob("*.npy")
    before = kept.read_bytes()
    for damaged in (before[: len(before) // 2], before[:-1] + bytes([before[-1] ^ 1]), b""):
        kept.write_bytes(damaged)
        load_data.cache_clear()
        assert load_data(config).digest == digest
        assert kept.read_bytes() == before
    written = kept.stat().st_mtime_ns
    load_data.cache_clear()
    load_data(config)
    assert kept.stat().st_mtime_ns == written


def nearest_mean(arrays: Arrays) -> float:
    """Accuracy on the validation images of the nearest class mean."""
    flat = arrays.images.reshape(len(arrays.images), -1).astype(np.float64)
    train, validation = arrays.split[:2]
    means = np.stack([flat[train][arrays.labels[train] == c].mean(0) for c in range(arrays.classes)])
    distance = ((flat[validation][:, None] - means) ** 2).sum(2)
    return float((distance.argmin(1) == arrays.labels[validation]).mean())


def test_difficulty_makes_fractals_harder():
    accuracy = []
    for difficulty in (0.0, 0.3, 1.0, 1e6):
        section = options("fractals", fractals={"train": 500, "held_out": 600, "difficulty": difficulty}).fractals
        arrays = fractals(section, 0)
        assert arrays.images.dtype == np.uint8 and len(np.unique(arrays.images)) > 1
        accuracy.append(nearest_mean(arrays))
    assert accuracy[0] > 0.95
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[3] < 0.3


def test_fractals_of_any_size_fill_the_image():
    for size in (4, 33):
        images = fractals(options("fractals", fractals={**SMALL, "size": size, "difficulty": 0}).fractals, 0).images
        touched = images > images.min()
        assert images.shape == (150, 1, size, size)
        # The attractor reaches two opposite borders, and is neither a line nor the whole square.
        rows, columns = touched.any(3)[:, 0], touched.any(2)[:, 0]
        assert ((rows[:, 0] & rows[:, -1]) | (columns[:, 0] & columns[:, -1])).all()
        assert (touched.mean((1, 2, 3)) > 0.1).all() and touched.mean() < 0.95


def test_too_few_fractals_are_refused():
    refused(options("fractals", fractals={"classes": 20, "train": 19}), "fractals.train = 19", "20")


# MNIST and Fashion-MNIST: idx files, as torchvision reads them


def write_idx(directory: Path, name: str, train: int = 60, tests: int = 12, side: int = 28) -> Path:
    raw = directory / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", tests)):
        images = rng.integers(256, size=(count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return raw


@pytest.mark.parametrize(("kind", "name"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_idx_files_are_read(tmp_path, kind, name):
    raw = write_idx(tmp_path, name)
    config = options(f"{kind}:{tmp_path}")
    data = load_data(config)
    check_whole(data, [48, 6, 6, 12], (1, 28, 28))
    assert data.test.labels.tolist() == [*range(10), 0, 1]
    official = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes(), np.uint8)[16:].reshape(12, 1, 28, 28)
    stored = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8)[16:].reshape(60, 1, 28, 28)
    order = stream(0, "split", 0).permutation(60)
    fitted = stored[order[12:]].astype(np.float64)
    expected = (official - fitted.mean()) / fitted.std()
    torch.testing.assert_close(data.test.images, torch.from_numpy(expected.astype(np.float32)))
    assert data.digest != load_data(options(f"{kind}:{tmp_path}", seed=1)).digest


def test_idx_files_that_are_missing_or_damaged(tmp_path):
    config = options(f"mnist:{tmp_path}")
    refused(config, "train-images-idx3-ubyte", "allow --download")
    raw = write_idx(tmp_path, "MNIST")
    images, labels = raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    whole = images.read_bytes()
    for damaged in (b"", whole[:3], whole[:1000], b"\xff" * 64):
        images.write_bytes(damaged)
        refused(config, "mnist:", "damaged")
    images.write_bytes(whole)
    whole = labels.read_bytes()
    labels.write_bytes(struct.pack(">II", 2049, 3) + bytes(3))
    refused(config, "do not fit together")
    labels.write_bytes(whole[:-1] + bytes([10]))
    refused(config, "not in 0 to 9")
    labels.unlink()
    refused(config, str(labels))


# CIFAR: torchvision knows the md5 of every file, so that only the real ones can be read


@pytest.mark.parametrize(
    ("kind", "base", "first"),
    [("cifar10", "cifar-10-batches-py", "data_batch_1"), ("cifar100", "cifar-100-python", "train")],
)
def test_cifar_that_is_missing_or_damaged(tmp_path, kind, base, first):
    config = options(f"{kind}:{tmp_path}")
    refused(config, str(tmp_path / base / first), "allow --download")
    (tmp_path / base).mkdir()
    (tmp_path / base / first).write_bytes(b"\x80\x04}.")  # a pickle of {}, never opened
    refused(config, str(tmp_path / base / first), "damaged", "md5")


# folders of images


def write_folder(directory: Path, mode: str = "L", side: int = 10, count: int = 12) -> Path:
    rng = np.random.default_rng(1)
    for label, name in enumerate(("ant", "bee")):
        (directory / name).mkdir(parents=True)
        for i in range(count):
            shape = (side, side) if mode == "L" else (side, side, 3)
            pixels = rng.integers(100, size=shape, dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(directory / name / f"{i:02}.png")
    return directory


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_is_read(tmp_path, mode, channels):
    config = options(f"imagefolder:{write_folder(tmp_path / 'images', mode)}")
    data = load_data(config)
    check_whole(data, [18, 2, 2, 2], (channels, 10, 10))
    for part in parts(data):  # bees are the brighter ones
        assert torch.equal(part.images.mean((1, 2, 3)) > 0, part.labels == 1)
    assert data.classes == 2


def test_a_folder_of_many_sizes_needs_a_size(tmp_path):
    source = f"imagefolder:{write_folder(tmp_path / 'images')}"
    Image.new("RGB", (14, 14), (250, 250, 0)).save(tmp_path / "images" / "bee" / "zz.jpg")
    refused(options(source), "zz.jpg", "differ in size", "data.size")
    check_whole(load_data(options(source, size=6)), [19, 2, 2, 2], (3, 6, 6))
    Image.new("P", (30, 20)).save(tmp_path / "images" / "ant" / "00.png")
    refused(options(source), "00.png", "not square", "data.size")
    check_whole(load_data(options(source, size=12)), [19, 2, 2, 2], (3, 12, 12))


def test_an_unreadable_image_is_named(tmp_path):
    source = f"imagefolder:{write_folder(tmp_path / 'images')}"
    bad = tmp_path / "images" / "bee" / "07.png"
    whole = bad.read_bytes()
    for damaged in (b"", b"no image", whole[:60], whole[: len(whole) // 2]):
        bad.write_bytes(damaged)
        refused(options(source), str(bad), "cannot be read")
    Image.fromarray(np.zeros((10, 10), np.uint16)).save(bad)
    refused(options(source), str(bad), "8 bits")


def test_folders_that_are_no_data_set(tmp_path):
    refused(options(f"imagefolder:{tmp_path / 'none'}"), "no such directory")
    refused(options(f"imagefolder:{tmp_path}"), "subfolder")
    write_folder(tmp_path / "few", count=4)
    refused(options(f"imagefolder:{tmp_path / 'few'}"), "8 images are too few")
    (tmp_path / "few" / "cat").mkdir()
    refused(options(f"imagefolder:{tmp_path / 'few'}"), "cat")
    (tmp_path / "one" / "ant").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "one" / "ant" / "0.png")
    refused(options(f"imagefolder:{tmp_path / 'one'}"), "one class folder only")


# arrays in a file

RNG = np.random.default_rng(2)
X, Y = RNG.integers(256, size=(40, 9, 9), dtype=np.uint8), np.arange(40) % 4


def write(file: Path, **arrays) -> DataConfig:
    np.savez(file, **arrays)
    return options(f"npz:{file}")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", "float64", ">f8", "uint64"])
def test_an_archive_is_read(tmp_path, dtype):
    config = write(tmp_path / "a.npz", x=X.astype(dtype), y=Y)
    data = load_data(config)
    check_whole(data, [28, 4, 4, 4], (1, 9, 9))
    bytes_alone = load_data(write(tmp_path / "b.npz", x=X, y=Y))
    torch.testing.assert_close(data.train.images, bytes_alone.train.images)
    assert torch.equal(data.train.labels, bytes_alone.train.labels)


def test_channels_may_be_last(tmp_path):
    x = RNG.random((40, 3, 8, 8))
    first = load_data(write(tmp_path / "a.npz", x=x, y=Y))
    last = load_data(write(tmp_path / "b.npz", x=x.transpose(0, 2, 3, 1), y=Y))
    check_whole(first, [28, 4, 4, 4], (3, 8, 8))
    assert first.digest == last.digest and torch.equal(first.test.images, last.test.images)


def test_labels_are_numbered_in_order(tmp_path):
    names = np.array([-7, 3, 90, 2**40])
    data = load_data(write(tmp_path / "a.npz", x=X, y=names[Y]))
    plain = load_data(write(tmp_path / "b.npz", x=X, y=Y))
    assert data.classes == 4 and data.digest == plain.digest


def test_test_images_of_an_archive_are_kept_apart(tmp_path):
    data = load_data(write(tmp_path / "a.npz", x=X, y=Y * 5, x_test=X[:7], y_test=Y[:7] * 5))
    check_whole(data, [32, 4, 4, 7], (1, 9, 9))
    assert data.test.labels.tolist() == Y[:7].tolist()


def test_a_channel_without_variation_is_zero(tmp_path):
    x = np.stack([X, np.full_like(X, 9)], 1)
    data = load_data(write(tmp_path / "a.npz", x=x, y=Y))
    assert not data.test.images[:, 1].any() and data.test.images[:, 0].any()


FIFTH = np.arange(40)[:, None, None] == 5


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ["'y'", "only x"]),
        ({"X": X, "y": Y}, ["'x'", "only X, y"]),
        ({"x": X, "y": Y, "x_test": X}, ["'y_test'"]),
        ({"x": X.astype(complex), "y": Y}, ["complex128", "real"]),
        ({"x": X[0], "y": Y[:9]}, ["shape (9, 9)", "(N, H, W)"]),
        ({"x": X[:, :8], "y": Y}, ["8×9", "square"]),
        ({"x": np.repeat(X[..., None], 5, 3)[:, :8], "y": Y}, ["square"]),
        ({"x": X[:0], "y": Y[:0]}, ["shape (0, 1, 9, 9)"]),
        ({"x": np.where(FIFTH, np.nan, X), "y": Y}, ["not finite"]),
        ({"x": np.where(FIFTH, -np.inf, X), "y": Y}, ["not finite"]),
        ({"x": X * 1e20, "y": Y}, ["1e+15"]),
        ({"x": X, "y": Y.astype(np.float32)}, ["float32", "integer labels"]),
        ({"x": X, "y": Y.astype(str)}, ["integer labels"]),
        ({"x": X, "y": Y > 1}, ["bool", "integer labels"]),
        ({"x": X, "y": Y[:-1]}, ["(39,)", "40 images"]),
        ({"x": X, "y": Y[:, None]}, ["(40, 1)"]),
        ({"x": X, "y": Y * 0}, ["two different labels"]),
        ({"x": X[:9], "y": Y[:9]}, ["9 images are too few"]),
        ({"x": X, "y": Y, "x_test": X[:, :8, :8], "y_test": Y}, ["(1, 9, 9)", "(1, 8, 8)"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, ["label 4", "y has not"]),
        ({"x": X.astype(object), "y": Y}, ["Python objects"]),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, words):
    refused(write(tmp_path / "a.npz", **arrays), "npz:", "a.npz", *words)


def test_files_that_are_no_archive(tmp_path):
    config = write(tmp_path / "a.npz", x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:9], whole[:middle], whole[:middle] + b"??" + whole[middle + 2 :], b"x = 1"):
        (tmp_path / "a.npz").write_bytes(damaged)
        refused(config, "a.npz", "cannot be read")
    refused(options(f"npz:{tmp_path / 'none.npz'}"), "no such file")
    np.save(tmp_path / "one.npy", X)
    refused(options(f"npz:{tmp_path / 'one.npy'}"), "numpy.savez")


# the configuration


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"source": "fractal"}, ["'fractal'", "did you mean 'fractals'?"]),
        ({"source": "CIFAR10:data"}, ["did you mean 'cifar10'?"]),
        ({"source": ""}, ["choose one of digits"]),
        ({"source": "cifar10"}, ["cifar10:DIR"]),
        ({"source": "npz:"}, ["npz:FILE"]),
        ({"source": "digits:data"}, ["write digits alone"]),
        ({"source": "digits", "size": 8}, ["data.size = 8", "imagefolder"]),
        ({"source": "digits", "pad": 1}, ["data.pad = 1", "data.crop"]),
        ({"source": "digits", "crop": 9}, ["data.crop = 9", "side is 8"]),
        ({"source": "fractals", "crop": 15, "pad": 1, "fractals": SMALL}, ["data.crop = 15", "10 when padded"]),
    ],
)
def test_settings_that_cannot_be(config, words):
    refused(DataConfig.model_validate(config), *words)


@pytest.mark.parametrize("count", [10, 11, 99, 60000, 200000])
def test_splits_are_disjoint_and_whole(count):
    for split, total in ((split_all(count, 3, "here"), count), (split_official(count, 7, 3, "here"), count + 7)):
        assert np.array_equal(np.sort(np.concatenate(split)), np.arange(total))
        assert all(len(part) >= 1 for part in split)
        assert len(split[1]) == len(split[2]) == min(count // 10, 5000)


# augmentation


def coordinates(count: int, channels: int, side: int) -> torch.Tensor:
    """Pixels that tell image, channel, row and column, none of them 0."""
    grid = torch.arange(1, count * channels * side * side + 1, dtype=torch.float32)
    return grid.reshape(count, channels, side, side)


def test_nothing_asked_is_nothing_done():
    images, rng = coordinates(3, 2, 5), stream(0, "augment", 0)
    assert augment(images, rng, options("digits")) is images
    assert rng.random() == stream(0, "augment", 0).random()


@pytest.mark.parametrize(
    ("crop", "pad", "flip"), [(4, 0, False), (5, 2, True), (None, 0, True), (9, 2, False), (1, 0, True)]
)
def test_crops_are_windows_of_their_image(crop, pad, flip):
    images, config = coordinates(600, 2, 5), options("digits", crop=crop, pad=pad, flip=flip)
    changed = augment(images, stream(0, "augment", 0), config)
    side = crop or 5
    assert changed.shape == (600, 2, side, side) and changed.dtype == images.dtype
    windows = torch.nn.functional.pad(images, [pad] * 4).unfold(2, side, 1).unfold(3, side, 1)
    seen = set()
    for i, image in enumerate(changed):
        found = [
            (top, left, mirrored)
            for top in range(windows.shape[2])
            for left in range(windows.shape[3])
            for mirrored in (False, True)
            if torch.equal(windows[i, :, top, left].flip(2) if mirrored else windows[i, :, top, left], image)
        ]
        assert len(found) >= 1
        seen.update(found[:1])
    places = (5 + 2 * pad - side + 1) ** 2
    assert len(seen) == places * (2 if flip and side > 1 else 1)  # all of them, in 600 draws
    assert torch.equal(changed, augment(images, stream(0, "augment", 0), config))


def test_shifted_images():
    part = load_data(options("fractals", fractals=SMALL)).validation
    noisy, dull, small = shifted(part)
    assert all(torch.equal(p.labels, part.labels) and p.images.shape == part.images.shape for p in (noisy, dull, small))
    difference = noisy.images - part.images
    assert difference.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(next(shifted(part)).images, noisy.images)
    assert torch.equal(dull.images, part.images / 2)
    side = part.images.shape[-1]
    edge = (side - int(side * 0.75)) // 2
    inside = small.images[..., edge : edge + int(side * 0.75), edge : edge + int(side * 0.75)]
    assert inside.mean().item() == pytest.approx(part.images.mean().item(), abs=0.05)
    assert torch.equal(small.images[..., 0, :], small.images[..., edge, :])  # its edge goes on
