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
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.stage import Stage
from normforge.codegen.text import Lines
from normforge.codegen.triton.blocks import DIMS, SWEEP_THREADS, VECTOR_BYTES
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
from normforge.codegen.triton.names import Storage
from normforge.codegen.triton.prelude import prelude
from normforge.codegen.triton.resident import ResidentText
from normforge.codegen.triton.schedule import launch_groups, schedule
from normforge.codegen.triton.slab_plan import SLAB_KINDS, slabs_of
from normforge.codegen.triton.slabs import Slabs
from normforge.codegen.triton.small import SmallText
from normforge.codegen.triton.sweep import SweepText
from normforge.codegen.triton.swept import SweptText
from normforge.codegen.triton.walks import SweepWalk
from normforge.errors import BackendError
from normforge.ir.types import S

# The sizes and blocks that a stage may use beside N, G, K and S, in the order of its arguments.
SIGNATURES: dict[type[Kernel], tuple[tuple[str, ...], tuple[str, ...]]] = {
    SlabKernel: (("SLABS", "WIDTH", "Q0", "L0"), ("BLOCK_A", "BLOCK_E", "VECTOR", "MANY", "ALIGNED")),
    SweepKernel: (("Q", "L"), ("BLOCK_C", "BLOCK_S", "ALIGNED", "THREADS", "VECTOR")),
    SmallKernel: ((), ("BLOCK_P", "BLOCK_R", "BLOCK_Q")),  # and Q and L of each sweep whose partials it merges
}
FIXED = ("BLOCK_C", "BLOCK_S", "ALIGNED")  # what every sweep is given
# Of a tile, for each thread: what it loads of all tensors at once, and the sums that it keeps through the walk.
LOADED_BYTES = 64
KEPT_SUMS = 96


@lru_cache(maxsize=256)
def emit_triton(plan: Plan, name: str, title: str = "") -> TritonModule:
    """Text and launches of a plan; `name` starts the names of its kernels.

    Raises:
        BackendError: the plan is for float64, or cooperative and has nothing to gain from that.
    """
    if plan.dtype == "float64":
        raise BackendError("the Triton backend computes in float32: convert the input, or use backend='c' or 'eager'")
    storage = Storage(plan)
    texts: list[str] = []
    launches: list[Launch] = []
    functions: set[str] = set()
    stages = iter(emit_stages(plan, name, storage, functions))
    for group in launch_groups(plan):
        mine = [next(stages) for _ in group]
        parts = [stage for stage, _ in mine]
        launch = parts[0] if len(parts) == 1 else merge(parts, tuple(storage.shapes))
        texts += [text for _, text in mine]
        if plan.kind != "cooperative":
            texts.append(_kernel_text(launch))
        launches.append(launch)
    if plan.kind == "cooperative":
        whole = cooperative_launch(plan, name, launches, tuple(storage.shapes))
        body = cooperative_text(plan, whole)
        functions |= body.functions
        texts.append(str(body))
        launches = [whole]
    body_text = "\n".join(texts)
    source = f"{_comment(plan, title)}\n{prelude(functions)}\n{body_text}"
    return TritonModule(
        source,
        plan.layout,
        tuple(storage.operands.values()),
        tuple(storage.outputs),
        tuple(storage.work.values()),
        tuple(launches),
        ITEM_BYTES[plan.dtype],
        *_sweep_tiles(plan),
    )


def emit_stages(plan: Plan, name: str, storage: Storage, functions: set[str]) -> list[tuple[Launch, str]]:
    """Every stage of a plan, as the launch that it would be alone and the text of its device function, in the order of
    `launch_groups`; the functions of the prelude that they call are added to `functions`."""
    stages = []
    for number, kernel in enumerate(k for group in launch_groups(plan) for k in group):
        body = Stage("    ")
        if isinstance(kernel, SlabKernel):
            (SweptText if plan.kind == "swept" else ResidentText)(storage, kernel).emit(body)
            label = "slabs"
        elif isinstance(kernel, SweepKernel):
            SweepText(storage, kernel).emit(body)
            label = f"sweep{kernel.index + 1}"
        else:
            SmallText(storage, kernel).emit(body)
            label = "small"
        functions |= body.functions
        launch = _launch(kernel, f"{name}_{number}_{label}", body, storage)
        stages.append((launch, _stage_text(launch, body, storage)))
    return stages


def _sweep_tiles(plan: Plan) -> tuple[tuple[int, ...], tuple[SweepWalk, ...], Slabs | None]:
    """Tiles and walks of the sweeps, or how programs own slabs."""
    if plan.kind in SLAB_KINDS:
        return (), (), slabs_of(plan)
    count = range(len(plan.sweeps))
    return tuple(tile_elements(plan, i) for i in count), tuple(_walk(plan, i) for i in count), None


def tile_elements(plan: Plan, index: int) -> int:
    """Elements of a tile of a sweep. Several loads of 16 bytes a thread are under way at once, one of each tensor at
    least, and fewer of each where there are more tensors, so that registers are enough. Where sums run across the
    contiguous axis a thread keeps one for each element of a load: loads are narrower for many sums."""
    sweep = plan.sweeps[index]
    item = ITEM_BYTES[plan.dtype]
    vector = VECTOR_BYTES // item
    each = max(LOADED_BYTES // (VECTOR_BYTES * max(len(sweep.loads), 1)), 1)
    tile = SWEEP_THREADS * vector * (1 << each.bit_length() - 1)
    across = [n for n in sweep.sums if bool(n.reduced & S) == (plan.layout == "nhwc")]
    while vector > 1 and len(across) * vector > KEPT_SUMS:
        vector //= 2
        tile = SWEEP_THREADS * vector
    return tile


def _walk(plan: Plan, index: int) -> SweepWalk:
    """The walk that decides the chunks of a sweep."""
    return next(k.walk for k in schedule(plan) if isinstance(k, SweepKernel) and k.index == index)


def _launch(kernel: Kernel, name: str, body: Stage, storage: Storage) -> Launch:
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


def _stage_text(launch: Launch, body: Stage, storage: Storage) -> str:
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
    return "".join(f"# {line}\n" for line in f"{title}\n{plan}".strip().split("\n"))
