"""Does every family of timm's models that takes `norm_layer=` take `nf.norm_act`? The smallest model of each, tried.

    python bench/factories.py             # ten minutes on one core

A family is a module of timm.models. Its smallest model is made with `nf.norm_act("evonorm-s0")`, for networks of images
(N, C, H, W), and if it does not run so with `nf.norm_act("layernorm", channel_dim=-1)`, for networks of tokens, and is
given one image. Families whose models refuse the keyword are listed as such.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import timm
import torch
from common import machine, write
from rich.console import Console
from rich.progress import track

import normforge as nf

RESULTS = Path(__file__).parent / "results" / "factories.json"
FACTORIES = {
    "evonorm-s0": nf.norm_act("evonorm-s0"),
    "layernorm, channels last": nf.norm_act("layernorm", channel_dim=-1),
}
SMALL = 6e6  # parameters with which a model is small enough to look no further


def families() -> dict[str, list[str]]:
    """The names of models by family, of those whose code names the keyword."""
    found = defaultdict(list)
    for name in timm.list_models():
        found[timm.model_entrypoint(name).__module__].append(name)
    return {m.rpartition(".")[2]: n for m, n in found.items() if "norm_layer" in inspect.getsource(sys.modules[m])}


def smallest(names: list[str]) -> str:
    """The model of fewest parameters, or the first small one."""
    best = (float("inf"), names[0])
    for name in names:
        try:
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # some models cannot be made without memory
            continue
        best = min(best, (count, name))
        if count < SMALL:
            break
    return best[1]


def tried(name: str) -> dict[str, str | int]:
    """How many layers a model has with the factory that it runs with; or what it says of each."""
    size, said = timm.get_pretrained_cfg(name).input_size, {}
    for which, factory in FACTORIES.items():
        try:
            model = timm.create_model(name, norm_layer=factory).eval()
            with torch.no_grad():
                model(torch.randn(1, *size))
        except Exception as e:
            said[which] = f"{type(e).__name__}: {e}"[:200]
            continue
        layers = sum(isinstance(m, nf.Layer) for m in model.modules())
        return {"model": name, "factory": which, "layers": layers}
    return {"model": name, **said}


def main() -> int:
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 160)
    by_family = families()
    rows = {family: tried(smallest(names)) for family, names in track(by_family.items(), "families", console=console)}
    taken = {f: r for f, r in rows.items() if r.get("layers")}
    refused = [f for f, r in rows.items() if all("norm_layer" in str(r.get(which)) for which in FACTORIES)]
    unused = [f for f, r in rows.items() if r.get("layers") == 0]
    wrong = [f for f in rows if f not in (*taken, *refused, *unused)]
    for family, row in taken.items():
        console.print(f"{family}: {row['model']}, {row['layers']} layers of {row['factory']}", highlight=False)
    console.print(f"{len(taken)} families take it")
    console.print(f"models that refuse the keyword: {', '.join(refused)}")
    console.print(
        f"take it and make no norm by it: {', '.join(unused) or 'none'}; do not run: {', '.join(wrong) or 'none'}"
    )
    for family in wrong:
        console.print(family, rows[family], markup=False)
    write(RESULTS, {"machine": machine(), "timm": timm.__version__, "families": rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
