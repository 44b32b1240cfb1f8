"""Untrusted text: mutated formulas, JSON and dumps raise normforge's own errors or nothing, fast and in little memory.

`NORMFORGE_FUZZ_SECONDS=600 pytest tests/unit/test_fuzz.py` fuzzes for ten minutes instead of a few seconds.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from normforge.errors import NormforgeError
from normforge.ir import Graph, layers, parse
from normforge.passes import Differentiate

SECONDS = float(os.environ.get("NORMFORGE_FUZZ_SECONDS", "6"))
MOST_SECONDS, MOST_BYTES = 1.0, 100 * 2**20
CORPUS = Path(__file__).parent.parent / "corpus"

FORMULAS = [str(g) for g in layers.values()] + [
    part.strip()
    for name in ("equal.txt", "different.txt")
    for line in (CORPUS / name).read_text().splitlines()
    if line and not line.startswith("#")
    for part in line.split(" | ")[1:]
]
GRAPHS = [*layers.values(), *(Differentiate().run(g) for g in layers.values())]
READERS: dict[str, tuple[Callable[[str], Graph], list[str]]] = {
    "parse": (parse, FORMULAS),
    "from_json": (Graph.from_json, [g.to_json() for g in GRAPHS]),
    "from_dump": (Graph.from_dump, [g.dump() for g in GRAPHS]),
}
TOKENS = [
    *'()[]{},;=+-*/%":. \n\t\0é∞²\\',
    *(
        "x",
        "std[w,h](",
        "param a = ",
        "eps = ",
        "1e308",
        "1e-400",
        "0x1",
        "nan",
        "inf",
        "-0.0",
        "999999999999999999999",
    ),
    *(
        "null",
        "true",
        "[]",
        "{}",
        '"op"',
        "add",
        "square(" * 50,
        "(" * 300,
        ")" * 300,
        "-" * 200,
        "x+" * 500,
        "[" * 2000,
    ),
    *("9" * 5000, "%0", "return ", "{b,c,s}", "const", "\ud800"),
]


def mutated(rng: random.Random, seeds: list[str]) -> str:
    """A seed with a few pieces cut, repeated, swapped with another seed's, or replaced by a token."""
    text = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        if rng.random() < 0.7:
            b = min(b, a + rng.choice((1, 2, 5, 20)))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:a] + text[b:]
        elif kind == 1:
            text = text[:a] + text[a:b] * rng.choice((2, 3, 40)) + text[b:]
        elif kind == 2:
            other = rng.choice(seeds)
            c, d = sorted(rng.randrange(len(other) + 1) for _ in range(2))
            text = text[:a] + other[c:d] + text[b:]
        elif kind == 3:
            text = text[:a] + chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) + text[b:]
        else:
            text = text[:a] + rng.choice(TOKENS) + text[b:]
    return text


@pytest.mark.parametrize("name", READERS)
def test_untrusted_text(name: str) -> None:
    read, seeds = READERS[name]
    rng = random.Random(int(SECONDS))
    end = time.monotonic() + SECONDS / len(READERS)
    count = read_well = 0
    tracemalloc.start()
    try:
        while time.monotonic() < end:
            text = mutated(rng, seeds)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            start = time.perf_counter()
            try:
                graph = read(text)
                read_well += 1
            except NormforgeError:
                graph = None
            took = time.perf_counter() - start
            used = tracemalloc.get_traced_memory()[1] - before
            assert took < MOST_SECONDS, f"{took:.1f} s for {text[:300]!r}"
            assert used < MOST_BYTES, f"{used >> 20} MiB for {text[:300]!r}"
            if graph is not None and count % 50 == 0:  # what is read is a graph like any other
                assert Graph.from_json(graph.to_json()) == graph
            count += 1
    finally:
        tracemalloc.stop()
    assert count > 20 * SECONDS
    assert 0 < read_well < count
