"""What the host does for emitted Triton text: which kernels it calls, with which sizes, blocks and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normforge.codegen.text import wrapped
from normforge.codegen.triton.blocks import NUM_WARPS, small_blocks
from normforge.codegen.triton.kernels import Kernel, SlabKernel, SmallKernel, SweepKernel
from normforge.codegen.triton.launches import TritonSchedule

OF_A_SWEEP = ("Q", "L")  # sizes that each sweep has its own of


@dataclass(frozen=True)
class Launch:
    """One kernel call. What its programs do is a device function of the text, the stage, which is given the number of
    the program; a merged launch runs several stages that do not depend on each other, one after the other in the
    numbers of its programs, and a cooperative one runs all stages.

    Attributes:
        kernel: name of the kernel in the text.
        does: the kernel of the plan that it is; None where it runs several.
        pointers: tensors in calling order, by pointer name.
        sizes: sizes passed after them, by name.
        blocks: names of the constexpr arguments.
        parts: what is merged, each as the launch that it would be alone; or the launches that a cooperative one does.
        cooperative: it runs all stages, and its programs wait for each other.
    """

    kernel: str
    does: Kernel | None
    pointers: tuple[str, ...]
    sizes: tuple[str, ...]
    blocks: tuple[str, ...]
    parts: tuple[Launch, ...] = ()
    cooperative: bool = False

    @property
    def stage(self) -> str:
        """The device function of a launch that is not merged."""
        return f"{self.kernel}_stage"

    @property
    def stages(self) -> tuple[Launch, ...]:
        """The launches of one stage each that it consists of, in order."""
        return tuple(stage for part in self.parts for stage in part.stages) or (self,)

    @property
    def sweep(self) -> int:
        """The sweep whose chunks a stage makes; -1 where it makes none."""
        return self.does.index if isinstance(self.does, SweepKernel) else -1

    @property
    def merges(self) -> tuple[int, ...]:
        """Numbers of the sweeps whose partials a stage merges."""
        return self.does.merges if isinstance(self.does, SmallKernel) else ()

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes as `TritonSchedule.sizes` names them: Q and L are those of the sweep."""
        return tuple(f"{name}{self.sweep}" if name in OF_A_SWEEP and self.sweep >= 0 else name for name in self.sizes)


@dataclass(frozen=True)
class TritonModule:
    """Emitted text and how to call it.

    Attributes:
        source: self-contained Python text.
        schedule: what is launched, and its sizes.
        operands, outputs: pointer names of the tensors in calling order.
        launches: in order.
    """

    source: str
    schedule: TritonSchedule
    operands: tuple[str, ...]
    outputs: tuple[str, ...]
    launches: tuple[Launch, ...]


def warps(launch: Launch, sizes: dict[str, int]) -> int:
    """Of a program of a launch."""
    return sizes["WARPS"] if isinstance(launch.does, SlabKernel) else NUM_WARPS


def merge(kernel: str, parts: Sequence[Launch], pointers: Sequence[str]) -> Launch:
    """One launch of several stages that do not depend on each other.

    Args:
        kernel: its name.
        parts: more than one; all but the last are for small values.
        pointers: every pointer of the text, in the order of arguments.
    """
    used = {p for part in parts for p in part.pointers}
    sizes = dict.fromkeys(name for part in parts for name in part.size_names)
    blocks = [part_block(name, i) for i, part in enumerate(parts) for name in part.blocks]
    return Launch(kernel, None, tuple(p for p in pointers if p in used), tuple(sizes), tuple(blocks), tuple(parts))


def part_block(name: str, part: int) -> str:
    """A constexpr argument of a part in the signature of a merged kernel."""
    return f"{name}_{part}"


def stage_call(stage: Launch, pid: str, blocks: tuple[str, ...]) -> list[str]:
    """The call of a stage for one program, in a kernel whose arguments have the names of `TritonSchedule.sizes`."""
    return wrapped(stage.stage, (pid, *stage.pointers, *stage.size_names, *blocks), "")


def constexprs(names: tuple[str, ...]) -> list[str]:
    """Parameters of a signature."""
    return [f"{name}: tl.constexpr" for name in names]


def kernel_head(launch: Launch) -> list[str]:
    """The lines that open a kernel, the last of them the one that its body stands under."""
    names = ", ".join(f'"{s}"' for s in launch.size_names)
    parameters = (*launch.pointers, *launch.size_names, *constexprs(launch.blocks))
    return ["", f"@triton.jit(do_not_specialize=[{names}])", *wrapped(f"def {launch.kernel}", parameters, ":")]


def arguments(launch: Launch, sizes: dict[str, int]) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(sizes in calling order, constexpr arguments by name, number of programs) of one launch.

    Args:
        launch: the launch.
        sizes: from `TritonSchedule.sizes`.
    """
    values = tuple(sizes[name] for name in launch.size_names)
    found = stage_blocks(launch, sizes)
    if not launch.parts:
        return values, found[0][0], found[0][1]
    blocks = {part_block(name, i): b for i, (stage, _) in enumerate(found) for name, b in stage.items()}
    return values, blocks, sum(programs for _, programs in found)


def stage_blocks(launch: Launch, sizes: dict[str, int]) -> list[tuple[dict[str, int], int]]:
    """(constexpr arguments by name, number of programs) of each stage of a launch. Blocks are as in the launches that
    a cooperative one does."""
    if launch.cooperative:
        return [found for part in launch.parts for found in stage_blocks(part, sizes)]
    small = [stage.does for stage in launch.stages if isinstance(stage.does, SmallKernel)]
    merging = iter(small_blocks(small, sizes))
    found = []
    for stage in launch.stages:
        assert stage.does is not None
        blocks: Mapping[str, int] = sizes
        if isinstance(stage.does, SmallKernel):
            blocks = {**sizes, **next(merging)}
        elif isinstance(stage.does, SweepKernel):
            own = ("BLOCK_C", "BLOCK_S", "THREADS", "VECTOR")
            blocks = sizes | {name: sizes[f"{name}{stage.sweep}"] for name in own}
        found.append(({name: blocks[name] for name in stage.blocks}, stage.does.programs.value(blocks)))
    return found
