"""Proxy networks, with a layer in every norm-act place."""

from __future__ import annotations

from normforge.train.networks.build import build, compiled
from normforge.train.networks.places import LayerFactory

__all__ = ["LayerFactory", "build", "compiled"]
