"""Kernels of steps that would run on an NVIDIA GPU, where there is none: which they are, and their machine code.

Layers run on tensors of the device "meta", which have shapes and no numbers; in the place of launches stands a note of
what would be launched (`recorded`). A driver that answers for the GPU lets Triton's own front compile it (`driver`,
`compile_request`), with the keys under which a run on that GPU looks for it in Triton's cache.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normforge.codegen.plan import Plan, is_data
from normforge.codegen.target import Device
from normforge.codegen.triton.emit import emit_triton
from normforge.ir.types import FULL, B, G, K, S
from normforge.kernels import direct
from normforge.kernels.backends import RUNNERS, Runner

H100 = Device(132, 50 << 20)
SHARED_BYTES = 232448  # that a program can have on sm_90
Dims = tuple[int, int, int, int]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Request(NamedTuple):
    """What is launched: a plan whose text has this title, at N, groups, channels a group, positions, for tensors that
    are all aligned or not."""

    plan: Plan
    title: str
    dims: Dims
    aligned: bool = True


class Kernel(NamedTuple):
    """What one binary is for: a kernel of the text, its constexpr arguments, warps, and alignment of addresses."""

    name: str
    blocks: tuple[tuple[str, int], ...]
    warps: int
    aligned: bool


def kernels(request: Request) -> list[Kernel]:
    """The binaries of a request, without making them."""
    plan = request.plan
    text = emit_triton(plan, plan.symbol, request.title)
    call = direct.PreparedLaunches(text, text.schedule.sizes(request.dims))
    return [
        Kernel(launch.kernel, tuple(sorted(blocks.items())), num_warps, request.aligned)
        for launch, (_, blocks, _), num_warps in zip(text.launches, call.launches, call.warps, strict=True)
    ]


# -- what would be launched

_notes: dict[Request, None] = {}


@dataclass(frozen=True)
class _Note:
    """In the place of a loaded plan."""

    plan: Plan
    title: str

    def __call__(self, tensors: Sequence[Tensor], dims: Dims) -> None:
        _notes[Request(self.plan, self.title, tuple(dims))] = None


@contextmanager
def recorded(device: Device = H100) -> Iterator[dict[Request, None]]:
    """What layers on the device "meta" would launch inside the block, in order, each once."""
    before = RUNNERS["triton"]
    RUNNERS["triton"] = Runner(_Note, ("meta",), describe=lambda _: device)
    _notes.clear()
    found: dict[Request, None] = {}
    try:
        yield found
    finally:
        found |= _notes
        RUNNERS["triton"] = before


# -- machine code


@contextmanager
def compilations() -> Iterator[list[tuple[str, bool]]]:
    """(name, found in the cache) of each kernel that Triton makes ready inside the block."""
    from triton import knobs

    made: list[tuple[str, bool]] = []
    before = knobs.compilation.listener
    knobs.compilation.listener = lambda *, src, cache_hit, **_: made.append((src.name, cache_hit))
    try:
        yield made
    finally:
        knobs.compilation.listener = before


class _Driver:
    """Answers as Triton's driver of one H100 would, and launches nothing."""

    def __init__(self, launcher: Callable[[Any, Any], Any] | None, real: Any = None) -> None:
        self._launcher = launcher
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (1, 1, 64, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES},
            launch=lambda *args: None,  # what launchers call from triton 3.8 on
            # Likewise: no C code for each list of argument types, but a description of it, made without a device.
            build_signature_metadata=getattr(real, "build_signature_metadata", None),
        )

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        """Makes the launcher of a kernel, where there is one to be made, and gives one that does nothing."""
        if self._launcher is not None:
            self._launcher(src, metadata)
        return lambda *args: None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return 9, 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def use_driver(libcuda: Path | None = None) -> None:
    """Let Triton take this process's device for an H100.

    Args:
        libcuda: a folder for a library with libcuda's names, from `stub_libcuda`; then Triton's launchers, C
            extensions that it builds for each list of argument types, are built and cached too.
    """
    from triton.runtime.driver import driver

    launcher = utils = None
    if libcuda is not None:
        ctypes.CDLL(str(libcuda / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        os.environ["TRITON_LIBCUDA_PATH"] = str(libcuda)
        from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

        utils = CudaUtils()
        launcher = CudaLauncher
    driver.set_active(_Driver(launcher, utils))


def stub_libcuda(folder: Path) -> Path:
    """A library that defines what Triton's C code calls of libcuda, for linking against; nothing of it is ever called.

    Raises:
        subprocess.CalledProcessError, OSError: no C compiler, or it fails.
    """
    from triton.backends import nvidia

    text = "".join(p.read_text() for p in Path(nvidia.__path__[0]).glob("driver.*"))
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", text)))
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names))
    made = folder / "libcuda.so.1"
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(made), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def compile_request(request: Request) -> None:
    """Have Triton's front make every kernel of a request ready, as the first call on the GPU would; `use_driver` was
    called."""
    from normforge.kernels.launch_cooperative import CooperativeObject
    from normforge.kernels.launch_triton import load

    loaded = load(request.plan, request.title)
    if isinstance(loaded, CooperativeObject):
        loaded = replace(loaded, properties=lambda index: PROPERTIES)
    loaded(tensors(request), request.dims)


PROPERTIES = SimpleNamespace(
    multi_processor_count=H100.processors,
    L2_cache_size=H100.l2_bytes,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_multiprocessor=233472,
)


def tensors(request: Request) -> list[Tensor]:
    """Operands and outputs on the CPU, which nobody touches, so that they take no memory."""
    plan, extents = request.plan, dict(zip((B, G, K, S), request.dims, strict=True))
    made = []
    for node in (*plan.operands, *(n for _, n in plan.outputs)):
        size = prod(extents.values()) if node.axes == FULL else prod(e for a, e in extents.items() if node.axes & a)
        dtype = DTYPES[plan.dtype] if is_data(node) else torch.float32
        made.append(torch.empty(size + 1, dtype=dtype)[0 if request.aligned else 1 :][:size])
    return made
