"""What bench/gpu.py times, in which order, and how long that is expected to take: networks and large tensors first,
for a run may be stopped."""

from __future__ import annotations

from typing import Any

from first.shapes import Place
from gpu_network import BASELINE, VARIANTS
from gpu_peers import INDUCTOR, NESTED, Case, graph_of, peers

import normforge as nf
from normforge.codegen.memory import account
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.registry import find_target
from normforge.codegen.shapes import slab_bytes

IMAGE_LAYERS = ("evonorm-s0", "evonorm-b0", "bn-relu", "gn-silu", "bn-silu", "frn-tlu", *NESTED)
TOKEN_LAYERS = ("layernorm-gelu", "rmsnorm", "dyt")
LARGE = (128, 256, 56, 56)  # of ResNet-50 at 224, batch 128: 205 MB in bfloat16
LARGER = (128, 64, 112, 112)
IMAGES = (
    LARGER, LARGE, (128, 512, 28, 28), (128, 2048, 7, 7),  # ResNet-50 at 224
    (128, 96, 112, 112), (128, 144, 56, 56), (128, 576, 14, 14),  # MobileNetV2
    (1, 128, 512, 512),  # the last stage of a VAE's decoder
    (128, 64, 32, 32), (128, 128, 16, 16), (128, 256, 8, 8),  # a proxy on CIFAR
)  # fmt: skip
TOKENS = ((8, 2048, 1024), (8, 2048, 4096))
# The first three are trained before the rows, the others after everything else.
NETWORKS = (BASELINE, "normforge evonorm-s0", "normforge bn-relu", *VARIANTS[2:])
REHEARSED = (
    Case("evonorm-s0", (2, 32, 5, 4), "bfloat16", "nhwc"),
    Case("gn-silu", (2, 32, 5, 4), "float32", "nchw"),
    Case("bn-relu", (2, 32, 5, 4), "bfloat16", "nchw"),
    Case("nested-2", (2, 32, 5, 4), "float32", "nhwc"),
    Case("rmsnorm", (2, 6, 32), "float32", "nhwc"),
    Case("dyt", (2, 6, 32), "float32", "nhwc"),
)
# Seconds that things are expected to take on an H100 with 16 cores, from what they take elsewhere: a graph that
# torch.compile compiles, its slowest mode, a peer of a row (checks and 4 rounds of calls), a row (reference and kinds),
# a network (with torch's choice of convolutions), and the parts after the rows.
GRAPH, SLOWEST, PEER, ROW, NETWORK = 6.0, 45.0, 0.35, 1.0, 5.0
# Seconds for compiling torch.compile's graphs ahead, at most, and for one that was.
WARM, FOUND = 40.0, 0.7
LATER = {"host": 15.0, "recompiles": 25.0, "compile_seconds": 60.0}


def cases(*, full: bool = False) -> list[Case]:
    """What is timed, large tensors first, and among them those of the networks that everybody compares with."""
    main, rest = IMAGE_LAYERS[:4], IMAGE_LAYERS[4:]
    chosen = [
        *(Case(layer, LARGE, "bfloat16", "nhwc") for layer in main),
        Case("layernorm-gelu", TOKENS[1], "bfloat16", "nhwc"),
        *(Case(layer, LARGE, "bfloat16", "nchw") for layer in main),
        Case("rmsnorm", TOKENS[1], "bfloat16", "nhwc"),
        *(Case(layer, LARGER, "bfloat16", "nhwc") for layer in ("evonorm-b0", "gn-silu")),
        Case("gn-silu", (1, 128, 512, 512), "bfloat16", "nchw"),
        *(Case(layer, (128, 128, 16, 16), "bfloat16", "nhwc") for layer in ("evonorm-s0", "gn-silu")),
        *(Case(layer, LARGE, "bfloat16", "nchw") for layer in rest),
        *(Case(layer, LARGE, "float32", "nchw") for layer in ("evonorm-b0", "gn-silu")),
        *(Case(layer, TOKENS[0], "bfloat16", "nhwc") for layer in TOKEN_LAYERS),
        Case("evonorm-s0", (128, 576, 14, 14), "bfloat16", "nhwc"),
        Case("gn-silu", (128, 1024, 14, 14), "bfloat16", "nhwc"),
        Case("bn-relu", (128, 2048, 7, 7), "bfloat16", "nchw"),
        *(Case(layer, TOKENS[1], "float32", "nhwc") for layer in TOKEN_LAYERS),
    ]
    if not full:
        return chosen
    every = [
        *(
            Case(layer, shape, dtype, layout)
            for dtype in ("bfloat16", "float32")
            for layout in ("nhwc", "nchw")
            for shape in IMAGES
            for layer in IMAGE_LAYERS
        ),
        *(Case(layer, shape, d, "nhwc") for d in ("bfloat16", "float32") for shape in TOKENS for layer in TOKEN_LAYERS),
    ]
    return list(dict.fromkeys([*chosen, *every]))


def place_of(case: Case) -> Place:
    """The same for kernels alone."""
    return Place(case.layer, case.plan_shape, case.layout, case.dtype)


def seconds(case: Case, *, warm: bool = False) -> float:
    """How long the three rows of a case are expected to take; `warm` where torch.compile's graphs are on the disk."""
    names = list(peers(case, "triton"))
    graph, slowest = (FOUND, 2 * FOUND) if warm else (GRAPH, SLOWEST)
    graphs = sum(2 * (slowest if "max" in name else graph) for name in names if name in INDUCTOR)
    return graphs + 3 * (ROW + PEER * len(names))


def expected(*, full: bool, autotune: bool, layers: frozenset[str], warm: bool) -> list[tuple[str, float]]:
    """(What, seconds) in the order of a run."""
    networks = [(f"ResNet-50, {variant}", NETWORK) for variant in NETWORKS]
    rows = [(str(c), seconds(c, warm=warm)) for c in wanted(cases(full=full), autotune, layers)]
    first = [("torch.compile's graphs", WARM)] if warm else []
    return [*first, *networks[:3], *rows, *LATER.items(), *networks[3:]]


def wanted(chosen: list[Case], autotune: bool, layers: frozenset[str]) -> list[Case]:
    """Of these layers (all where none is named), with torch.compile's slowest mode or without."""
    return [c.tuned(autotune) for c in chosen if not layers or c.layer in layers]


def planned(case: Case, order: int) -> dict[str, Any]:
    """What the plan says: bytes of the floor, on chip or not, and of the plan itself, its partial sums among them."""
    target = "triton"
    graph = graph_of(case.layer)
    plan = nf.plan(graph, order, shape=case.plan_shape, dtype=case.dtype, layout=case.layout, target=target)
    a = account(plan)
    several = make_plan(program(graph, order, True), target, case.dtype, case.layout)
    resident = slab_bytes(several, case.plan_shape) <= find_target(target).on_chip_bytes
    return {
        "kind": plan.kind, "launches": plan.launches, "tensor_bytes": a.tensor, "planned_bytes": a.traffic,
        "floor_bytes": a.floor if resident else (several.loads + several.writes) * a.tensor,
        "floor": "on chip" if resident else "off chip", "small_bytes": a.small, "partial_bytes": a.partials,
        "workspace_bytes": a.workspace, "saved_bytes": a.saved_bytes,
    }  # fmt: skip
