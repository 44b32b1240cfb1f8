"""Stage "launches": does each kind run, alike through Triton's front and directly, on streams, in a graph?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from stand_in import Request

from first.card import Card, about, compiled
from first.rows import Row, Rows
from first.shapes import TINY, Place
from normforge.codegen.plan import Plan
from normforge.codegen.triton.kinds import KINDS

# Each has every kind; the last is too large for the level-2 cache, so that cooperative launches have several tiles.
LAUNCHED = (
    Place("gn-silu", (8, 64, 28, 28), "nchw", "float32"),
    Place("bn-relu", (64, 256, 56, 56), "nchw", "float32"),
)


def run(rows: Rows, *, rehearse: bool) -> None:
    """A row for each place, order and kind."""
    card = Card.find(rehearse=rehearse)
    for place in TINY if rehearse else LAUNCHED:
        for order in (0,) if rehearse else (0, 1, 2):
            for kind in KINDS:
                plan = place.plan(order, kind)
                if plan is not None and not rows.has("launch", **about(place, plan)):
                    rows.attempt("launch", lambda p=plan, w=place: check(card, w, p), **about(place, plan))  # type: ignore[misc]
                    card.again_if_lost(rows)


def check(card: Card, where: Place, plan: Plan) -> Row:
    """True or false for each thing that must hold, by name; `ok` is all of them."""
    loaded = card.load(plan, where.title)
    given, made = card.tensors(plan, where.dims)
    loaded([*given, *made], where.dims)  # through the front
    front = copies(card, made)
    loaded([*given, *made], where.dims)  # directly
    found: dict[str, Any] = {"written": all(bool(torch.isfinite(t.float()).all()) for t in front)}
    found["direct is front"] = same(front, made)
    if plan.kind == "cooperative":
        loaded.twin([*given, *made], where.dims)
        found["cooperative is its twin"] = same(front, made)
    if card.device == "cuda":
        found["streams"] = on_streams(loaded, given, made, where, front)
        found["graph"] = in_a_graph(loaded, given, made, where, front)
    refused = "; ".join(getattr(loaded, "refused", {}).values())
    kernels = compiled(loaded, Request(plan, where.title, where.dims))
    failed = [name for name, holds in found.items() if not holds]
    return {"ok": not failed and not refused, "failed": failed, "refused": refused, "kernels": kernels}


def on_streams(loaded: Any, given: list[Tensor], made: list[Tensor], where: Place, want: list[Tensor]) -> bool:
    """Three at once, each with outputs of its own."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    outputs = [[torch.full_like(t, float("nan")) for t in made] for _ in streams]
    torch.cuda.synchronize()
    for _ in range(3):
        for stream, mine in zip(streams, outputs, strict=True):
            with torch.cuda.stream(stream):
                loaded([*given, *mine], where.dims)
    torch.cuda.synchronize()
    return all(same(mine, want) for mine in outputs)


def in_a_graph(loaded: Any, given: list[Tensor], made: list[Tensor], where: Place, want: list[Tensor]) -> bool:
    """Replayed three times."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loaded([*given, *made], where.dims)
    for _ in range(3):
        for t in made:
            t.fill_(float("nan"))
        graph.replay()
    torch.cuda.synchronize()
    return same(made, want)


def copies(card: Card, made: Sequence[Tensor]) -> list[Tensor]:
    """What is there, before the outputs are poisoned again. A rehearsal writes nothing, so that zeros stand for it."""
    if card.device == "cpu":
        for t in made:
            t.zero_()
        return [t.clone() for t in made]
    torch.cuda.synchronize()
    found = [t.clone() for t in made]
    for t in made:
        t.fill_(float("nan"))
    return found


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
