"""The memo on disk: read back by another process, and never in the way when it is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import normforge.passes.memo as module
from normforge.passes.memo import Memo

ASK = (
    "from normforge.passes.memo import Memo\n"
    "def answer(q): print('asked'); return [q[0] * 2]\n"
    "m = Memo('test'); print(m.get([21], answer)); print(m.get([21], answer))\n"
)


def ask(cache: Path) -> list[str]:
    env = {**os.environ, "NORMFORGE_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True
    ).stdout.split("\n")


def test_answers_are_kept_across_processes(tmp_path: Path) -> None:
    assert ask(tmp_path)[:3] == ["asked", "[42]", "[42]"]
    assert ask(tmp_path)[:2] == ["[42]", "[42]"]


@pytest.mark.parametrize("damage", ["not a database at all, but long enough to look like a file" * 40, ""])
def test_a_damaged_file_costs_the_answer_and_no_more(tmp_path: Path, damage: str) -> None:
    ask(tmp_path)
    for path in tmp_path.glob("passes.sqlite*"):
        path.write_text(damage)
    assert ask(tmp_path)[1] == "[42]"


def test_a_lost_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFORGE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "MAX_KEPT", 1)
    memo, asked = Memo("small"), []
    for q in (1, 2, 1):
        assert memo.get([q], lambda q: asked.append(q) or q[0]) == q
    assert asked == [[1], [2]]  # from the file the third time
