"""Run the suite with the oldest and with the newest libraries that `pyproject.toml` allows. Before each release.

    python tests/release.py                   # all of it, in environments that are removed at the end
    python tests/release.py --folder DIR      # keeps them; with --reuse those that are there are used as they are
    python tests/release.py --python python3.12 --only oldest newest --tests="tests/unit -x"

Makes a virtual environment with the lowest torch and triton (and the torchvision that belongs to them), another with
what pip chooses by itself, installs normforge with its test extra as the README says, and runs the README's test
command in each. Then every minor version of triton that is allowed compiles the tiles of each kind of plan at its
limits (`bench/tiles.py`), beside the newest torch. Prints a table at the end, and exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST, NEWEST, TILES = "oldest", "newest", "tiles"
TILES_COMMAND = str(ROOT / "bench" / "tiles.py")  # the check of tile limits, run by each triton
LOWERED = ("torch", "triton")
SHOWN = ("torch", "torchvision", "triton", "numpy")


@dataclass(frozen=True)
class Row:
    """One line of the summary: what ran in which environment, how it ended, and how long it took in seconds."""

    environment: str
    versions: str
    step: str
    end: str
    ok: bool
    seconds: float


def bounds(name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The lowest minor version that `pyproject.toml` allows, and the first that it does not."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = re.search(rf"^{name}>=(\d+)\.(\d+),<(\d+)\.(\d+)", "\n".join(dependencies), re.MULTILINE)
    assert found, f"pyproject.toml has no lowest and highest {name}"
    low, low_minor, high, high_minor = map(int, found.groups())
    return (low, low_minor), (high, high_minor)


def run(command: list[str], **environment: str) -> tuple[bool, str]:
    """Run a command in the repository, showing what it prints; whether it succeeded, and its last line."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    last = ""
    given = os.environ | environment
    with subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode == 0, last.strip("= ") or f"exit code {process.returncode}"


def versions(python: Path, **environment: str) -> str:
    """Of Python and of the libraries that matter, in an environment."""
    code = f"""
import importlib.metadata as m, platform
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return "none"
print("Python " + platform.python_version(), *(f"{{n}} {{version(n)}}" for n in {SHOWN}), sep=", ")
"""
    command = [str(python), "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout.strip()


def environment(name: str, folder: Path, base: str, reuse: bool) -> tuple[Path, Row | None]:
    """The Python of an environment, which is made if it is not there, and the failure if it cannot be made."""
    place = folder / name
    python = place / "bin" / "python"
    if reuse and python.exists():
        return python, None
    start = time.monotonic()
    constraints = folder / f"{name}.txt"
    lowest = [f"{library}=={'.'.join(map(str, bounds(library)[0]))}.*" for library in LOWERED]
    constraints.write_text("\n".join(lowest if name == OLDEST else []) + "\n")
    install = [str(python), "-m", "pip", "install", "-q", "--upgrade", "-c", str(constraints), "-e", ".[test]"]
    for command in ([base, "-m", "venv", str(place)], install):
        ok, last = run(command)
        if not ok:
            return python, Row(name, "", "install", last, False, time.monotonic() - start)
    return python, None


def suite(name: str, python: Path, tests: list[str]) -> Row:
    """The README's test command."""
    start = time.monotonic()
    ok, last = run([str(python), "-m", "pytest", "-q", *tests])
    return Row(name, versions(python), "suite", last, ok, time.monotonic() - start)


def tiles(python: Path, folder: Path, reuse: bool, arguments: list[str]) -> list[Row]:
    """The check of tile limits by every minor version of triton, each in a folder that goes before the environment."""
    rows = []
    (major, first), (_, end) = bounds("triton")
    for minor in range(first, end):
        start = time.monotonic()
        place = folder / f"triton-{major}.{minor}"
        install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
        ok, last = (True, "") if reuse and place.exists() else run([*install, f"triton=={major}.{minor}.*"])
        if ok:
            path = os.pathsep.join(p for p in (str(place), os.environ.get("PYTHONPATH", "")) if p)
            ok, last = run([str(python), TILES_COMMAND, *arguments], PYTHONPATH=path)
            said = versions(python, PYTHONPATH=path)
        else:
            said = f"triton {major}.{minor}"
        rows.append(Row(NEWEST, said, "tile limits", last, ok, time.monotonic() - start))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="that the environments are made of")
    parser.add_argument("--folder", type=Path, help="of the environments; by default one that is removed at the end")
    parser.add_argument("--reuse", action="store_true", help="environments that the folder has are used as they are")
    parser.add_argument("--only", nargs="+", choices=(OLDEST, NEWEST, TILES), default=[OLDEST, NEWEST, TILES])
    parser.add_argument("--tests", default="-n 2", help="arguments of pytest, in one string: --tests=-x")
    parser.add_argument("--tiles", default="--jobs 2", help="arguments of bench/tiles.py, in one string")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in (OLDEST, NEWEST):
            if name not in options.only and not (name == NEWEST and TILES in options.only):
                continue
            python, failure = environment(name, folder, options.python, options.reuse)
            if failure:
                rows.append(failure)
                continue
            print(f"\n{name}: {versions(python)}", flush=True)
            if name in options.only:
                rows.append(suite(name, python, shlex.split(options.tests)))
            if name == NEWEST and TILES in options.only:
                rows += tiles(python, folder, options.reuse, shlex.split(options.tiles))
    print("\nSummary")
    for row in rows:
        end = f"{row.seconds / 60:6.1f} min  {row.end}"
        print(f"{'ok' if row.ok else 'FAILED':<7}{row.environment:<8}{row.step:<12}{end}\n{'':<7}{row.versions}")
    return int(not rows or not all(row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())
