"""Data sets: images, labels and their fixed parts, chosen by one option."""

from __future__ import annotations

from normforge.train.data.load import load_data
from normforge.train.data.parts import Data, Part
from normforge.train.data.small import shrunk

__all__ = ["Data", "Part", "load_data", "shrunk"]
