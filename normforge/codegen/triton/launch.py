"""What the host does for emitted Triton text: which kernels it calls, with which sizes, blocks and grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normforge.codegen.text import wrapped
from normforge.codegen.triton.blocks import DIMS, NUM_WARPS, extent, slab_sizes, small_blocks, sweep_sizes
from normforge.codegen.triton.kernels import Kernel, SlabKernel, SmallKernel, SweepKernel
from normforge.codegen.triton.names import Work
from normforge.codegen.triton.slabs import Slabs, cdiv
from normforge.codegen.triton.tiles import ALIGNMENTS
from normforge.codegen.triton.walks import SweepWalk

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
        """The sizes as `TritonModule.shape` names them: Q and L are those of the sweep."""
        return tuple(f"{name}{self.sweep}" if name in OF_A_SWEEP and self.sweep >= 0 else name for name in self.sizes)


@dataclass(frozen=True)
class TritonModule:
    """Emitted text and how to call it.

    Attributes:
        source: self-contained Python text.
        layout: "nchw" or "nhwc".
        operands, outputs: pointer names of the tensors in calling order.
        work: float32 arrays that a call allocates.
        launches: in order.
        item_bytes: of an element of a full tensor.
        tiles: elements of a tile, by sweep.
        walks: how each sweep is walked.
        slabs: how programs own slabs; None where they do not.
    """

    source: str
    layout: str
    operands: tuple[str, ...]
    outputs: tuple[str, ...]
    work: tuple[Work, ...]
    launches: tuple[Launch, ...]
    item_bytes: int
    tiles: tuple[int, ...]
    walks: tuple[SweepWalk, ...]
    slabs: Slabs | None = None

    def shape(self, dims: tuple[int, int, int, int]) -> dict[str, int]:
        """Every size and block of a call: N, G, K, S, C, and Q, L, BLOCK_C, BLOCK_S, THREADS, VECTOR of each sweep by
        number. ALIGNED says what the contiguous extent is a multiple of. TILE, the channels that a cooperative launch
        does at a time, is all of them, where its device has no say.

        Args:
            dims: N, groups, channels a group, positions.
        """
        sizes = dict(zip(DIMS, dims, strict=True))
        sizes["C"] = sizes["TILE"] = sizes["G"] * sizes["K"]
        if self.slabs is not None:
            return sizes | slab_sizes(self.slabs, dims)
        contiguous = sizes["S"] if self.layout == "nchw" else sizes["C"]
        sizes["ALIGNED"] = next(a for a in ALIGNMENTS if contiguous % a == 0)
        for i, (tile, walk) in enumerate(zip(self.tiles, self.walks, strict=True)):
            found = sweep_sizes(self.layout, walk, tile, sizes, self.item_bytes)
            sizes |= {f"{name}{i}": value for name, value in found.items()}
        return sizes


def warps(launch: Launch, sizes: dict[str, int]) -> int:
    """Of a program of a launch."""
    return sizes["WARPS"] if isinstance(launch.does, SlabKernel) else NUM_WARPS


def merge(parts: Sequence[Launch], pointers: Sequence[str]) -> Launch:
    """One launch of several stages that do not depend on each other.

    Args:
        parts: more than one; all but the last are for small values.
        pointers: every pointer of the text, in the order of arguments.
    """
    used = {p for part in parts for p in part.pointers}
    sizes = dict.fromkeys(name for part in parts for name in part.size_names)
    blocks = [part_block(name, i) for i, part in enumerate(parts) for name in part.blocks]
    stem, number, _ = parts[0].kernel.rsplit("_", 2)
    labels = "_".join(part.kernel.rsplit("_", 1)[1] for part in parts)
    kernel = f"{stem}_{number}_{labels}"
    given = tuple(p for p in pointers if p in used)
    return Launch(kernel, None, given, tuple(sizes), tuple(blocks), tuple(parts))


def part_block(name: str, part: int) -> str:
    """A constexpr argument of a part in the signature of a merged kernel."""
    return f"{name}_{part}"


def stage_call(stage: Launch, pid: str, blocks: tuple[str, ...]) -> list[str]:
    """The call of a stage for one program, in a kernel whose arguments have the names of `TritonModule.shape`."""
    return wrapped(stage.stage, (pid, *stage.pointers, *stage.size_names, *blocks), "")


def constexprs(names: tuple[str, ...]) -> list[str]:
    """Parameters of a signature."""
    return [f"{name}: tl.constexpr" for name in names]


def kernel_head(launch: Launch) -> list[str]:
    """The lines that open a kernel, the last of them the one that its body stands under."""
    names = ", ".join(f'"{s}"' for s in launch.size_names)
    parameters = (*launch.pointers, *launch.size_names, *constexprs(launch.blocks))
    return ["", f"@triton.jit(do_not_specialize=[{names}])", *wrapped(f"def {launch.kernel}", parameters, ":")]


def workspace(module: TritonModule, sizes: dict[str, int]) -> tuple[list[tuple[int, int]], int]:
    """First and last element of each array of the workspace, each on a line of its own, and how many there are in all.

    Args:
        module: the module.
        sizes: from `TritonModule.shape`.
    """
    places, total = [], 0
    for array in module.work:
        count = math.prod(sizes[name] for name in array.shape)
        places.append((total, total + count))
        total += cdiv(count, 64) * 64
    return places, total


def arguments(launch: Launch, sizes: dict[str, int]) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(sizes in calling order, constexpr arguments by name, number of programs) of one launch.

    Args:
        launch: the launch.
        sizes: from `TritonModule.shape`.
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
        blocks: Mapping[str, int] = sizes
        if isinstance(stage.does, SmallKernel):
            blocks = next(merging)
            programs = cdiv(extent(stage.does.space, sizes), blocks["BLOCK_P"])
        elif isinstance(stage.does, SweepKernel):
            i = stage.sweep
            blocks = sizes | {name: sizes[f"{name}{i}"] for name in ("BLOCK_C", "BLOCK_S", "THREADS", "VECTOR")}
            programs = sizes["N"] * stage.does.walk.beside(sizes, blocks["BLOCK_C"]) * sizes[f"Q{i}"]
        else:
            programs = sizes["PROGRAMS"]
        found.append(({name: blocks[name] for name in stage.blocks}, programs))
    return found
