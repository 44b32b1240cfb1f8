"""The digest of the code that scores depend on: it sees what an evaluation runs, and nothing that only shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from normforge.search.sources import ROOT

EVALUATE = """
import sys
from normforge.ir import parse
from normforge.search.config import load
from normforge.search.evaluate import run_task
from normforge.search.tasks import Task

tiny = ["networks.resnet.width=0.03125", "networks.resnet.depths=1", "recipe.steps=2", "quality.steps=1",
        "quality.threshold=0", "stability.steps=1"]
print(run_task(Task("0", parse("gn-silu"), load("digits", tiny))).fate)
print(*(m for m in sys.modules if m.split(".")[0] == "normforge"))
"""

CHANGE = r"""
from pathlib import Path
from normforge.search import provenance

for files in ("", "kernels/pool.py", "codegen/c/driver.py search/stability.py",
              "search/reports/plots.py search/store.py cli/main.py"):
    for file in files.split():
        path = Path.cwd() / "normforge" / file
        assert path == provenance.ROOT / file, "the copy is what is imported"
        path.write_text(path.read_text() + "# changed\n")
    print(provenance.code.__wrapped__())
"""


def run(text: str, path: Path) -> list[str]:
    """The lines that a script prints that imports the package from a folder."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    ran = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, cwd=path, check=True
    )
    return ran.stdout.splitlines()


def test_all_that_an_evaluation_runs() -> None:
    from normforge.search.sources import file_of, reached_from

    fate, modules = run(EVALUATE, ROOT.parent)
    assert fate == "scored"
    covered = reached_from("normforge.search.evaluate")
    assert not [m for m in modules.split() if file_of(m) not in covered]


def test_the_digest_changes_with_what_scores_depend_on(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "normforge", ignore=shutil.ignore_patterns("__pycache__"))
    digests = run(CHANGE, tmp_path)
    assert len(digests) == 4 and len(set(digests[:3])) == 3 and digests[3] == digests[2]
