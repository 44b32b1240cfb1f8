"""Does a verdict depend on the machine? Random layers through the static stages and probing, under two settings.

    python bench/verdicts.py --layers 100     # a look
    python bench/verdicts.py                  # 1000 layers that the static stages keep
    python bench/verdicts.py --layers 5000    # writes bench/results/verdicts.json

Layers are drawn as in `bench/passes.py`. Two processes look at the same ones: one with the libraries as they are and
one thread, the other with two threads and the instructions that numpy, its BLAS and libm know beyond the plainest set
switched off, which changes the last bits of functions and of products of matrices. Compared are the finding of the
static stages, hash, fingerprint, the finding and remarks of probing, and the numbers that it decides by, bit for bit.
Exits with 1 if a verdict, its reason or a key differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from passes import draw

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
NEAR = 2.0  # a number within this factor of its threshold is near it
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def settings() -> dict[str, dict[str, str]]:
    """Environment variables by setting."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    plain = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(f for f in __cpu_dispatch__ if __cpu_features__.get(f)),
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
    }
    return {"as installed": dict.fromkeys(_THREADS, "1"), "plain": plain | dict.fromkeys(_THREADS, "2")}


def look(layers: int, seed: int, out: Path) -> None:
    """Write a line of JSON for each layer, until so many different ones have been probed."""
    from normforge.passes import Degeneracy, fingerprint
    from normforge.probing.probe import probe
    from normforge.search.funnel import UNDECIDED

    seen: set[str] = set()
    index = 0
    with out.open("w", buffering=1) as file:
        while len(seen) < layers:
            graph = draw(seed, index)
            row: dict[str, Any] = {"index": index, "stage": "kept", "reason": ""}
            index += 1
            try:
                findings = Degeneracy().run(graph)
                if not findings:
                    row |= {"hash": graph.hash, "fingerprint": fingerprint(graph)}
            except UNDECIDED as e:
                row |= {"stage": "error", "reason": str(e)}
            else:
                if not findings and graph.hash not in seen:
                    seen.add(graph.hash)
                    start = time.perf_counter()
                    probed = probe(graph)
                    row["seconds"] = time.perf_counter() - start
                    numbers = asdict(probed.propagation) if probed.propagation else {}
                    row |= {"layer": str(graph), "remarks": probed.remarks, "numbers": numbers}
                    findings = probed.findings
                if findings:
                    row |= {"stage": findings[0].stage.value, "reason": str(findings[0])}
            file.write(json.dumps(row) + "\n")


def compare(rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What differs between the rows of two settings."""
    fates: Counter[str] = Counter()
    flips, words, keys, numbers = [], [], [], []
    largest = 0.0
    near: Counter[str] = Counter()
    for one, other in zip(*rows, strict=True):
        probed = "numbers" in one
        if probed:
            fates[one["stage"]] += 1
            near.update(near_thresholds(one["numbers"]))
        if one["stage"] != other["stage"]:
            flips.append(
                {"index": one["index"], "layer": one.get("layer"), "findings": [one["reason"], other["reason"]]}
            )
        elif one["reason"] != other["reason"] or one.get("remarks") != other.get("remarks"):
            words.append(
                {"index": one["index"], "layer": one.get("layer"), "findings": [one["reason"], other["reason"]]}
            )
        if any(one.get(k) != other.get(k) for k in ("hash", "fingerprint")):
            keys.append(one["index"])
        if one.get("numbers") != other.get("numbers"):
            numbers.append(one["index"])
            largest = max(largest, difference(one["numbers"], other.get("numbers", {})))
    return {
        "drawn": len(rows[0]),
        "probed": sum(fates.values()),
        "refused by probing": fates["probing"],
        "other verdict": flips,
        "same verdict, other reason or remarks": words,
        "other hash or fingerprint": keys,
        "numbers not the same in every bit": numbers,
        "largest relative difference of a number": largest,
        "near a threshold": dict(sorted(near.items())),
        "ms of probing a layer": statistics.fmean(row["seconds"] for row in rows[0] if "seconds" in row) * 1e3,
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of two layers' numbers; infinite where one has more of them."""
    pairs = [(one.get(k, []), other.get(k, [])) for k in ("mean", "variance", "gradient")]
    if any(len(a) != len(b) for a, b in pairs):
        return math.inf
    return max(
        (abs(x - y) / max(abs(x), abs(y)) for a, b in pairs for x, y in zip(a, b, strict=True) if x != y), default=0.0
    )


def near_thresholds(numbers: dict[str, Any]) -> list[str]:
    """Which of probing's decisions hung on a number near its threshold."""
    from normforge.probing.probe import DEPTH, GRADIENT_REACH, MAX_VARIANCE, MIN_VARIANCE

    if not numbers or len(numbers["variance"]) <= DEPTH:
        return []
    variance = numbers["variance"]
    found = []
    if MAX_VARIANCE / NEAR < max(variance) < MAX_VARIANCE * NEAR:
        found.append(f"largest variance within a factor {NEAR:g}")
    if MIN_VARIANCE / NEAR < variance[-1] < MIN_VARIANCE * NEAR:
        found.append(f"last variance within a factor {NEAR:g}")
    if abs(len(numbers["gradient"]) - (math.floor(GRADIENT_REACH * DEPTH) + 0.5)) < 1:
        found.append("finite gradients end within a layer")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000, help="different ones that the static stages keep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; by default bench/results/verdicts.json from 5000 layers on")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)  # one of the two processes
    options = parser.parse_args()
    if options.look:
        look(options.layers, options.seed, options.look)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jsonl" for i in range(2)]
        command = [sys.executable, __file__, f"--layers={options.layers}", f"--seed={options.seed}", "--look"]
        both = [
            subprocess.Popen([*command, str(file)], env=os.environ | environment)
            for file, environment in zip(files, settings().values(), strict=True)
        ]
        if any([process.wait() for process in both]):
            print("a process failed", file=sys.stderr)
            return 2
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    if len(rows[0]) != len(rows[1]):
        print("the static stages keep other layers under one of the settings", file=sys.stderr)
        rows = [r[: min(map(len, rows))] for r in rows]
    result = {"settings": settings()} | compare(rows)
    result |= {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    text = json.dumps(result, indent=2)
    print(text)
    out = options.out or (RESULTS if options.layers >= 5000 else None)
    if out is not None:
        out.write_text(text + "\n")
    names = ("other verdict", "same verdict, other reason or remarks", "other hash or fingerprint")
    return int(any(result[name] for name in names))


if __name__ == "__main__":
    sys.exit(main())
