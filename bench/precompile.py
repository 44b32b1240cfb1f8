"""Everything that the GPU suite and the benchmarks compile, compiled for an H100 where there is none, to be carried.

    python bench/precompile.py --jobs 8                     all of it, into bench/kernels.tar.xz
    python bench/precompile.py --sets suite,kinds --check   some; then unpacked elsewhere and looked up again
    python bench/precompile.py --unpack bench/kernels.tar.xz ~/.triton/cache

Triton's own front compiles, under a driver that answers for the GPU (see `stand_in`), so that the keys are those of a
run there: they depend on the text of the kernels, on the version of triton and of its ptxas, and not on folders. Where
there is a C compiler, Triton's launchers are built too: one for each list of argument types, which takes the machine
with the GPU as long as a kernel.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parent), str(BENCH.parent / "tests"), str(BENCH.parent / "tests" / "gpu")]

from carry import pack, unpack  # noqa: E402
from stand_in import Kernel, Request, compilations, compile_request, kernels, recorded, stub_libcuda, use_driver  # noqa: E402

ARCHIVE = BENCH / "kernels.tar.xz"
LIMIT = 64 << 20  # bytes that can be carried
SETS = ("launches", "kinds", "suite", "bench", "network", "experiments")
Item = Callable[[], None]


# -- what there is to compile


def requests(sets: Iterable[str]) -> list[Request]:
    """Of some sets, in their order, each once."""
    found: dict[Request, None] = {}
    for name in sets:
        if name != "experiments":
            found |= dict.fromkeys(_SETS[name]())
    return list(found)


def _places(name: str) -> list[Request]:
    from first.launches import LAUNCHED
    from first.shapes import PLACES, TINY, plans

    wanted = {"launches": LAUNCHED, "kinds": PLACES, "tiny": TINY}[name]
    orders = (0,) if name == "tiny" else (0, 1, 2)
    return [Request(plan, place.title, place.dims) for place in wanted for plan in plans(place, orders)]


def _suite() -> list[Request]:
    from launched import suite

    return suite()


def _bench() -> list[Request]:
    from gpu_cases import cases
    from gpu_peers import compiled, run

    found: dict[Request, None] = {}
    for case in cases():
        with recorded() as made:
            inputs = [case.tensor(0, "meta").requires_grad_() for _ in range(3)]
            for order in range(3):
                run(compiled(case, "triton").to("meta"), order, *inputs)
        found |= made
    return list(found)


def _network() -> list[Request]:
    from gpu_network import on_meta

    found: dict[Request, None] = {}
    for variant in ("normforge bn-relu", "normforge evonorm-s0", "normforge evonorm-b0", "normforge gn-silu"):
        with recorded() as made:
            on_meta(variant)
        found |= made
    return list(found)


_SETS: dict[str, Callable[[], list[Request]]] = {
    "tiny": lambda: _places("tiny"), "launches": lambda: _places("launches"), "kinds": lambda: _places("kinds"),
    "suite": _suite, "bench": _bench, "network": _network,
}  # fmt: skip


def items(wanted: Sequence[Request], *, experiments: bool = False) -> list[Item]:
    """Work that compiles all requests, none of it twice: what a request before it has made is left out."""
    seen: set[Kernel] = set()
    found: list[Item] = []
    for request in wanted:
        these = set(kernels(request))
        if not these <= seen:
            seen |= these
            found.append(lambda request=request: compile_request(request))  # type: ignore[misc]
    if experiments:
        from first.experiments import EXPERIMENTS, compile_only

        found += [lambda one=one: compile_only(one) for one in EXPERIMENTS]  # type: ignore[misc]
    return found


# -- compiling

_work: list[Item] = []


def _start(libcuda: str | None) -> None:
    os.environ.setdefault("TRITON_STORE_BINARY_ONLY", "1")
    use_driver(Path(libcuda) if libcuda else None)


def _do(index: int) -> tuple[int, int, str]:
    """(Compiled, found in the cache, why not)."""
    why = ""
    with compilations() as made:
        try:
            _work[index]()
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    hits = sum(hit for _, hit in made)
    return len(made) - hits, hits, why


def compile_items(work: Sequence[Item], jobs: int, seconds: float = float("inf")) -> tuple[int, int, list[str]]:
    """Do the work in some processes, in its order, and stop when the time is over.

    Returns:
        How many kernels were compiled, how many were in the cache, and what failed.
    """
    _work[:] = work
    end = time.monotonic() + seconds
    compiled, cached, failed = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            stub: str | None = str(stub_libcuda(Path(folder)))
        except (OSError, subprocess.CalledProcessError):
            stub = None
        # Forked, so that plans need not be made again; nothing here has started a device or a compiler.
        with multiprocessing.get_context("fork").Pool(jobs, _start, (stub,)) as pool:
            results = pool.imap_unordered(_do, range(len(work)))
            for _ in work:
                try:
                    more, hits, why = results.next(None if end == float("inf") else max(end - time.monotonic(), 0.1))
                except multiprocessing.TimeoutError:
                    break
                compiled, cached = compiled + more, cached + hits
                failed += [why] if why else []
            pool.terminate()
    return compiled, cached, failed


def build(wanted: Sequence[Request], jobs: int, seconds: float = float("inf")) -> int:
    """Compile requests; how many kernels were."""
    return compile_items(items(wanted), jobs, seconds)[0]


# -- the command


def check(archive: Path, options: list[str]) -> int:
    """Unpack elsewhere and ask for everything again in a new process with other hashes; how many were not found."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        seed = str(random.randrange(1, 1 << 31))
        environment = os.environ | {"TRITON_CACHE_DIR": folder, "PYTHONHASHSEED": seed}
        command = [sys.executable, str(Path(__file__).resolve()), *options, "--count"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return int(done.stdout.split()[-1])


def main() -> int:
    """Parse the command line; compile, pack, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--first", type=int, help="only this many pieces of work")
    parser.add_argument("--cache", type=Path, help="a folder to keep what is compiled in; a new one by default")
    parser.add_argument("--output", type=Path, default=ARCHIVE, help="the archive")
    parser.add_argument("--check", action="store_true", help="see that a process elsewhere finds all of it")
    parser.add_argument("--list", action="store_true", help="say how many kernels there are, and compile nothing")
    parser.add_argument("--unpack", nargs=2, type=Path, metavar=("ARCHIVE", "FOLDER"), help="and do nothing else")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.unpack:
        print(f"{unpack(*options.unpack)} kernels")
        return 0
    sets = options.sets.split(",")
    wanted = requests(sets)
    if options.list:
        for name in sets:
            print(f"{name}: {len({k for r in requests([name]) for k in kernels(r)})} kernels")
        print(f"all: {len({k for r in wanted for k in kernels(r)})} kernels, without experiments")
        return 0
    work = items(wanted, experiments="experiments" in sets)[: options.first]
    if options.count:  # for `check`
        print(compile_items(work, options.jobs)[0])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        os.environ["TRITON_CACHE_DIR"] = str(cache)
        start = time.monotonic()
        compiled, cached, failed = compile_items(work, options.jobs)
        print(f"{compiled} compiled and {cached} found in {time.monotonic() - start:.0f} s; {len(failed)} failed")
        print("".join(f"failed: {why}\n" for why in failed), end="")
        count, size = pack(cache, options.output), options.output.stat().st_size
        print(f"{options.output}: {count} kernels, {size / 1e6:.1f} MB{'' if size < LIMIT else ': too large to carry'}")
        missing = 0
        if options.check:
            again = ["--sets", options.sets, "--jobs", str(options.jobs)]
            missing = check(options.output, again + (["--first", str(options.first)] if options.first else []))
            print(f"looked up again in another folder: {missing} not found")
    return 1 if failed or missing or size >= LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
