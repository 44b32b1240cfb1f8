"""BigGAN: the conditional layer, and both networks against what is published of them."""

from __future__ import annotations

import pytest
import torch
from reference import compare, tolerance
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import normforge as nf
from normforge.errors import OptionError
from normforge.kernels import toolchain
from normforge.train.transfer.synthesis.biggan import SIDES, Discriminator, Generator
from normforge.train.transfer.synthesis.conditional import ConditionalLayer
from normforge.train.transfer.synthesis.parts import Attention

NO_NORM = "relu(x * gamma + beta)"
LAYERS = ("bn-relu", "gn-relu", "evonorm-b0", "evonorm-s0", NO_NORM)
BACKEND = "auto" if toolchain.find_compiler() else "eager"


def made(layer: str, channels: int = 4, condition: int = 3) -> ConditionalLayer:
    """In training, with fixed singular vectors, in float64, and parameters away from their starts."""
    torch.manual_seed(0)
    module = ConditionalLayer(nf.parse(layer), channels, condition, BACKEND, groups=2).double()
    with torch.no_grad():
        for p in module.layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    module.weights.eval()  # each call would iterate them
    return module


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_a_conditional_layer(layer: str) -> None:
    module = made(layer)
    x, y = normal(3, 4, 1, 2).requires_grad_(), normal(3, 3).requires_grad_()
    operands = (x, y, *module.parameters())
    assert len(operands) == 4 + ("v1" in layer or "evonorm" in layer)
    assert gradcheck(lambda x, y, *_: module(x, y), operands)
    assert gradgradcheck(lambda x, y, *_: module(x, y), operands)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_condition_it_is_the_layer(layer: str) -> None:
    module, x = made(layer), normal(3, 4, 2, 3)
    plain = nf.compile(layer, 4, groups=2, backend=BACKEND).double()
    plain.load_state_dict(module.layer.state_dict(), strict=False)
    got, want = module(x, torch.zeros(3, 3, dtype=x.dtype)), plain(x)
    compare(got, want, tolerance(x.dtype, 18, want.detach().abs().max().item()), layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_gain_and_bias_stand_in_gammas_and_betas_place(layer: str) -> None:
    module, x, y = made(layer), normal(3, 4, 2, 3), normal(1, 3)
    plain = nf.compile(layer, 4, groups=2, backend=BACKEND).double()
    plain.load_state_dict(module.layer.state_dict(), strict=False)
    with torch.no_grad():
        plain.weight.copy_(1 + module.weights["gain"](y)[0])
        plain.bias.copy_(module.weights["bias"](y)[0])
    got, want = module(x, y.expand(3, 3)), plain(x)
    compare(got, want, tolerance(x.dtype, 18, want.detach().abs().max().item()), layer)
    other = torch.cat([y.expand(2, 3), y + 1])
    assert module(x, other)[:2].equal(got[:2])
    assert not module(x, other)[2].equal(got[2])


def test_only_what_a_layer_has_is_conditioned() -> None:
    module = made("rmsnorm")
    assert list(module.weights) == ["gain"]
    assert module(normal(2, 4, 3, 3), normal(2, 3)).shape == (2, 4, 3, 3)
    with pytest.raises(OptionError, match="neither"):
        ConditionalLayer(nf.parse("relu(x)"), 4, 3)
    with pytest.raises(OptionError, match="x alone"):
        ConditionalLayer(nf.parse("input z[b,c,w,h]; x * z * gamma"), 4, 3)


def test_parameters_are_as_many_as_published() -> None:
    # google/compare_gan, compare_gan/architectures/resnet_biggan_test.py, testNumberOfParameters.
    with torch.device("meta"):
        generator = Generator(nf.parse("bn-relu"), 128, 1000, init="normal")
        discriminator = Discriminator(128, 1000, init="normal")
    assert sum(p.numel() for p in generator.parameters()) == 70433988
    assert sum(p.numel() for p in discriminator.parameters()) == 87982370


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("colours", [1, 3])
def test_images_scores_and_attention(side: int, colours: int) -> None:
    torch.manual_seed(0)
    generator = Generator(nf.parse("evonorm-s0"), side, 5, image_channels=colours, channels=1, z=3, shared=4)
    discriminator = Discriminator(side, 5, image_channels=colours, channels=1)
    seen: list[tuple[nn.Module, int]] = []
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, Attention):
                module.register_forward_hook(lambda _, x, __, network=network: seen.append((network, x[0].shape[-1])))
    labels = torch.tensor([0, 4])
    images = generator(torch.randn(2, generator.noise), labels)
    assert images.shape == (2, colours, side, side)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)
    assert seen == [(network, 64) for network in {64: [generator], 128: [generator, discriminator]}.get(side, [])]


def test_there_is_none_for_other_sides() -> None:
    with pytest.raises(OptionError, match="16, 32, 64 or 128"):
        Generator(nf.parse("bn-relu"), 48, 5)


def test_noise_of_a_chunk_and_labels_reach_the_image() -> None:
    torch.manual_seed(0)
    generator = Generator(nf.parse("evonorm-s0"), 16, 5, image_channels=1, channels=2, z=3, shared=4).eval()
    z, labels = torch.randn(1, generator.noise), torch.tensor([0])
    image = generator(z, labels)
    for chunk in range(3):
        other = z.clone()
        other[:, 3 * chunk : 3 * chunk + 3] += 1
        assert not generator(other, labels).equal(image)
    assert not generator(z, torch.tensor([1])).equal(image)


def test_blocks_compute_what_the_source_does() -> None:
    """Which doubles before the shortcut's convolution, and pools after it."""
    torch.manual_seed(0)
    generator = Generator(nf.parse(NO_NORM), 16, 5, channels=1, z=3, shared=4).double().eval()
    block = generator.blocks[0]
    x, y = normal(2, 4, 4, 4), normal(2, 7)
    h = functional.interpolate(block.layer1(x, y), scale_factor=2)
    want = block.conv2(block.layer2(block.conv1(h), y)) + block.shortcut(functional.interpolate(x, scale_factor=2))
    compare(block(x, y), want, tolerance(x.dtype, 36, want.detach().abs().max().item()), "generator")

    discriminator = Discriminator(16, 5, channels=1).double().eval()
    block = discriminator.blocks[1]
    h = block.conv2(torch.relu(block.conv1(torch.relu(x))))
    want = functional.avg_pool2d(h, 2) + functional.avg_pool2d(block.shortcut(x), 2)
    compare(block(x), want, tolerance(x.dtype, 36, want.detach().abs().max().item()), "discriminator")


def test_attention_is_the_sources() -> None:
    torch.manual_seed(0)
    attention = Attention(8, "orthogonal").double().eval()
    x = normal(2, 8, 4, 6)
    assert attention(x).equal(x)
    nn.init.ones_(attention.gamma)
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    key, value = functional.max_pool2d(key, 2), functional.max_pool2d(value, 2)
    beta = torch.softmax(torch.bmm(query.flatten(2).transpose(1, 2), key.flatten(2)), -1)
    want = x + attention.out(torch.bmm(value.flatten(2), beta.transpose(1, 2)).view(2, 4, 4, 6))
    compare(attention(x), want, tolerance(x.dtype, 32, want.detach().abs().max().item()), "attention")


def test_weights_are_the_same_for_every_layer() -> None:
    drawn = []
    for layer in ("bn-relu", "rmsnorm"):  # of which one has no beta
        torch.manual_seed(0)
        drawn.append(Generator(nf.parse(layer), 16, 5, channels=1, z=3, shared=4).state_dict())
    both = [k for k in drawn[1] if k.endswith("original") or k.startswith("shared")]
    assert len(both) > 10
    assert all(drawn[0][k].equal(drawn[1][k]) for k in both)


@pytest.mark.parametrize("init", ["orthogonal", "normal"])
def test_all_but_the_embedding_is_spectral_normed(init: str) -> None:
    torch.manual_seed(0)
    generator = Generator(nf.parse("bn-relu"), 16, 5, channels=2, z=3, shared=4, init=init)
    discriminator = Discriminator(16, 5, channels=2, init=init)
    modules = [m for network in (generator, discriminator) for m in network.modules()]
    normed = [m for m in modules if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(normed) > 20
    for module in normed:
        if module is generator.shared:
            assert not hasattr(module, "parametrizations")
            continue
        for _ in range(100):
            weight = module.weight
        # After a hundred iterations the estimate is as good as float32 allows, or a gap of singular values is small.
        largest = torch.linalg.matrix_norm(weight.detach().flatten(1).double(), 2)
        assert 1 - tolerance(torch.float32, weight.numel(), 1.0) <= largest
        assert largest <= 1.05
