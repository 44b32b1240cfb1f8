"""FID and Inception Score proper, by weights that the user has: none ship with any package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normforge.errors import OptionError
from normforge.train.transfer.synthesis.figures import Moments, frechet, score

_AT_ONCE = 50
_SPLITS = 10  # of the Inception Score


class Inception:
    """The network of FID and Inception Score, with the resizing of the original (torch-fidelity's extractor)."""

    def __init__(self, extractor: Any, device: torch.device) -> None:
        self._extractor, self._device = extractor.to(device), device

    def moments(self, images: Tensor) -> Moments:
        """Of the 2048 features of images (N, 1 or 3, S, S) between 0 and 1."""
        return Moments.of(self._seen(images)[0])

    def figures(self, images: Tensor, reference: Moments) -> dict[str, float]:
        """`fid` from real images, and `is`, the Inception Score in 10 parts, of images between 0 and 1.

        Args:
            images: (N, 1 or 3, S, S); the figures in papers are of 50 000.
            reference: moments of real images.
        """
        features, logits = self._seen(images)
        return {"fid": frechet(Moments.of(features), reference), "is": score(logits, _SPLITS)}

    @torch.no_grad()
    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for part in images.split(_AT_ONCE):
            colours = part.to(self._device).expand(-1, 3, -1, -1)
            found.append(self._extractor((colours * 255).round().clamp(0, 255).byte()))
        features, logits = (torch.cat(each) for each in zip(*found, strict=True))
        return features, logits


def inception(file: str | Path, device: torch.device) -> Inception:
    """The network with weights of a file, such as torch-fidelity's weights-inception-2015-12-05-6726825d.pth.

    Args:
        file: a state dict by torch.save.
        device: where images are judged.

    Raises:
        OptionError: no such file, or of something else; torch-fidelity cannot be imported.
    """
    try:
        library = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as e:
        reason = str(e).split("\n")[0]
        raise OptionError(
            f"FID needs torch-fidelity, which cannot be imported: {reason}: pip install 'normforge[transfer]'"
        ) from None
    path = Path(file).expanduser()
    try:
        # The library loads whatever a pickle asks for; one with more in it than tensors ends here.
        torch.load(path, map_location="cpu", weights_only=True)
        extractor = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except OSError as e:
        raise OptionError(f"the weights {path} cannot be read: {e.strerror}: give torch-fidelity's file") from None
    except Exception:  # pickle, zip and load_state_dict raise errors of many classes, and advise against safety
        raise OptionError(
            f"{path} does not hold the Inception weights of torch-fidelity: give its file "
            "weights-inception-2015-12-05-6726825d.pth"
        ) from None
    return Inception(extractor, device)
