"""Proxy networks, with the layer under search in every norm-act place."""

from __future__ import annotations

from normforge.search.networks.build import build, compiled
from normforge.search.networks.places import LayerFactory

__all__ = ["LayerFactory", "build", "compiled"]
