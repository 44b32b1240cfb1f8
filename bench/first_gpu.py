"""The first minutes on a GPU, as two commands that end in time whatever happens.

    python bench/first_gpu.py knowledge            330 s: does it run, is it right, which kind is fastest where
    python bench/first_gpu.py numbers              270 s: what failed before, then bench/gpu.py
    python bench/first_gpu.py knowledge --rehearse every stage without a GPU, in seconds; no figure means anything

Each stage is a process with a budget, and is stopped at its end; what one leaves over is the next one's. Rows are
written as they are known, to COMMAND.jsonl in the output folder; COMMAND.log has what stages print, COMMAND.txt the
table that is printed last. The exit code is 0, failures are in the table: a run that is cut short has said what it
knew. Kernels that were compiled ahead (bench/precompile.py) are looked for in $NORMFORGE_KERNELS, or
bench/kernels.tar.xz. docs/gpu.md says how all that comes to a machine without a network.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
REHEARSED = 10  # times as long as on a GPU: two cores may be busy with other things
sys.path.insert(0, str(BENCH))
sys.path.insert(0, str(BENCH.parent))

from first.rows import Rows, read, words  # noqa: E402
from first.stages import COMMANDS, HIDDEN, LIMITS, TABLE, function, run  # noqa: E402
from first.tables import table  # noqa: E402


def set_environment(cache: Path) -> None:
    """For all that is started here: this tree first, and one cache."""
    paths = [str(BENCH.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache))
    os.environ.setdefault("NORMFORGE_CACHE", str(cache / "normforge"))


def command(name: str, output: Path, *, rehearse: bool) -> None:
    """Run the stages of a command, one after the other, and print the table."""
    start, over = time.monotonic(), 0.0
    slower = REHEARSED if rehearse else 1
    output.mkdir(parents=True, exist_ok=True)
    rows = output / f"{name}.jsonl"
    rows.unlink(missing_ok=True)
    set_environment(Path(tempfile.gettempdir()) / ("normforge-rehearsal" if rehearse else "normforge-gpu"))
    with (output / f"{name}.log").open("w") as log:
        for stage in COMMANDS[name]:
            left = slower * (LIMITS[name] - TABLE) - (time.monotonic() - start)
            seconds = min(slower * stage.seconds + over, left)
            began = time.monotonic()
            print(f"{stage.name}: up to {seconds:.0f} s", flush=True)
            if seconds <= 1:
                Rows(rows, stage.name).add("stage", ended="no time was left", seconds=0, limit=0)
                continue
            run(stage, seconds, rows, log, rehearse=rehearse)
            over = max(slower * stage.seconds + over - (time.monotonic() - began), 0.0)
    text = table(read(rows), name)
    (output / f"{name}.txt").write_text(text)
    print(text)
    print(f"{time.monotonic() - start:.0f} s; rows in {rows}")


def main() -> int:
    """Parse the command line and run a command, or one stage of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = [s.name for stages in COMMANDS.values() for s in stages]
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="what to find out")
    parser.add_argument("--output", type=Path, default=BENCH / "results", help="folder for rows, log and table")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU; shows that the stages work")
    parser.add_argument("--stage", choices=[*stages, *HIDDEN], help="one stage alone, in this process")
    parser.add_argument("--rows", type=Path, help="the file for the rows of --stage")
    parser.add_argument("--seconds", type=float, default=600.0, help="that --stage may take")
    options = parser.parse_args()
    if (options.command is None) == (options.stage is None):
        parser.error("name a command, or a stage")
    if options.stage is None:
        command(options.command, options.output.resolve(), rehearse=options.rehearse)
        return 0
    rows = Rows((options.rows or options.output / f"{options.stage}.jsonl").resolve(), options.stage, options.seconds)
    try:
        function(options.stage)(rows, rehearse=options.rehearse)
    except Exception as error:
        rows.add("failed", error=words(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
