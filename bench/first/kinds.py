"""Every kind of plan at every shape, so that a wrong choice shows: time, share of a copy, kernels, registers.

python bench/first_gpu.py --stage kinds      # on a GPU
python bench/first_gpu.py --stage predict    # what the model predicts for the same rows; needs none
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from stand_in import Request

from first.card import Card, about, compiled
from first.rows import Row, Rows, read
from first.shapes import PLACES, TINY, Place, plans
from normforge.codegen.memory import account
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan
from normforge.codegen.target import place as placed
from normforge.codegen.triton.kinds import choose_plan

PREDICTIONS = Path(__file__).parents[1] / "results" / "predictions.jsonl"
ENOUGH = 4.0  # seconds for one order at a shape
KEY = ("layer", "shape", "layout", "dtype", "order", "kind")


def run(rows: Rows, *, rehearse: bool) -> None:
    """A row for each place, order and kind, and one that compares the kinds; large tensors first."""
    card = Card.find(rehearse=rehearse)
    known = predictions()
    for place in TINY if rehearse else PLACES:
        for order in (0,) if rehearse else (0, 1, 2):
            if rows.left < ENOUGH:
                rows.add("left out", place=str(place), order=order)
                continue
            compare(card, rows, place, order, known)


def compare(card: Card, rows: Rows, where: Place, order: int, known: dict[tuple[Any, ...], float]) -> None:
    """The kinds that can run one order of a layer at a shape, beside each other."""
    chosen = choose_plan(program(where.graph, order, True), where.dtype, where.layout, where.dims, card.described).kind
    copy = card.copy_bandwidth(2 * where.dims[0] * where.dims[1] * where.dims[2] * where.dims[3])
    best: dict[str, float] = {}
    first: list[Tensor] = []
    for plan in plans(where, (order,)):
        if rows.has("kind", **about(where, plan)):  # before the device was lost
            continue
        made: list[Tensor] = []
        row = rows.attempt(
            "kind",
            lambda plan=plan, made=made: measure(card, where, plan, copy, made),  # type: ignore[misc]
            **about(where, plan),
            chosen=plan.kind == chosen,
            predicted_ms=known.get(key(about(where, plan))),
        )
        card.again_if_lost(rows)
        first = first or made
        if "error" not in row and not row["refused"]:
            best[plan.kind] = row["ms"]["median"]
        if made is not first and made:
            rows.add("agreement", **about(where, plan), differs=difference(made, first))
    if best:
        fastest = min(best, key=lambda k: best[k])
        ratio = best[chosen] / best[fastest] if chosen in best else None
        rows.add(
            "choice", **{k: v for k, v in about(where, plan).items() if k != "kind"}, chosen=chosen, fastest=fastest,
            chosen_over_fastest=ratio, ms=best,
        )  # fmt: skip
    first.clear()
    gc.collect()
    if card.device == "cuda":
        torch.cuda.empty_cache()


def measure(card: Card, where: Place, plan: Plan, copy: float, made: list[Tensor]) -> Row:
    """The columns of a row; `made` gets the outputs."""
    loaded = card.load(plan, where.title)
    given, outputs = card.tensors(plan, where.dims)
    ms = card.time(loaded, [*given, *outputs], where.dims)
    made += outputs
    costs = account(placed(plan, where.shape))
    seconds = ms["median"] * 1e-3
    by_kernel = profiled(card, loaded, [*given, *outputs], where) if card.device == "cuda" else {}
    return {
        "ms": ms, "share_of_copy": costs.traffic / seconds / copy, "share_at_the_floor": costs.floor / seconds / copy,
        "tensor_bytes": costs.tensor, "planned_bytes": costs.moved, "partial_bytes": costs.partials,
        "workspace_bytes": costs.workspace, "copy_bytes_a_second": copy,
        "refused": "; ".join(getattr(loaded, "refused", {}).values()),
        "kernels": compiled(loaded, Request(plan, where.title, where.dims)), "us_by_kernel": by_kernel,
    }  # fmt: skip


def profiled(card: Card, loaded: Any, given: Sequence[Tensor], where: Place, calls: int = 3) -> dict[str, float]:
    """Microseconds of each kernel of a call; nothing where the profiler cannot run."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                card.clock.buffer.amax()
                loaded(given, where.dims)
            torch.cuda.synchronize()
    except RuntimeError:
        return {}
    averages = profile.key_averages()
    return {e.key: e.self_device_time_total / calls for e in averages if e.key.startswith("nf_")}


def difference(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest difference in the 2-norm, relative; the kinds add up in another order, and round alike."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        norm = torch.linalg.vector_norm(b, dtype=torch.float32).clamp_min(1e-20)
        worst = max(worst, float(torch.linalg.vector_norm(a - b, dtype=torch.float32) / norm))
    return worst


# -- predictions


def key(row: Row) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(tuple(row[k]) if k == "shape" else row[k] for k in KEY)


def predictions() -> dict[tuple[Any, ...], float]:
    """Milliseconds by what they are of; none where none were made."""
    return {key(row): row["ms"] for row in read(PREDICTIONS) if "ms" in row}


def predict(rows: Rows, *, rehearse: bool) -> None:
    """Write what the model of bench/predict.py says of every row."""
    from predict import predict as model  # type: ignore[import-not-found]

    PREDICTIONS.unlink(missing_ok=True)
    rows = Rows(PREDICTIONS, "predicted")
    for where in TINY if rehearse else PLACES:
        for plan in plans(where):
            rows.attempt(
                "kind",
                lambda plan=plan, where=where: {"ms": 1e3 * model(plan, where.dims).seconds},  # type: ignore[misc]
                **about(where, plan),
            )
