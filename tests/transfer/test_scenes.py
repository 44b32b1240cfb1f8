"""Drawn scenes, and batches of scenes."""

import hashlib

import numpy as np
import pytest
import torch

from normforge.train.transfer.detection.batches import SceneBatches, mirrored
from normforge.train.transfer.detection.drawn import SHAPES, draw, drawn
from normforge.train.transfer.detection.settings import Drawn

FEW = Drawn(size=64, train=12, validation=2, test=2)
# Of three scenes of 64 pixels: the same on every machine.
DIGESTS = {"shapes": "e977f08b123754c5", "fractals": "72ac69c16fe66eec"}


@pytest.fixture(scope="module", params=["shapes", "fractals"])
def parts(request):
    return drawn(request.param, FEW, 1)


@pytest.mark.parametrize("source", DIGESTS)
def test_the_same_on_every_machine(source):
    arrays = draw(source, Drawn(size=64, train=1, validation=1, test=1), 7)
    h = hashlib.blake2b(digest_size=8)
    for array in arrays:
        h.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    assert h.hexdigest() == DIGESTS[source]


def test_a_scene_needs_no_other(parts):
    source = "shapes" if parts[0].names == SHAPES else "fractals"
    images, instances, labels = draw(source, Drawn(size=64, train=3, validation=1, test=1), 1)
    for k in range(3):
        assert np.array_equal(parts[0].images[k], images[k])
        assert np.array_equal(parts[0].instances[k], instances[k]) and np.array_equal(parts[0].labels[k], labels[k])


def test_boxes_are_the_least_around_masks(parts):
    seen = 0
    for part in parts:
        for k in range(len(part)):
            scene = part[k]
            assert scene.image.shape == (3, 64, 64) and scene.image.dtype == torch.uint8
            assert len(scene.boxes) == len(scene.labels) == len(scene.masks) <= 5
            assert ((scene.labels >= 1) & (scene.labels <= 6)).all()
            assert scene.masks.sum(0).le(1).all()  # a pixel shows one object
            for mask, (left, top, right, bottom) in zip(scene.masks, scene.boxes.int().tolist(), strict=True):
                seen += 1
                outside = mask.clone()
                outside[top:bottom, left:right] = 0
                assert not outside.any() and mask.sum() >= 12
                inside = mask[top:bottom, left:right]
                assert all(bool(edge.any()) for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert seen > 16


def test_all_classes_are_there_and_differ():
    """Each class fills its box by a share of its own: the classes could be told apart."""
    train, _, _ = drawn("shapes", Drawn(size=96, train=200, validation=1, test=1), 0)
    shares: dict[int, list[float]] = {}
    for k in range(len(train)):
        scene = train[k]
        for label, mask, box in zip(scene.labels.tolist(), scene.masks, scene.boxes, strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            shares.setdefault(label, []).append(float(mask.sum()) / area)
    assert sorted(shares) == [*range(1, 7)]
    middle = {SHAPES[label - 1]: np.median(found) for label, found in shares.items()}
    assert abs(middle["disc"] - np.pi / 4) < 0.05  # a disc in its box
    assert middle["ring"] < middle["disc"] and middle["crescent"] < middle["disc"]


def test_mirrored(parts):
    scene = parts[0][0]
    once = mirrored(scene)
    assert torch.equal(once.masks, scene.masks.flip(2)) and not torch.equal(once.image, scene.image)
    for mask, (left, top, right, bottom) in zip(once.masks, once.boxes.int().tolist(), strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert (left, top, right, bottom) == (
            int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1,
        )  # fmt: skip
    twice = mirrored(once)
    assert torch.equal(twice.image, scene.image) and torch.equal(twice.boxes, scene.boxes)


def test_batches_go_on_where_they_stood(parts):
    """Past the end of an epoch; whatever the threads."""
    alone = SceneBatches(parts[0], 5, seed=3, flip=True)
    expected = [alone.next() for _ in range(7)]
    for threads in (0, 2):
        batches = SceneBatches(parts[0], 5, seed=3, flip=True, threads=threads)
        for k in range(3):
            assert same(batches.next(), expected[k])
        state = batches.state_dict()
        batches.next()
        batches.load_state_dict(state)
        for k in range(3, 7):
            assert same(batches.next(), expected[k])
        batches.close()
    # Two batches of 5 are an epoch of 12: no scene comes twice in it.
    first = [scene.image for batch in expected[:2] for scene in batch]
    assert len({image.flip(-1).numpy().tobytes() for image in first} | {i.numpy().tobytes() for i in first}) == 20


def same(one, other):
    return all(torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) for a, b in zip(one, other, strict=True))
