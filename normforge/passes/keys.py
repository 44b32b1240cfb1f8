"""The three keys of a graph, never mixed: code (`content_hash`), function (`hash`), family (`family_hash`)."""

from __future__ import annotations

from normforge.ir.graph import KEYS, Graph
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.family import family_form
from normforge.passes.legalise import Legalise
from normforge.passes.simplify import normal_form


def lower(graph: Graph) -> Graph:
    """The graph that code is generated from: core operations, exact rules only."""
    return Canonicalise().run(Legalise().run(graph))


def content_hash(graph: Graph) -> str:
    """Of the exact lowered graph."""
    return lower(graph).structure_without_eps


def function_hash(graph: Graph) -> str:
    """Of the normal form, lowered so that ε is part of it only where it is used."""
    return Canonicalise(finite_only=True).run(Legalise().run(normal_form(graph))).structure_without_eps


def family_hash(graph: Graph) -> str:
    """Of the normal form after what trainable parameters absorb is dropped; see `passes/family.py`."""
    return function_hash(family_form(graph))


KEYS.update(content_hash=content_hash, hash=function_hash, family_hash=family_hash)
