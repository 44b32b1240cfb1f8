"""The pages say what the code says: boxes are what it prints, and paths are there."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import pytest

import normforge as nf
from normforge.codegen.orders import program

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plans.md"
BOX = re.compile(r"(?<=<!-- )(graph|factored graph|plan|C)( -->\n```\w+\n)(.*?)(?=\n```)", re.DOTALL)


def test_boxes_are_what_is_printed() -> None:
    """NORMFORGE_GOLDENS=1 writes them anew, but for the parts of the C, which are chosen by hand."""
    layer = nf.layers["gn-silu"]
    plan = nf.plan(layer, 1, target="c")
    printed = {
        "graph": program(layer, 1, True).graph.dump().rstrip(),
        "factored graph": plan.graph.dump().rstrip(),
        "plan": str(plan),
    }
    if os.environ.get("NORMFORGE_GOLDENS"):
        PAGE.write_text(BOX.sub(lambda m: f"{m[1]}{m[2]}{printed.get(m[1], m[3])}", PAGE.read_text()))
    boxes = [(m[1], m[3]) for m in BOX.finditer(PAGE.read_text())]
    assert [name for name, _ in boxes] == [*printed, *["C"] * 4]
    source = plain(nf.source(layer, "c", 1))
    for name, box in boxes:
        assert box == printed[name] if name in printed else plain(box) in source


def plain(text: str) -> str:
    """Without indentation."""
    return "\n".join(line.strip() for line in textwrap.dedent(text).split("\n"))


@pytest.mark.parametrize(
    "page", ["README.md", "tests/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_paths_are_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`((?:normforge|bench|tests|docs)/[\w./]+\w)`", text))
    links = re.findall(r"\]\(([\w./]+\.\w+)(?:#[\w-]+)?\)", re.sub(r"`[^`\n]+`", "code", text))
    missing = [
        path
        for path in (*(ROOT / name for name in named), *((ROOT / page).parent / x for x in links))
        if not path.exists()
    ]
    assert not [path for path in missing if path.stem != "NAME" and path.name not in RESULTS]


RESULTS = ("knowledge.jsonl", "kernels.tar.xz", "verdicts.json")
"""What a command writes and the repository does not hold."""
