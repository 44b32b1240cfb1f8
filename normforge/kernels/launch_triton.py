"""Triton kernels made at run time: emit, execute the text, launch; and the same compiled ahead of time."""

from __future__ import annotations

import linecache
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normforge.codegen.plan import Plan
from normforge.codegen.triton.blocks import NUM_WARPS
from normforge.codegen.triton.division import COUNTERS
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.launch import TritonModule
from normforge.errors import BackendError
from normforge.ir.types import FULL, FloatClass
from normforge.kernels import direct
from normforge.kernels.assembly import atomics
from normforge.kernels.empty import addressed, allocator
from normforge.kernels.launch_cooperative import CooperativeObject
from normforge.kernels.sass import disassemble

INSTALL_HINT = "install one from 3.6 to 3.9 (pip install 'triton>=3.6,<3.10'), or use backend='c' or 'eager'"
# Part of what the machine code depends on; the default changes in 3.10.
OPTIONS: dict[str, Any] = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
# Told that it may use every register, ptxas does not spill a few of them for the sake of occupancy.
CUDA_OPTIONS = OPTIONS | {"maxnreg": 255}
MAX_SHAPES = 1024  # whose prepared calls an object keeps


def warp_options(options: dict[str, Any], num_warps: int) -> dict[str, Any]:
    """Options of a launch of this many warps: together they cannot have more registers than a processor."""
    found = {"num_warps": num_warps}
    return found | {"maxnreg": min(255, 65536 // (32 * num_warps))} if "maxnreg" in options else found


@dataclass
class TritonObject:
    """One derivative of a layer in one dtype and layout, ready to call.

    Calling writes the outputs of the plan; the arguments are contiguous in the plan's layout and have its dtypes.
    Nothing waits for the device, and one block of memory at most is taken from torch's allocator.

    The first call of a shape goes through Triton's front, which compiles what is not compiled; later ones launch the
    compiled kernels themselves, unless somebody listens to Triton's launch hooks.

    Attributes:
        module: text and launches.
        functions: what the text defines, by name.
        stream: the handle of the current stream of a device.
    """

    module: TritonModule
    functions: dict[str, Any]
    stream: Callable[[int], int] = direct.current_stream
    _calls: dict[tuple[Any, ...], direct.PreparedLaunches] = field(default_factory=dict)

    def __call__(self, tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        """Run on operands followed by outputs; `dims` are N, groups, channels a group, positions."""
        index = tensors[0].get_device()  # -1 for a CPU, where the interpreter runs
        call = self._calls.get((index, dims))
        if call is None:
            if len(self._calls) >= MAX_SHAPES:
                self._calls.clear()
            call = self._calls[index, dims] = direct.PreparedLaunches(self.module, self.module.schedule.sizes(dims))
        # Triton launches on the current device, which need not be that of the tensors.
        if index >= 0 and torch.cuda.current_device() != index:
            with torch.cuda.device(index):
                self._launch(call, tensors, index)
        else:
            self._launch(call, tensors, index)

    def _launch(self, call: direct.PreparedLaunches, tensors: Sequence[Tensor], index: int) -> None:
        given = tensors
        if call.total:
            empty = allocator(tensors[0].device)
            given = [*tensors, empty((call.total,), (1,), torch.float32)]
        given, addresses = addressed(given)
        aligned = direct.aligned(addresses)
        kernels = call.ready.get(aligned)
        if kernels is None or direct.hooked():
            call.ready[aligned] = self._first(call, given, aligned)
            return
        if call.total:
            block = addresses.pop()
            addresses += [block + offset for offset in call.offsets]
        direct.launch(kernels, addresses, self.stream(index))

    def _first(
        self, call: direct.PreparedLaunches, given: Sequence[Tensor], aligned: bool
    ) -> list[direct.Ready] | None:
        """Launch through Triton's front. The compiled kernels; None under the interpreter."""
        places = [*given]
        if call.total:
            block = places.pop()
            places += [block[first:last] for first, last in call.work]
        options = OPTIONS if torch.version.hip else CUDA_OPTIONS
        kernels: list[direct.Ready] = []
        for launch, (values, blocks, programs), slots, num_warps in zip(
            self.module.launches, call.launches, call.slots, call.warps, strict=True
        ):
            function = (self.functions if aligned else self._at_any_address)[launch.kernel]
            compiled = options | warp_options(options, num_warps)
            kernel = function[(programs,)](*(places[i] for i in slots), *values, **blocks, **compiled)
            if made := direct.ready(kernel, programs, slots, (*values, *blocks.values())):
                kernels.append(made)
        return kernels if len(kernels) == len(call.launches) else None

    @cached_property
    def _at_any_address(self) -> dict[str, Any]:
        """The kernels for tensors that are not all aligned."""
        return {
            launch.kernel: direct.at_any_address(self.functions[launch.kernel], launch.pointers)
            for launch in self.module.launches
        }


_lock = threading.Lock()
_objects: dict[Plan, TritonObject | CooperativeObject] = {}


def load(plan: Plan, title: str) -> TritonObject | CooperativeObject:
    """The callable of a plan.

    Raises:
        BackendError: there is no triton, or the plan is for float64.
    """
    twin = load(replace(plan, kind="multi-launch"), title) if plan.kind == "cooperative" else None
    with _lock:
        if plan not in _objects:
            module = emit_triton(plan, plan.symbol, title)
            functions = execute_text(module.source, plan.symbol)
            if twin is None:
                _objects[plan] = TritonObject(module, functions)
            else:
                function = functions[module.launches[0].kernel]
                _objects[plan] = CooperativeObject(plan, module, function, twin, CUDA_OPTIONS)
        return _objects[plan]


def require_triton() -> Any:
    """The triton package.

    Raises:
        BackendError: it cannot be imported.
    """
    try:
        import triton
    except ImportError as e:
        raise BackendError(f"the Triton backend needs triton and cannot import it ({e}): {INSTALL_HINT}") from None
    return triton


def execute_text(text: str, name: str) -> dict[str, Any]:
    """The names that emitted text defines. Triton reads the source of each function through `linecache`, under a
    file name that does not exist.

    Raises:
        BackendError: there is no triton.
    """
    require_triton()
    file = f"<normforge {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": f"normforge_generated.{name}"}
    exec(compile(text, file, "exec"), names)
    return names


# -- ahead of time

# What a compiled kernel is specialised for where no shape is given: N, groups, channels a group, positions.
TYPICAL_DIMS = (8, 32, 2, 56 * 56)
# The same for plans whose programs hold slabs: the first that fits.
SMALLER_DIMS = ((8, 32, 2, 28 * 28), (8, 32, 2, 14 * 14), (8, 32, 1, 8 * 8), (1, 8, 2, 4 * 4))
_POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel compiled for a target.

    Attributes:
        name: of the function.
        asm: the code by its form: "ttir", "llir" and so on as text; "ptx" and "cubin", or "amdgcn" and "hsaco".
        warps: of a program.
        shared: bytes of shared memory of a program.
    """

    name: str
    asm: dict[str, Any]
    warps: int
    shared: int


def compile_aot(
    plan: Plan, target: int | str = 90, *, title: str = "", dims: tuple[int, int, int, int] | None = None
) -> list[CompiledKernel]:
    """Compile every kernel of a plan without a device.

    Args:
        plan: for target "triton".
        target: a compute capability of NVIDIA (80, 90, 100), or an AMD architecture ("gfx942").
        title: the first comment of the text.
        dims: N, groups, channels a group, positions; they decide the blocks. By default those of a usual image, or of
            a smaller one where the plan needs that.

    Raises:
        BackendError: there is no triton, it only interprets (TRITON_INTERPRET=1), or the plan is for float64.
        ShapeError: no tile of a resident plan holds a slab of these dims.
    """
    options = _options(target)
    module = emit_triton(plan, plan.symbol, title)
    functions = execute_text(module.source, plan.symbol)
    call = direct.PreparedLaunches(module, module.schedule.sizes(dims or typical_dims(module)))
    full = set(full_pointers(plan, module))
    compiled = []
    for launch, (_, blocks, _), num_warps in zip(module.launches, call.launches, call.warps, strict=True):
        signature = {p: _POINTERS[plan.dtype] if p in full else "*fp32" for p in launch.pointers}
        if COUNTERS in signature:
            signature[COUNTERS] = "*i32"
        signature |= dict.fromkeys(launch.size_names, "i32") | dict.fromkeys(launch.blocks, "constexpr")
        options |= warp_options(options, num_warps)
        compiled.append(compile_function(functions[launch.kernel], signature, blocks, target, options))
    return compiled


def _options(target: int | str) -> dict[str, Any]:
    return dict(CUDA_OPTIONS if isinstance(target, int) else OPTIONS)


def compile_function(
    function: Any, signature: dict[str, str], blocks: dict[str, Any], target: int | str, options: dict[str, Any]
) -> CompiledKernel:
    """Compile one kernel without a device.

    Args:
        function: what `triton.jit` made.
        signature: the type of each argument, in order: "*fp32", "i32", "constexpr" and so on. Pointers are aligned.
        blocks: the values of those that are constexpr.
        target: as of `compile_aot`.
        options: of Triton, with num_warps.

    Raises:
        BackendError: there is no triton, or it only interprets (TRITON_INTERPRET=1).
    """
    triton = require_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    gpu = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget("hip", target, 64)
    if not isinstance(function, triton.runtime.jit.JITFunction):
        raise BackendError("TRITON_INTERPRET is set, so nothing can be compiled: unset it")
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned: dict[tuple[int, ...], Any] = {(i,): [["tt.divisibility", 16]] for i in pointers}
    made = triton.compile(ASTSource(function, signature, constexprs=blocks, attrs=aligned), target=gpu, options=options)
    return CompiledKernel(function.fn.__name__, dict(made.asm), options["num_warps"], made.metadata.shared)


def typical_dims(module: TritonModule) -> tuple[int, int, int, int]:
    """A usual shape that a plan can run."""
    if module.schedule.slabs is None:
        return TYPICAL_DIMS
    return next(dims for dims in (TYPICAL_DIMS, *SMALLER_DIMS) if module.schedule.slabs.blocks(dims))


def emit_ptx(plan: Plan, capability: int = 90, *, title: str = "") -> str:
    """The PTX of every kernel of a plan, one after the other.

    Raises:
        BackendError: as `compile_aot`.
    """
    return "\n".join(str(k.asm["ptx"]) for k in compile_aot(plan, capability, title=title))


def emit_sass(plan: Plan, capability: int = 90, *, title: str = "") -> str:
    """The machine code of every kernel of a plan, one after the other, as nvdisasm writes it.

    Raises:
        BackendError: as `compile_aot`, or nvdisasm cannot be run.
    """
    return "\n".join(disassemble(k.asm["cubin"]) for k in compile_aot(plan, capability, title=title))


def full_pointers(plan: Plan, module: TritonModule) -> list[str]:
    """The names of pointers to tensors in the dtype of x."""
    nodes = [*plan.operands, *(n for _, n in plan.outputs)]
    names = [*module.operands, *module.outputs]
    return [p for p, n in zip(names, nodes, strict=True) if n.axes == FULL and n.type.cls is FloatClass.DATA]


@dataclass(frozen=True)
class Resources:
    """The resources that a compiled kernel takes, and what its code holds.

    Attributes:
        registers: a thread's (NVIDIA) or a lane's vector registers (AMD).
        spills: bytes of stack (NVIDIA) or spilled vector registers (AMD); 0 is wanted.
        float64: double-precision instructions are there.
        atomics: the atomic instructions.
        narrow_offsets: pointer offsets that are not 64 bits wide.
    """

    registers: int
    spills: int
    float64: bool
    atomics: tuple[str, ...]
    narrow_offsets: int


def resources(kernel: CompiledKernel) -> Resources:
    """The resources of a compiled kernel, read from its text; for NVIDIA's with the cuobjdump of the triton wheel.

    Raises:
        BackendError: cuobjdump cannot be run.
    """
    offsets = [line.split(" loc(")[0].rstrip() for line in kernel.asm["ttir"].split("\n") if "tt.addptr" in line]
    narrow = sum(not line.endswith(("xi64>", ", i64")) for line in offsets)
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers, spills = (_number(rf"\.{key}:\s+(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count"))
        return Resources(registers, spills, "_f64" in text, atomics(text), narrow)
    tool = Path(require_triton().__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        try:
            usage = subprocess.run(command, capture_output=True, text=True).stdout
        except OSError as e:
            raise BackendError(f"cannot run {tool} ({e.strerror}): reinstall triton") from None
    ptx = kernel.asm["ptx"]
    return Resources(_number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), ".f64" in ptx, atomics(ptx), narrow)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise BackendError(f"the compiler's report has no {pattern!r}: triton 3.6 to 3.9 are known to work")
    return int(found[1])
