"""Graph to graph: frozen dataclasses whose `run` never mutates. Importing this package gives graphs their keys."""

from normforge.passes import keys as _keys  # noqa: F401
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.degeneracy import Check, Degeneracy, Finding
from normforge.passes.describe import Describe
from normforge.passes.differentiate import Differentiate
from normforge.passes.fingerprint import fingerprint
from normforge.passes.legalise import Legalise
from normforge.passes.pipeline import lower
from normforge.passes.ranges import Ranges
from normforge.passes.running import inference_graph, running_statistics, training_graph
from normforge.passes.simplify import Simplify, simplify

__all__ = [
    "Canonicalise",
    "Check",
    "Degeneracy",
    "Describe",
    "Differentiate",
    "Finding",
    "Legalise",
    "Ranges",
    "Simplify",
    "fingerprint",
    "inference_graph",
    "lower",
    "running_statistics",
    "simplify",
    "training_graph",
]
