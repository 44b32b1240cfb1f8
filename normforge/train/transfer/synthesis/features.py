"""What samples are judged by without weights from elsewhere: the features of a small classifier, trained here.

A distance in them is no FID, whose features are those of one particular network: it is the FD (own features), and
compares generators of one data set only.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normforge.cache import digest, entry
from normforge.streams import stream, torch_seed
from normforge.train.data.batches import ArrayBatches
from normforge.train.data.parts import Data, Part
from normforge.train.transfer.synthesis.figures import Moments, frechet, score

VERSION = 1
"""Of the classifier and its training; with another, figures of before and after do not compare."""

_PURPOSE = "synthesis classifier"
_SEED = 0  # of every classifier: no run has its own
_FEATURES = 64
_BATCH, _RATE = 64, 4e-3
_FEWEST, _MOST, _EPOCHS = 400, 4000, 5  # steps, and the passes over the data that lie between
_AT_ONCE = 500  # images in inference


class Classifier(nn.Module):
    """Three convolutions, the mean of their 64 features, and a linear layer; images above 32 px are brought to that
    by the stride of the first."""

    def __init__(self, side: int, image_channels: int, classes: int) -> None:
        super().__init__()
        stride = max(1, side // 32)
        self.body = nn.Sequential(
            *(nn.Conv2d(image_channels, 32, 2 * stride + 1, stride, stride, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(64, _FEATURES, 3, padding=1, bias=False), nn.BatchNorm2d(_FEATURES), nn.ReLU()),
        )
        self.head = nn.Linear(_FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (N, 64) of standardised images (N, C, S, S)."""
        found: Tensor = self.body(images).mean((2, 3))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the same."""
        logits: Tensor = self.head(self.features(images))
        return logits


def classifier(data: Data) -> Classifier:
    """The classifier of a data set, in inference mode on the CPU: trained on its training images with a fixed seed, and
    kept in the cache directory by the digest of the data, so that all runs have the same one."""

    def build(path: Path) -> None:
        torch.save(_trained(data).state_dict(), path)

    file = entry(digest(_PURPOSE, str(VERSION), data.digest), ".pt", build)
    model = _fresh(data)
    model.load_state_dict(torch.load(io.BytesIO(file.read_bytes()), weights_only=True))
    return model.eval()


def _fresh(data: Data) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(_SEED, _PURPOSE, 0))
        _, channels, side, _ = data.train.images.shape
        return Classifier(side, channels, data.classes)


def _trained(data: Data) -> Classifier:
    model = _fresh(data)
    batches = ArrayBatches(data.train, _BATCH, stream(_SEED, _PURPOSE, 0))
    steps = min(_MOST, max(_FEWEST, _EPOCHS * len(data.train) // batches.batch))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for _ in range(steps):
        images, labels = batches.next()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model


class Judge:
    """Judges samples of a data set by its classifier.

    Attributes:
        accuracy, score: of the classifier on real images that it was not trained on.
        floor: the FD (own features) of all these images, which a perfect generator would come near to.
        held_out: number of these images.
    """

    def __init__(self, data: Data, device: torch.device) -> None:
        """Trains the classifier, unless that was done before.

        Args:
            data: its training images are the reference.
            device: that samples come on.
        """
        self._model = classifier(data).to(device)
        self._device = device
        features, _ = self._seen(data.train.images)
        raw = Moments.of(features)
        self._scale = raw.variance**-0.5
        self._reference = Moments.of(features * self._scale)
        rest = (data.validation, data.holdout, data.test)
        held = Part(torch.cat([p.images for p in rest]), torch.cat([p.labels for p in rest]))
        real = self.figures(held.images, held.labels)
        self.accuracy, self.score, self.floor = real["accuracy"], real["score"], real["fd"]
        self.held_out = len(held)

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures of samples.

        Args:
            images: (N, C, S, S), standardised as the data are.
            labels: (N,) that they were drawn for.

        Returns:
            fd: the FD (own features) from the training images, features divided by the root of their total variance
                there; it is 0 for equal moments.
            accuracy: the share of samples that the classifier gives their label.
            score: exp of the mean divergence of its class probabilities from their mean, from 1 to the number of
                classes.
        """
        features, logits = self._seen(images)
        return {
            "fd": frechet(Moments.of(features * self._scale), self._reference),
            "accuracy": float((logits.argmax(1) == labels.to(logits.device)).double().mean()),
            "score": score(logits),
        }

    @torch.no_grad()
    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([self._model.features(part.to(self._device)) for part in images.split(_AT_ONCE)])
        return features, self._model.head(features)
