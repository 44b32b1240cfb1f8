"""Where layers stand in Mask R-CNN, found by hooks: who is given whose output."""

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from normforge.ir.layers import parse
from normforge.kernels.module import BatchLayer, Layer
from normforge.train.networks import compiled
from normforge.train.networks.places import Affine, Place
from normforge.train.transfer.detection.drawn import drawn
from normforge.train.transfer.detection.mask_rcnn import mask_rcnn
from normforge.train.transfer.detection.settings import DetectionRecipe, Detector, Drawn
from normforge.train.transfer.detection.training import Detection

SMALL = Detector(width=0.0625, depths=(1, 1, 1), channels=16, top=5, regions=8, box_fc=24, head_channels=16)
LAYERS = ("bn-relu", "gn-relu", "evonorm-b0", "evonorm-s0", "relu(x * gamma + beta)")


@pytest.fixture(scope="module")
def scenes():
    return drawn("shapes", Drawn(train=8, validation=2, test=4), 0)


def made(layer="bn-relu", config=SMALL):
    return mask_rcnn(config, compiled(parse(layer), groups=4), 6, seed=0)


def target(scene):
    return {"boxes": scene.boxes, "labels": scene.labels, "masks": scene.masks}


class Calls:
    """Inputs and outputs of modules, in the order in which they were called."""

    def __init__(self, model):
        self.names = {module: name for name, module in model.named_modules()}
        self.calls = []
        for module in self.names:
            if not any(module.children()) or isinstance(module, Layer):
                module.register_forward_hook(lambda m, given, gives: self.calls.append((m, given[0], gives)))

    def of(self, module):
        return [call for call in self.calls if call[0] is module]

    def next(self, tensor):
        """The modules that were given a tensor."""
        return [m for m, given, _ in self.calls if given is tensor]


@pytest.fixture(scope="module")
def walked(scenes):
    model = made()
    calls = Calls(model)
    torch.manual_seed(0)
    model([scenes[0][k].image / 255 for k in range(2)], [target(scenes[0][k]) for k in range(2)])
    return model, calls


def test_no_other_norm_or_activation(walked):
    model, _ = walked
    others = (nn.ReLU, nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, Place)
    assert not [name for name, m in model.named_modules() if isinstance(m, others)]


def test_pyramid(walked):
    """A gain and a bias alone on each output, the coarser one too; nothing on the laterals."""
    model, calls = walked
    backbone = model.backbone
    assert backbone.levels == (2, 3, 4, 5)
    finest = [block[0] for block in backbone.pyramid.layer_blocks]
    for conv, norm in zip([*finest, *backbone.coarser], backbone.norms, strict=True):
        assert isinstance(norm, Affine)
        [(_, _, output)] = calls.of(conv)
        assert norm in calls.next(output)
    assert all(isinstance(m, nn.Conv2d) for block in backbone.pyramid.inner_blocks for m in block.children())
    # Features of pre-activation blocks end without a norm: each level has one on its way out.
    for end, block in zip(backbone.ends, backbone.pyramid.inner_blocks, strict=True):
        [(_, _, output)] = calls.of(end)
        assert isinstance(end, Layer) and calls.next(output) == [block[0]]


def test_proposals_have_one_convolution_and_a_layer_a_level(walked):
    model, calls = walked
    head = model.rpn.head
    assert len(head.layers) == len({*head.layers}) == 4
    for k, (_, given, output) in enumerate(calls.of(head.conv)):
        assert given is calls.of(model.backbone.norms[k])[0][2]
        assert calls.next(output) == [head.layers[k]]
        [(_, _, hidden)] = calls.of(head.layers[k])
        assert calls.next(hidden) == [head.cls_logits, head.bbox_pred]


def test_heads_have_a_layer_after_everything_but_the_predictors(walked):
    model, calls = walked
    heads = model.roi_heads
    assert isinstance(heads.box_head.layer, Layer)
    [(_, _, features)] = calls.of(heads.box_head.fc)
    assert calls.next(features) == [heads.box_head.layer]
    chains = [heads.box_head.convs, heads.mask_head, heads.mask_predictor]
    for chain in chains:
        for conv, layer in zip(chain[0::2], chain[1::2], strict=False):
            assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(layer, Layer)
            assert calls.next(calls.of(conv)[0][2])[0] is layer


def test_a_layer_that_needs_positions_can_be_kept_from_where_there_are_none():
    """EvoNorm-B0 keeps running statistics, and gain, bias and ReLU none."""
    for fc_layer in ("same", "relu"):
        head = made("evonorm-b0", SMALL.model_copy(update={"fc_layer": fc_layer})).roi_heads.box_head
        assert isinstance(head.convs[1], BatchLayer)
        assert isinstance(head.layer, BatchLayer) == (fc_layer == "same")


def test_weights_do_not_depend_on_the_layer():
    one, other = made("bn-relu"), made("evonorm-s0")
    convs = [[m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for model in (one, other)]
    assert len(convs[0]) > 20 and all(torch.equal(a, b) for a, b in zip(*convs, strict=True))


@pytest.mark.parametrize("layer", LAYERS)
def test_images_without_instances(scenes, layer):
    """No region has a mask, and no box is learned from: losses and gradients stay finite."""
    model = made(layer)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 96, 96)}
    losses = model([scenes[0][k].image / 255 for k in range(2)], [nothing, nothing])
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("backbone", ["resnet", "spinenet_tiny"])
def test_training_goes_on_in_the_same_bits(scenes, backbone, tmp_path):
    """Through a file, with an average of the weights; evaluations and pictures change nothing of what follows."""
    config = SMALL.model_copy(update={"backbone": backbone})
    recipe = DetectionRecipe(images=16, batch=4, ema=0.9).resolved()

    def task():
        torch.manual_seed(5)
        layer = compiled(parse("evonorm-b0"), groups=4)
        return Detection(layer, config, recipe, *scenes, flip=True, device=torch.device("cpu"))

    alone = task()
    losses = alone.advance(4)
    assert losses["loss"] == pytest.approx(sum(v for k, v in losses.items() if k != "loss"))
    first = task()
    first.advance(2)
    first.evaluate(final=False)
    [picture] = first.pictures(tmp_path)
    assert picture.stat().st_size > 1000
    torch.save({"task": first.state_dict(), "random": torch.get_rng_state()}, tmp_path / "state.pt")
    second = task()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["task"])
    torch.set_rng_state(state["random"])
    second.advance(4)
    ends = [t.state_dict() for t in (alone, second)]
    assert ends[0]["model"].keys() == ends[1]["model"].keys()
    assert all(torch.equal(v, ends[1]["model"][k]) for k, v in ends[0]["model"].items())
    assert alone.evaluate(final=True) == second.evaluate(final=True)
