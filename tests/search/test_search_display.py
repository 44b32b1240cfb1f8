from io import StringIO

import pytest
from rich.console import Console
from search_fabricated import printed, quiet

from normforge.search.display import Display, leaders, time_left
from normforge.search.events import Candidate
from normforge.search.funnel import Fate, Outcome
from normforge.search.progress import Progress


def candidate(index: int, outcome: Outcome, formula: str = "") -> Candidate:
    return Candidate(index, 0.0, (), (), outcome=outcome, formula=formula)


def progress(*scores: tuple[float, ...]) -> Progress:
    p = Progress(limit=600.0, elapsed=120.0, before=(20.0, 10), evaluated=60)
    for k, row in enumerate(scores):
        named = dict(zip(("resnet", "mobilenet"), row, strict=False))
        p.count(candidate(k, Outcome(Fate.SCORED, scores=named), f"x * {k} [bold]"))
    p.count(candidate(90, Outcome(Fate.MEMORY, "stopped")))
    p.fates[Fate.DEGENERATE] += 99 - p.drawn
    return p


def test_the_display_tells_fates_front_and_pace():
    p = progress((2.0, 2.0), (2.0, 2.0), (1.0, 3.0), (3.0, 1.0), (4.0, 4.0))
    assert len(leaders(p)) == 3 and len(p.leaders) == 4  # equal scores are shown once
    console = Console(file=StringIO(), width=200, force_terminal=True, color_system=None)
    with Display(console, p) as display:
        display.update(force=True)
    text = printed(console)
    assert "99 layers, 60 evaluated, 0.0 eq trained, 1800 an hour, 8:00 left" in text
    assert "memory" in text and "timeout" not in text and "stopped at the memory limit" in text
    for k, scores in ((0, (2.0, 2.0)), (2, (1.0, 3.0)), (3, (3.0, 1.0))):
        assert f"#{k}: resnet {scores[0]:.3f}, mobilenet {scores[1]:.3f}: x * {k} [bold]" in text


def test_time_left_is_of_whatever_ends_first():
    p = progress((1.0,))
    assert time_left(p) == 480.0
    p.candidates = 198  # as many again, in as long again
    assert time_left(p) == pytest.approx(120.0)
    p.candidates = 5000
    assert time_left(p) == 480.0
    p.elapsed = 700.0
    assert time_left(p) == 0.0


def test_plain_lines_come_every_ten_seconds(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("normforge.search.display.time.monotonic", lambda: now[0])
    p, console = progress((1.0,)), quiet()
    with Display(console, p) as display:
        for _ in range(25):
            display.update()
            now[0] += 1.0
        p.phase, p.done, p.total = "re-ranking", 3, 10
        display.update(force=True)
    lines = printed(console).splitlines()
    assert len(lines) == 4 and "best #0: resnet 1.000" in lines[0] and "98 degenerate" not in lines[0]
    assert lines[-1] == "re-ranking: 3 of 10"


def test_progress_of_nothing():
    console = quiet()
    with Display(console, Progress(limit=60.0)) as display:
        display.update()
    assert "no layer scored yet" in printed(console) and "1:00 left" in printed(console)
