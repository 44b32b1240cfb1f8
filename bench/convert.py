"""Is conversion right on the networks that people use? Each is converted and compared with itself.

    python bench/convert.py                 # all of `NETWORKS`; half an hour on one core; what is there is kept
    python bench/convert.py --only resnet50,tv:vit_b_16
    python bench/convert.py --report        # the table alone

Weights are random, what is one value a channel is moved from its start. "same" is compared with the network in float64,
outputs and all gradients, in training and in inference, by the largest difference over the largest value; then
evonorm-s0 is put in, and trained three steps with SGD in float32, again with `linear="keep"` where losses do not stay
finite without the norms that have no activation. `tv:` are torchvision's, the others timm's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from common import machine, write
from rich.console import Console
from rich.table import Table

import normforge as nf
from normforge.nn.convert import SAME

RESULTS = Path(__file__).parent / "results" / "convert.json"
NETWORKS = (
    "resnet18", "resnet50", "seresnet18", "skresnet18", "res2net50_26w_4s", "resnetv2_50", "densenet121", "dla34",
    "vgg11_bn", "inception_v3", "inception_v4", "xception41", "vovnet39a", "darknet53", "cspresnet50",
    "hrnet_w18_small", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "efficientnet_b0",
    "tf_efficientnet_lite0", "mnasnet_100", "regnetx_002", "regnety_002", "ghostnet_100", "tinynet_e", "rexnet_100",
    "tresnet_m", "hgnetv2_b0", "repvgg_a0", "convnext_atto", "convnextv2_atto", "edgenext_xx_small", "fastvit_t8",
    "poolformer_s12", "levit_128s", "mobilevit_xs", "efficientvit_b0", "maxvit_rmlp_nano_rw_256", "coatnet_0_rw_224",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "crossvit_tiny_240", "pit_ti_224",
    "tv:resnet18", "tv:resnext50_32x4d", "tv:vgg11_bn", "tv:googlenet", "tv:inception_v3", "tv:densenet121",
    "tv:mobilenet_v2", "tv:mobilenet_v3_small", "tv:efficientnet_b0", "tv:shufflenet_v2_x0_5", "tv:mnasnet0_5",
    "tv:regnet_y_400mf", "tv:convnext_tiny", "tv:vit_b_16", "tv:swin_t",
)  # fmt: skip
SIDE, BATCH, STEPS = 64, 4, 3
LAYER = "evonorm-s0"


def network(name: str) -> torch.nn.Module:
    """A network with random weights, what is one value a channel moved from its start."""
    torch.manual_seed(0)
    if name.startswith("tv:"):
        more = {"init_weights": True} if name in ("tv:googlenet", "tv:inception_v3") else {}
        model = torchvision.models.get_model(name[3:], weights=None, **more)
    else:
        model = timm.create_model(name, pretrained=False)
    with torch.no_grad():
        for module in model.modules():
            for p in module.parameters(recurse=False):
                if p.dim() == 1:
                    p.add_(torch.rand_like(p) * 0.5 - 0.1)
            for key, b in module.named_buffers(recurse=False):
                if key == "running_mean":
                    b.copy_(torch.randn_like(b) * 0.1)
                elif key == "running_var":
                    b.copy_(torch.rand_like(b) + 0.5)
    return model


def side_of(name: str, model: torch.nn.Module) -> int:
    """Of the images: small, where a network takes any."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if name == "tv:vit_b_16":
        return 224
    if "inception" in name:
        return 128
    return config["input_size"][-1] if config.get("fixed_input_size") else SIDE


def outcome(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output for x, and the gradients of everything in it."""
    torch.manual_seed(1)  # the same dropout
    y = model(x)
    y = y if isinstance(y, torch.Tensor) else y[0]  # of several heads the main one
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    model.zero_grad()
    (y * weights).sum().backward()
    return y.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) if a.numel() else 0.0


def measure(name: str) -> dict[str, Any]:
    """One network: what "same" changes, what was replaced, and how LAYER trains."""
    model = network(name)
    side = side_of(name, model)
    x = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(3))
    double, row = model.double(), {}
    for mode in ("training", "inference"):
        double.train(mode == "training")
        same, report = nf.convert(double, SAME)
        (y, gradients), (want, wanted) = (outcome(m, x.double()) for m in (same, double))
        assert gradients.keys() == wanted.keys(), f"{name}: other gradients"
        largest = max(float(g.abs().max()) for g in wanted.values())
        # One weight's gradient may be nothing but rounding, so differences are seen beside the largest of all.
        worst = max(float((gradients[n] - g).abs().max()) for n, g in wanted.items()) / largest
        row[mode] = {"output": apart(y, want), "gradients": worst}
    row |= {
        "norms": len(report.places),
        "replaced": len(report.replaced),
        "with an activation": sum(bool(p.activation) for p in report.places),
        "by": report.how,
        "left": {p.name: p.reason for p in report.left},
    }
    model = model.float().train()
    layered, report = nf.convert(model, LAYER)
    row["layers"] = sum(p.layer == LAYER for p in report.places)
    row["left by the layer"] = {p.name: p.reason for p in report.left}
    row["losses"] = losses_of(layered, x)
    if not all(map(math.isfinite, row["losses"])):  # a transformer does not stand without the norms of its residuals
        row["losses, linear=keep"] = losses_of(nf.convert(model, LAYER, linear="keep")[0], x)
    return row


def losses_of(model: torch.nn.Module, x: torch.Tensor) -> list[float]:
    """The losses of STEPS steps."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    losses = []
    for _ in range(STEPS):
        y = model(x)
        y = y if isinstance(y, torch.Tensor) else y[0]
        loss = torch.nn.functional.cross_entropy(y, torch.arange(len(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(float(loss.detach()), 4))
    return losses


def show(rows: dict[str, Any], console: Console) -> None:
    """Print the table."""
    columns = (
        "network",
        "norms",
        "replaced",
        "with activation",
        f"{LAYER}",
        "left by it",
        "by",
        "training",
        "inference",
    )
    table = Table(*columns, "losses", box=None)
    for name, row in rows.items():
        worst = [max(row[mode].values()) for mode in ("training", "inference")]
        counts = [
            row["norms"],
            row["replaced"],
            row["with an activation"],
            row["layers"],
            len(row["left by the layer"]),
        ]
        how = "trace" if "trace" in row["by"] else "run" if row["by"] else "-"
        kept = row.get("losses, linear=keep")
        losses = " ".join(f"{v:.2f}" for v in kept or row["losses"]) + (" (kept)" if kept else "")
        table.add_row(name, *map(str, counts), how, *(f"{w:.0e}" for w in worst), losses)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, separated by commas")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 180)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    rows, failed = stored["networks"], []
    for name in options.only.split(",") if not options.report else ():
        if name in rows and not options.again:
            continue
        start = time.perf_counter()
        try:
            rows[name] = measure(name)
        except Exception as e:  # the others go on
            failed.append(name)
            console.print(f"{name}: {type(e).__name__}: {e}", markup=False)
            continue
        console.print(f"{name}: {time.perf_counter() - start:.0f} s", highlight=False)
        order = {n: i for i, n in enumerate(NETWORKS)}
        rows = dict(sorted(rows.items(), key=lambda item: order.get(item[0], len(order))))
        write(RESULTS, {"machine": machine(), "networks": rows})
    show(rows, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
