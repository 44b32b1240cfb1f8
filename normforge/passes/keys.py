"""The three keys of a graph, never mixed: code (`content_hash`), function (`hash`), family (`family_hash`)."""

from __future__ import annotations

from hashlib import blake2b

from normforge.ir.graph import KEYS, Graph
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.legalise import Legalise
from normforge.passes.normal_form.family import family_key
from normforge.passes.normal_form.identity import MAX_NODES, value_of
from normforge.passes.pipeline import lower, run_passes


def content_hash(graph: Graph) -> str:
    """Hex digest of the exact lowered graph."""
    return lower(graph).structure_without_eps


def function_hash(graph: Graph) -> str:
    """Hex digest of the values of the outputs (see `identity`), which hold ε only where it is used."""
    if not graph.is_surface or len(graph.nodes) > MAX_NODES:
        return run_passes(graph, Legalise(), Canonicalise(finite_only=True)).structure_without_eps
    found = [value_of(graph.with_outputs(("y", node)))[1].key for _, node in graph.outputs]
    return found[0].hex() if len(found) == 1 else blake2b(b"".join(found), digest_size=16).hexdigest()


def family_hash(graph: Graph) -> str:
    """Hex digest of the value up to what trainable parameters absorb; see `family`."""
    if not graph.is_surface or not graph.is_plain or len(graph.nodes) > MAX_NODES:
        return function_hash(graph)
    return family_key(graph).hex()


KEYS.update(content_hash=content_hash, hash=function_hash, family_hash=family_hash)
