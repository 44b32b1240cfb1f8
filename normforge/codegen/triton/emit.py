"""The Triton target: one self-contained file a derivative, from the plan, and how to launch it.

Plan kind: multi-launch. One stage a sweep, and between them one a space of small values, each a device function;
stages that do not wait for each other share a launch. Any shape, no atomics, results that depend on nothing but the
shape. Plan kinds: resident and swept. One stage whose programs hold whole slabs, or walk theirs, and those of small
values around it. Plan kind: cooperative. The stages of multi-launch in one launch; see `cooperative`.
"""

from __future__ import annotations

from functools import lru_cache

from normforge.codegen.index import extents
from normforge.codegen.plan import Plan
from normforge.codegen.stage import Stage
from normforge.codegen.text import Lines
from normforge.codegen.triton.blocks import DIMS
from normforge.codegen.triton.cooperative import cooperative_launch, cooperative_text
from normforge.codegen.triton.kernels import Kernel, SlabKernel, SmallKernel, SweepKernel
from normforge.codegen.triton.launch import (
    OF_A_SWEEP,
    Launch,
    TritonModule,
    constexprs,
    kernel_head,
    merge,
    part_block,
    stage_call,
)
from normforge.codegen.triton.launches import TritonStage, triton_schedule
from normforge.codegen.triton.names import TritonStorage
from normforge.codegen.triton.prelude import prelude
from normforge.codegen.triton.resident import ResidentText
from normforge.codegen.triton.small import SmallText
from normforge.codegen.triton.sweep import SweepText
from normforge.codegen.triton.swept import SweptText
from normforge.errors import BackendError

# The sizes and blocks that a stage may use beside N, G, K and S, in the order of its arguments.
SIGNATURES: dict[type[Kernel], tuple[tuple[str, ...], tuple[str, ...]]] = {
    SlabKernel: (("SLABS", "WIDTH", "Q0", "L0"), ("BLOCK_A", "BLOCK_E", "VECTOR", "MANY", "ALIGNED")),
    SweepKernel: (("Q", "L"), ("BLOCK_C", "BLOCK_S", "ALIGNED", "THREADS", "VECTOR")),
    SmallKernel: ((), ("BLOCK_P", "BLOCK_R", "BLOCK_Q")),  # and Q and L of each sweep whose partials it merges
}
FIXED = ("BLOCK_C", "BLOCK_S", "ALIGNED")  # what every sweep is given


@lru_cache(maxsize=256)
def emit_triton(plan: Plan, name: str, title: str = "") -> TritonModule:
    """Text and launches of a plan; `name` starts the names of its kernels.

    Raises:
        BackendError: the plan is for float64, or cooperative and has nothing to gain from that.
    """
    if plan.dtype == "float64":
        raise BackendError("the Triton backend computes in float32: convert the input, or use backend='c' or 'eager'")
    schedule = triton_schedule(plan)
    storage = TritonStorage(plan, schedule)
    texts: list[str] = []
    launches: list[Launch] = []
    functions: set[str] = set()
    for planned in schedule.groups:
        stages = [_stage(stage, name, storage, functions) for stage in planned.stages]
        texts += [text for _, text in stages]
        parts = [launch for launch, _ in stages]
        kernel = f"{name}_{planned.name}"
        launches.append(parts[0] if len(parts) == 1 else merge(kernel, parts, tuple(storage.shapes)))
        if plan.kind != "cooperative":
            texts.append(_kernel_text(launches[-1]))
    if plan.kind == "cooperative":
        whole = cooperative_launch(plan, f"{name}_{schedule.launches[-1].name}", launches, tuple(storage.shapes))
        body = cooperative_text(plan, whole)
        functions |= body.functions
        texts.append(str(body))
        launches = [whole]
    body_text = "\n".join(texts)
    source = f"{_comment(plan, title)}\n{prelude(functions)}\n{body_text}"
    operands = tuple(storage.operands.values())
    return TritonModule(source, schedule, operands, tuple(storage.outputs), tuple(launches))


def _stage(stage: TritonStage, name: str, storage: TritonStorage, functions: set[str]) -> tuple[Launch, str]:
    """A stage as the launch that it would be alone, and the text of its device function; the functions of the prelude
    that it calls are added to `functions`."""
    body = Stage("    ")
    kernel = stage.kernel
    if isinstance(kernel, SlabKernel):
        (SweptText if kernel.slabs.loop else ResidentText)(storage, kernel).emit(body)
    elif isinstance(kernel, SweepKernel):
        SweepText(storage, kernel).emit(body)
    else:
        SmallText(storage, kernel).emit(body)
    functions |= body.functions
    launch = _launch(kernel, f"{name}_{stage.name}", body, storage)
    return launch, _stage_text(launch, body, storage)


def _launch(kernel: Kernel, name: str, body: Stage, storage: TritonStorage) -> Launch:
    pointers = tuple(p for p in storage.shapes if p in body.arrays)
    sizes, blocks = SIGNATURES[type(kernel)]
    if isinstance(kernel, SmallKernel):
        sizes = tuple(f"{s}{i}" for i in kernel.merges for s in OF_A_SWEEP)
    always = FIXED if isinstance(kernel, SweepKernel) else ()
    return Launch(
        name, kernel, pointers,
        (*DIMS, *(s for s in sizes if s in body.sizes)),
        tuple(b for b in blocks if b in body.constexprs or b in always),
    )  # fmt: skip


def _stage_text(launch: Launch, body: Stage, storage: TritonStorage) -> str:
    out = Lines("    ")
    out("", "@triton.jit", f"def {launch.stage}(", "    pid,")
    for pointer in launch.pointers:
        out(f"    {pointer},  # {storage.shapes[pointer]}")
    out(f"    {', '.join(launch.sizes)},", f"    {', '.join(constexprs(launch.blocks))},", "):")
    return str(out) + "".join(f"    {line}\n" if line else "\n" for line in str(body).rstrip().split("\n"))


def _kernel_text(launch: Launch) -> str:
    """A kernel that runs one stage, or several whose programs follow each other."""
    out = Lines("    ")
    *lines, last = kernel_head(launch)
    out(*lines)
    with out.block(last, ""):
        if not launch.parts:
            out(*stage_call(launch, "tl.program_id(0)", launch.blocks))
            return str(out)
        out("pid = tl.program_id(0)", "C = G * K")
        end = ""
        for i, part in enumerate(launch.parts[:-1]):
            assert isinstance(part.does, SmallKernel)
            points = " * ".join(extents(part.does.space)) or "1"
            before, end = end, f"end_{i}"
            out(f"{end} = {f'{before} + ' if before else ''}tl.cdiv({points}, {part_block('BLOCK_P', i)})")
        for i, part in enumerate(launch.parts):
            blocks = tuple(part_block(name, i) for name in part.blocks)
            head = "else:" if i == len(launch.parts) - 1 else f"{'elif' if i else 'if'} pid < end_{i}:"
            with out.block(head, ""):
                out(*stage_call(part, f"pid - end_{i - 1}" if i else "pid", blocks))
    return str(out)


def _comment(plan: Plan, title: str) -> str:
    return "".join(f"# {line}\n" for line in f"{title}\n{plan.summary}".strip().split("\n"))
