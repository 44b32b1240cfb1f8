"""Named layers, each with its source, and `parse`, which reads a name or a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from normforge.errors import OptionError, ParseError, UnknownNameError, described, nearest
from normforge.ir.forms.formula import parse_formula
from normforge.ir.graph import Graph


class NamedLayer(NamedTuple):
    """A formula and where it comes from."""

    formula: str
    source: str


_EVONORM = "Liu et al., Evolving Normalization-Activation Layers, arXiv 2004.02967"
_BN = "Ioffe and Szegedy, Batch Normalization, arXiv 1502.03167"
_GN = "Wu and He, Group Normalization, arXiv 1803.08494"
_LN = "Ba et al., Layer Normalization, arXiv 1607.06450"
_IN = "Ulyanov et al., Instance Normalization, arXiv 1607.08022"
_RMS = "Zhang and Sennrich, RMSNorm, arXiv 1910.07467"
_SILU = "Ramachandran et al., Searching for Activation Functions, arXiv 1710.05941"


def _bare(index: str) -> str:
    return f"(x - mean[{index}](x)) / std[{index}](x)"


def _normalised(index: str) -> str:
    return f"{_bare(index)} * gamma + beta"


_CONDITION = "input gain[b,c]; input bias[b,c]; "
_RESIDUAL = "input r[b,c,w,h]; h = x + r; "


CATALOGUE: dict[str, NamedLayer] = {
    "bn-relu": NamedLayer(f"relu({_normalised('b,w,h')})", _BN),
    "bn-silu": NamedLayer(f"silu({_normalised('b,w,h')})", f"{_BN}; {_SILU}"),
    "gn-relu": NamedLayer(f"relu({_normalised('w,h,c/g')})", _GN),
    "gn-silu": NamedLayer(f"silu({_normalised('w,h,c/g')})", f"{_GN}; {_SILU}"),
    "ln-relu": NamedLayer(f"relu({_normalised('w,h,c')})", _LN),
    "in-relu": NamedLayer(f"relu({_normalised('w,h')})", _IN),
    "batchnorm": NamedLayer(_normalised("b,w,h"), _BN),
    "groupnorm": NamedLayer(_normalised("w,h,c/g"), _GN),
    "layernorm": NamedLayer(_normalised("c"), _LN),
    "instancenorm": NamedLayer(_normalised("w,h"), _IN),
    "frn-tlu": NamedLayer(
        "param tau = 0; max(x / rms[w,h](x) * gamma + beta, tau)",
        "Singh and Krishnan, Filter Response Normalization, arXiv 1911.09737",
    ),
    "evonorm-b0": NamedLayer("x / max(std[b,w,h](x), v1 * x + std[w,h](x)) * gamma + beta", _EVONORM),
    "evonorm-b1": NamedLayer("x / max(std[b,w,h](x), (x + 1) * rms[w,h](x)) * gamma + beta", _EVONORM),
    "evonorm-b2": NamedLayer("x / max(std[b,w,h](x), rms[w,h](x) - x) * gamma + beta", _EVONORM),
    "evonorm-s0": NamedLayer("x * sigmoid(v1 * x) / std[w,h,c/g](x) * gamma + beta", _EVONORM),
    "evonorm-s1": NamedLayer("x * sigmoid(x) / std[w,h,c/g](x) * gamma + beta", _EVONORM),
    "evonorm-s2": NamedLayer("x * sigmoid(x) / rms[w,h,c/g](x) * gamma + beta", _EVONORM),
    "layernorm-gelu": NamedLayer(f"gelu({_normalised('c')})", f"{_LN}; Hendrycks and Gimpel, GELU, arXiv 1606.08415"),
    "rmsnorm": NamedLayer("x / rms[c](x) * gamma", _RMS),
    "dyt": NamedLayer(
        "param alpha scalar = 0.5; gamma * tanh(alpha * x) + beta",
        "Zhu et al., Transformers without Normalization, arXiv 2503.10622",
    ),
    "derf": NamedLayer(
        "param alpha scalar = 0.5; param s scalar = 0; gamma * erf(alpha * x + s) + beta",
        "Stronger Normalization-Free Transformers, arXiv 2512.10938",
    ),
    # Given more than x.
    "adagn-silu": NamedLayer(
        f"input scale[b,c]; input shift[b,c]; h = {_bare('w,h,c/g')}; silu(h * (1 + scale) + shift)",
        f"Dhariwal and Nichol, Diffusion Models Beat GANs, arXiv 2105.05233; {_SILU}",
    ),
    "adaln": NamedLayer(
        f"input scale[b,c]; input shift[b,c]; h = {_bare('c')}; h * (1 + scale) + shift",
        "Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748",
    ),
    "adain": NamedLayer(
        f"input scale[b,c]; input shift[b,c]; h = {_bare('w,h')}; h * scale + shift",
        "Huang and Belongie, Arbitrary Style Transfer in Real-time, arXiv 1703.06868",
    ),
    "cond-bn-relu": NamedLayer(
        f"{_CONDITION}relu({_bare('b,w,h')} * gain + bias)",
        f"de Vries et al., Modulating early visual processing by language, arXiv 1707.00683; {_BN}",
    ),
    "cond-evonorm-b0": NamedLayer(
        f"{_CONDITION}x / max(std[b,w,h](x), v1 * x + std[w,h](x)) * gain + bias",
        f"{_EVONORM}, as in BigGAN",
    ),
    "cond-evonorm-s0": NamedLayer(
        f"{_CONDITION}x * sigmoid(v1 * x) / std[w,h,c/g](x) * gain + bias", f"{_EVONORM}, as in BigGAN"
    ),
    "add-rmsnorm": NamedLayer(f"{_RESIDUAL}h / rms[c](h) * gamma, h", _RMS),
    "add-layernorm": NamedLayer(f"{_RESIDUAL}(h - mean[c](h)) / std[c](h) * gamma + beta, h", _LN),
    "rmsnorm-gated": NamedLayer(
        "input z[b,c,w,h]; h = x * silu(z); h / rms[c](h) * gamma",
        f"{_RMS}; gated as in Dao and Gu, Mamba-2, arXiv 2405.21060",
    ),
}


class Layers(Mapping[str, Graph]):
    """The named layers: name -> graph. `list(nf.layers)` gives the names."""

    def __getitem__(self, name: str) -> Graph:
        if name not in CATALOGUE:
            raise UnknownNameError(f"there is no layer named {name!r}{nearest(name, CATALOGUE)}")
        return _named(name)

    def __iter__(self) -> Iterator[str]:
        return iter(CATALOGUE)

    def __len__(self) -> int:
        return len(CATALOGUE)

    def __contains__(self, name: object) -> bool:
        return name in CATALOGUE


@cache
def _named(name: str) -> Graph:
    return parse_formula(CATALOGUE[name].formula)


layers = Layers()


def parse(text: str) -> Graph:
    """The graph of a named layer or of a formula; a known name wins over a formula that reads the same.

    Raises:
        ParseError: with the position of the mistake, what was expected, and the nearest known name.
    """
    name = text.strip()
    if name in CATALOGUE:
        return _named(name)
    try:
        return parse_formula(text)
    except ParseError:
        # Only what looks like a name, and not like a formula, is told about layer names.
        looks_like_name = name and all(ch.isalnum() or ch in "-_" for ch in name)
        hint = nearest(name, CATALOGUE) if looks_like_name else ""
        if hint:
            raise ParseError(f"there is no layer named {name!r}{hint}") from None
        raise


# What reads other texts than names and formulas, such as runs/demo#17; filled by the package, which knows of searches.
READERS: list[Callable[[str], Graph | None]] = []


def as_layer(layer: Graph | str, who: str) -> Graph:
    """A layer's graph, of that or of its name or formula, or of what a search found.

    Args:
        layer: what a public function was given.
        who: that function, for the message.

    Raises:
        ParseError: as `parse`. RunError, UnknownNameError: there is no such result of a search.
        OptionError: not a layer but a derivative graph, or none of these at all.
    """
    if not isinstance(layer, Graph | str):
        raise OptionError(f"a layer is a formula, a name or a graph, not {described(layer)}")
    if isinstance(layer, str):
        found = (graph for reader in READERS if (graph := reader(layer)) is not None)
        layer = next(found, None) or parse(layer)
    graph = layer
    if not graph.is_surface:
        raise OptionError(f"{who} takes a layer (results of x and of inputs that it declares), not a derivative graph")
    return graph
