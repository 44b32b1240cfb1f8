"""The setup that a layer is trained with: networks, data and device, chosen once for any number of trainings."""

from __future__ import annotations

import torch
from torch import nn

from normforge.streams import stream, torch_seed
from normforge.train.config import DataConfig, Networks, Recipe
from normforge.train.data import Data, load_data, shrunk
from normforge.train.data.batches import ArrayBatches
from normforge.train.data.mixed import mixed
from normforge.train.device import device_of, on_device
from normforge.train.loop import Training, memory_format
from normforge.train.networks import LayerFactory, build


class Setup:
    """The setup of trainings: networks that take one layer, and images on one device.

    Weights and batches depend on `recipe.seed` and the repeat alone, so that trainings differ by the layer.

    Args:
        layer: makes the module of each norm-act place.
        networks: options of the networks.
        data: which images, and how they are cropped and flipped.
        device: `cpu`, `cuda` or `auto`.
        side: to which images are averaged down, whole and not cropped; None leaves them.

    Raises:
        OptionError: data that cannot be read.
    """

    def __init__(
        self,
        layer: LayerFactory,
        networks: Networks,
        data: DataConfig,
        device: str = "auto",
        side: int | None = None,
    ) -> None:
        self._layer, self._networks = layer, networks
        self._options = data if side is None else data.model_copy(update={"crop": None, "pad": 0})
        self.device = torch.device(device_of(device))
        self.data: Data = on_device(load_data(data) if side is None else shrunk(data, side), self.device)

    def model(self, network: str, recipe: Recipe, repeat: int = 0) -> nn.Module:
        """A network with the layer in it, from the weights of a repeat, on the device.

        Raises:
            OptionError: an unknown name, or a setting that does not fit the images.
        """
        images = self.data.train.images
        model = build(
            network,
            self._networks,
            self._layer,
            in_channels=images.shape[1],
            classes=self.data.classes,
            size=self._options.crop or images.shape[2],
            seed=torch_seed(recipe.seed, "weights", repeat),
        )
        model.to(self.device)
        return model.to(memory_format=memory_format(recipe))

    def training(self, network: str, recipe: Recipe, repeat: int = 0) -> Training:
        """A training of such a network, not yet begun; raises as `model`."""
        train, classes = self.data.train, self.data.classes
        drawn = ArrayBatches(train, recipe.batch, stream(recipe.seed, "batches", repeat), self._options)
        batches = mixed(drawn, recipe, classes, torch_seed(recipe.seed, "mixing", repeat), train.limits)
        return Training(self.model(network, recipe, repeat), batches, recipe)
