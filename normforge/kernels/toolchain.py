"""The system's C compiler: found, described, called. Nothing here knows about layers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from normforge.errors import BackendError

# No fast-math: NaN, infinities, denormals and the order of sums stay; the two flags only say that nobody reads
# errno or floating-point traps. Loops that pay are marked `omp simd` and vectorised at -O1 too; of what -O2 adds, two
# passes make fused multiply-adds and keep constants in registers, and the rest doubles the time for the same speed.
# Threading of jumps would copy whole loop bodies for a maximum and its gates before they become branch-free.
FLAGS = (
    "-O1",
    "-fexpensive-optimizations",
    "-fgcse",
    "-fno-thread-jumps",
    "-march=native",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-w",
)
INSTALL_HINT = "install one (Debian, Ubuntu: apt install gcc) or name it in the environment variable NORMFORGE_CC"


@cache
def find_compiler() -> str | None:
    """Path of the C compiler: $NORMFORGE_CC, $CC, gcc, clang or cc; None when there is none."""
    for name in (os.environ.get("NORMFORGE_CC"), os.environ.get("CC"), "gcc", "clang", "cc"):
        if name and (path := shutil.which(name)):
            return path
    return None


@cache
def fingerprint() -> str:
    """What decides the machine code besides the source: compiler, its version, flags, CPU features.

    Raises:
        BackendError: there is no compiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BackendError(f"the C backend needs a C compiler and found none: {INSTALL_HINT}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    return "\n".join((compiler, version, *FLAGS, cpu_features()))


def cpu_features() -> str:
    """The instruction sets of this CPU, as the kernel names them; the machine type where it does not."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").split("\n"):
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {' '.join(sorted(line.split(':', 1)[1].split()))}"
    return f"{platform.machine()} {platform.processor()}"


def compile_c(source: str, output: Path) -> None:
    """Compile C source to a shared object.

    Raises:
        BackendError: there is no compiler, or it refuses the source; the message has its first error.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BackendError(f"the C backend needs a C compiler and found none: {INSTALL_HINT}")
    command = [compiler, *FLAGS, "-x", "c", "-", "-o", str(output), "-lm"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.split("\n") if "error" in line), done.stderr[:200])
        raise BackendError(f"{compiler} could not compile a generated kernel: {first.strip()}")
