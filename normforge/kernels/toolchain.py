"""The system's C compiler: found, described, called. Nothing here knows about layers."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from normforge.errors import BackendError

# No fast-math: NaN, infinities, denormals and the order of sums stay; the two flags only say that nobody reads
# errno or floating-point traps. Nor does the compiler fuse multiplications and additions as it likes: a vector loop and
# the loop for what is left over would differ, and x·x − mean(x·x) of one element would not be zero. Fused where the
# source says so.
FLAGS = (
    "-march=native",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fopenmp-simd",
    "-fPIC",
    "-shared",
    "-w",
)
# Sweeps are written in vectors, loops over small values marked `omp simd`, which gcc vectorises at -O1 too, and once is
# enough: not what is left over as well. Of what -O2 adds, two passes keep constants in registers, and the rest doubles
# the time for the same speed. Threading of jumps would copy whole loop bodies for a maximum and its gates before they
# become branch-free.
GCC_FLAGS = (
    "-O1",
    "-fexpensive-optimizations",
    "-fgcse",
    "-fno-thread-jumps",
    "--param=vect-epilogues-nomask=0",
)
CLANG_FLAGS = ("-O2",)
# Threads are the driver's, and start-up files nobody's: half of the time of linking.
GCC_LINK = ("-nostdlib", "-fno-use-linker-plugin", "-lm", "-lgcc")
CLANG_LINK = ("-lm",)
INSTALL_HINT = "install one (Debian, Ubuntu: apt install gcc) or name it in the environment variable NORMFORGE_CC"


@cache
def find_compiler() -> str | None:
    """The path of the C compiler: $NORMFORGE_CC, $CC, gcc, clang or cc; None when there is none."""
    for name in (os.environ.get("NORMFORGE_CC"), os.environ.get("CC"), "gcc", "clang", "cc"):
        if name and (path := shutil.which(name)):
            return path
    return None


@cache
def identity() -> tuple[str, str]:
    """The path of the compiler, and the first line that it says of its version.

    Raises:
        BackendError: there is no compiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BackendError(f"the C backend needs a C compiler and found none: {INSTALL_HINT}")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return compiler, said.split("\n")[0]


def flags() -> tuple[str, ...]:
    """The flags that the compiler is given; macOS calls its clang gcc, so the version decides."""
    return (*(CLANG_FLAGS if _is_clang() else GCC_FLAGS), *FLAGS)


def _is_clang() -> bool:
    return "clang" in identity()[1].lower()


@cache
def fingerprint() -> str:
    """Everything beside the source that decides the machine code: compiler, its version, flags, CPU features.

    Raises:
        BackendError: there is no compiler.
    """
    return "\n".join((*identity(), *flags(), cpu_features()))


def cpu_features() -> str:
    """The instruction sets of this CPU, as the kernel names them; the machine type where it does not."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").split("\n"):
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {' '.join(sorted(line.split(':', 1)[1].split()))}"
    return f"{platform.machine()} {platform.processor()}"


def compile_c(source: str, output: Path, parts: int = 1) -> None:
    """Compile C source to a shared object, in several processes at once where it has several parts.

    Raises:
        BackendError: there is no compiler, or it refuses the source; the message has its first error.
    """
    compiler, _ = identity()
    link = CLANG_LINK if _is_clang() else GCC_LINK
    if parts == 1 or (os.cpu_count() or 1) == 1:
        _run([compiler, *flags(), "-x", "c", "-", "-o", str(output), *link], source)
        return
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(parts) as pool:
        objects = [str(Path(directory) / f"{i}.o") for i in range(parts)]
        commands = [
            [compiler, *flags(), "-c", f"-DPART={i}", "-x", "c", "-", "-o", name] for i, name in enumerate(objects)
        ]
        list(pool.map(_run, commands, [source] * parts))
        _run([compiler, *flags(), *objects, "-o", str(output), *link])


def compile_threaded(source: str, output: Path) -> None:
    """Compile C source that uses OpenMP's threads to a shared object.

    Raises:
        BackendError: as `compile_c`.
    """
    _run([identity()[0], *flags(), "-fopenmp", "-x", "c", "-", "-o", str(output)], source)


def _run(command: list[str], source: str = "") -> None:
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode:
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), command[command.index("-o") + 1])
        first = next((line for line in done.stderr.split("\n") if "error" in line), done.stderr[:200])
        why = first.strip() or f"it said nothing, and ended with {done.returncode}"
        raise BackendError(f"{command[0]} could not compile a generated kernel: {why}")
