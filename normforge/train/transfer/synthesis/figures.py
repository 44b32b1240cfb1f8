"""Figures of two sets of features: the Fréchet distance, and the score of class probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The mean (F,) and the covariance (F, F) of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """Those of features (N, F), N at least 2; computed in float64 on the CPU, divided by N - 1."""
        features = features.detach().cpu().double()
        mean = features.mean(0)
        centred = features - mean
        return Moments(mean, centred.mT @ centred / (len(features) - 1))

    @property
    def variance(self) -> float:
        """Of all features together: the trace of the covariance."""
        return float(self.covariance.trace())


def frechet(a: Moments, b: Moments) -> float:
    """The Fréchet distance of two normal distributions, |μ - ν|² + tr(A + B - 2 (A B)^½) (Heusel et al., arXiv
    1706.08500, equation 6); NaN where moments are not finite.

    (A B)^½ has the trace of (A^½ B A^½)^½, which is symmetric: all eigenvalues are real, and those that rounding made
    negative are 0.
    """
    if not all(bool(t.isfinite().all()) for t in (a.mean, a.covariance, b.mean, b.covariance)):
        return math.nan
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def score(logits: Tensor, splits: int = 1) -> float:
    """exp of the mean divergence, in nats, of class probabilities (N, K) from their mean: the Inception Score where
    they are Inception's (Salimans et al., arXiv 1606.03498); the mean of that of `splits` parts."""
    found = []
    for part in logits.detach().cpu().double().chunk(splits):
        log = part.log_softmax(1)
        mean = log.logsumexp(0) - math.log(len(part))
        found.append((log.exp() * (log - mean)).sum(1).mean().exp())
    return float(torch.stack(found).mean())
