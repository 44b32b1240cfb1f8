"""Emitted text is what it was: some layers here, all of them when slow. See `tests/emitted.py` for the rows."""

from __future__ import annotations

import pytest
from emitted import DIGESTS, digest, layers, texts

EXPECTED = {row: found for found, row in (line.split(" ", 1) for line in DIGESTS.read_text().splitlines())}
USUAL = ("bn-relu", "gn-silu", "evonorm-b0", "rmsnorm", "random-0")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow, id=n) for n in layers()]
)
def test_text_is_what_it_was(name: str) -> None:
    found = {row: digest(text) for row, text in texts(name, layers()[name])}
    expected = {row: d for row, d in EXPECTED.items() if row.split(" ", 1)[0] == name}
    changed = [row for row in found.keys() | expected.keys() if found.get(row) != expected.get(row)]
    assert not changed, (
        f"the text of {len(changed)} rows changed, among them {min(changed)}: see tests/emitted.py for a diff, "
        "and accept it if it is meant"
    )
