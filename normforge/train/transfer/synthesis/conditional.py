"""The layer under a condition: gain and bias of each sample in the place of gamma and beta."""

from __future__ import annotations

from torch import Tensor, nn

from normforge.errors import OptionError
from normforge.ir.graph import Graph
from normforge.passes.inputs import CONDITIONS, conditional
from normforge.train.networks.build import compiled
from normforge.train.transfer.synthesis.parts import spectral


class ConditionalLayer(nn.Module):
    """A layer whose gamma is 1 + W_g y and whose beta is W_b y, of a condition y; each W is spectral-normed and has no
    bias (Brock et al., arXiv 1809.11096, appendix B; ajbrock/BigGAN-PyTorch, layers.py).

    Every other parameter of the layer, such as v1 of an EvoNorm, is by channel and trained, as without a condition.
    """

    def __init__(
        self,
        graph: Graph,
        channels: int,
        condition: int,
        backend: str = "auto",
        groups: int | None = None,
        init: str = "orthogonal",
    ) -> None:
        """Weights are drawn by torch's global generator, as many for every layer.

        Args:
            graph: the layer.
            channels: of x.
            condition: size of y.
            backend: as of `normforge.compile`.
            groups: as of `normforge.train.networks.build.compiled`.
            init: of the weights, orthogonal or normal.

        Raises:
            OptionError: the layer has neither gamma nor beta, or is not of x alone.
        """
        super().__init__()
        if not graph.is_plain:
            raise OptionError(f"{graph} is not a layer of x alone with one result: give one that is")
        self.layer = compiled(conditional(graph), backend, groups)(channels)
        # Both are drawn whatever the layer has, so that all other weights are the same for every layer.
        weights = {name: spectral(nn.Linear(condition, channels, bias=False), init) for name in CONDITIONS.values()}
        has = {p.name for p in graph.params}
        self.weights = nn.ModuleDict({name: weights[name] for param, name in CONDITIONS.items() if param in has})

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, of the shape of x.

        Args:
            x: (N, C, H, W).
            y: (N, condition).
        """
        given = {name: weight(y) for name, weight in self.weights.items()}
        if "gain" in given:
            given["gain"] = 1 + given["gain"]
        out: Tensor = self.layer(x, **given)
        return out
