"""The two commands for the first minutes on a GPU, rehearsed without one, and what they carry there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from carry import pack, unpack  # noqa: E402
from first.profile import parse  # noqa: E402
from first.rows import Row, Rows, of, read  # noqa: E402
from first.stages import COMMANDS, LIMITS, TABLE, Stage, function, run  # noqa: E402
from first.tables import table  # noqa: E402

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter"),
]


def rehearse(command: str, folder: Path) -> list[Row]:
    """The rows of a command run from another folder, without moocore, which is not everywhere."""
    (folder / "moocore.py").write_text("raise ImportError('not here')\n")
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "NORMFORGE_CACHE": str(folder / "normforge")}
    environment = os.environ | caches | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    script = ROOT / "bench" / "first_gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), command, "--rehearse", "--output", str(folder / "out")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    log = folder / "out" / f"{command}.log"
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read(folder / "out" / f"{command}.jsonl")
    ended = {row["stage"]: row["ended"] for row in of(rows, "stage")}
    assert ended == dict.fromkeys([s.name for s in COMMANDS[command]], "done"), log.read_text()[-3000:]
    assert table(rows, command).startswith(command) and (folder / "out" / f"{command}.txt").exists()
    return rows


def test_rehearsal_of_knowledge(tmp_path: Path) -> None:
    rows = rehearse("knowledge", tmp_path)
    assert of(rows, "machine")[0]["processors"] and of(rows, "cache")[0]["tried"] >= 2
    kinds = {row["kind"] for row in of(rows, "launch")}
    assert kinds == {"multi-launch", "resident", "swept", "cooperative"} == {row["kind"] for row in of(rows, "kind")}
    assert all(row["ok"] and not row["refused"] for row in of(rows, "launch"))
    assert all(row["kernels"] and row["ms"]["median"] > 0 and not row["refused"] for row in of(rows, "kind"))
    (choice,) = of(rows, "choice")
    assert choice["chosen"] in kinds and choice["chosen_over_fastest"] >= 1
    applied, gone = of(rows, "experiment")
    assert applied["faster_by"] > 0 and "GONE is gone" in gone["error"]
    assert of(rows, "suite")[0]["returned"] == 0  # collected


@pytest.mark.slow
def test_rehearsal_of_numbers(tmp_path: Path) -> None:
    rows = rehearse("numbers", tmp_path)
    assert of(rows, "bench")[0]["returned"] == 0


def test_a_stage_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    """With what it has started; the row says so, and what it knew stays."""
    rows = tmp_path / "rows.jsonl"
    with (tmp_path / "log").open("w") as log:
        run(Stage("experiments", 0.3, ""), 0.3, rows, log, rehearse=False)
    assert of(read(rows), "stage")[0]["ended"] == "stopped at its limit"
    with rows.open("a") as file:
        file.write('{"stage": "cut off')
    assert len(read(rows)) == 1


def test_budgets_fit_the_limits() -> None:
    for command, stages in COMMANDS.items():
        assert sum(s.seconds for s in stages) + TABLE <= LIMITS[command]
        assert all(callable(function(s.name)) for s in stages)


def test_what_a_failure_costs(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl", "kinds")

    def fail() -> Row:
        raise RuntimeError("CUDA error: an illegal instruction\nmore")

    rows.attempt("kind", fail, layer="dyt")
    (row,) = read(rows.path)
    assert row["error"] == "RuntimeError: CUDA error: an illegal instruction" and row["layer"] == "dyt"
    assert "1 x kinds, kind: RuntimeError" in table([row], "knowledge")


def test_a_row_that_was_not_foreseen_does_not_cost_the_table() -> None:
    text = table([{"stage": "kinds", "what": "choice"}, {"stage": "card", "what": "stage", "seconds": 1}], "knowledge")
    assert "choices: KeyError" in text and "stages: KeyError" in text


def test_nsight_s_csv() -> None:
    text = (
        "==PROF== Connected\n"
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","7","nf_1_sweep1","gpu__time_duration.sum","us","91.5"\n'
        '"0","7","nf_1_sweep1","dram__bytes_read.sum","Mbyte","205.5"\n'
        '"1","7","nf_2_slabs","gpu__time_duration.sum","us","3"\n'
    )
    first, second = parse(text)
    assert first["metrics"] == {"gpu__time_duration.sum": "91.5 us", "dram__bytes_read.sum": "205.5 Mbyte"}
    assert second["kernel"] == "nf_2_slabs" and parse("==ERROR== no permission") == []


def test_an_archive_is_unpacked_anywhere(tmp_path: Path) -> None:
    """Triton's list of the files of a kernel has whole paths, which lead elsewhere after unpacking."""
    made = tmp_path / "made" / "KEY"
    made.mkdir(parents=True)
    for name in ("nf.cubin", "nf.json", "nf.ptx"):
        (made / name).write_text(name)
    paths = {name: str(made / name) for name in ("nf.cubin", "nf.json", "nf.ptx")}
    (made / "__grp__nf.json").write_text(json.dumps({"child_paths": paths}))
    assert pack(tmp_path / "made", tmp_path / "kernels.tar.xz") == 1
    assert unpack(tmp_path / "kernels.tar.xz", tmp_path / "there") == 1
    found = json.loads((tmp_path / "there" / "KEY" / "__grp__nf.json").read_text())["child_paths"]
    there = tmp_path / "there" / "KEY"
    assert found == {name: str(there / name) for name in ("nf.cubin", "nf.json")}
    assert all(Path(path).read_text() == name for name, path in found.items())


@pytest.mark.slow
def test_precompiled_kernels_are_found_again(tmp_path: Path) -> None:
    """In another folder, by another process with other hashes."""
    command = [
        sys.executable, str(ROOT / "bench" / "precompile.py"), "--sets", "tiny", "--first", "2", "--jobs", "1",
        "--check", "--output", str(tmp_path / "kernels.tar.xz"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "4 compiled and 0 found" in done.stdout and ": 0 not found" in done.stdout


def test_a_stage_goes_on_where_another_process_was_cut_off(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl", "kinds")
    rows.add("kind", layer="dyt", shape=[2, 3], order=0)
    Rows(rows.path, "launches").add("kind", layer="dyt", shape=[2, 3], order=1)
    assert rows.has("kind", layer="dyt", shape=[2, 3], order=0)
    assert not rows.has("kind", layer="dyt", order=1) and not rows.has("choice", layer="dyt")
