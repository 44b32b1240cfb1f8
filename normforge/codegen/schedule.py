"""What one call of a plan launches: told by the plan, before there is any source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.index import Count


@dataclass(frozen=True)
class WorkArray:
    """An array of the workspace, which one stage writes and later ones read.

    Attributes:
        name: in the source.
        dtype: of its elements.
        shape: names of sizes.
        what: it holds, for people.
        written, read: the names of the stages that do.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    what: str
    written: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    @property
    def count(self) -> Count:
        """Of its elements."""
        return Count(self.shape)


@dataclass(frozen=True)
class PlannedStage:
    """What the programs of a launch do, or some of them where it has several stages.

    Formulas are in N, G, K, C and S (samples, groups, channels a group, channels, positions), in Q (parts of the
    positions of a sample, each of L) and in blocks, whose names are those of the stage alone.

    Attributes:
        name: a number, which tells the stages of a plan apart, and what it is.
        what: it does, for people.
        programs: how many do it.
        chunks: how the positions of samples are divided among them: the name of the number of parts, and that number.
    """

    name: str
    what: str
    programs: Count
    chunks: tuple[tuple[str, Count], ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.what, f"programs = {self.programs}", *(f"{name} = {n}" for name, n in self.chunks)])


@dataclass(frozen=True)
class PlannedLaunch:
    """One launch of a kernel, or one call of a compiled function.

    Attributes:
        name: of the kernel, without the symbol of the plan.
        stages: that it runs.
        what: it does, for people, where the stages do not say it.
    """

    name: str
    stages: tuple[PlannedStage, ...] = ()
    what: str = ""

    def __str__(self) -> str:
        if len(self.stages) == 1:
            return f"{self.name}: {self.stages[0]}"
        what = self.what or f"{len(self.stages)} stages that do not wait for each other"
        return "\n".join([f"{self.name}: {what}", *(f"    {stage.name}: {stage}" for stage in self.stages)])


@dataclass(frozen=True)
class Schedule:
    """The launches of one call in order, and the workspace between them.

    Attributes:
        launches: at least one.
        arrays: of the workspace, in the order in which they lie.
    """

    launches: tuple[PlannedLaunch, ...]
    arrays: tuple[WorkArray, ...] = ()

    def workspace(self, dims: tuple[int, int, int, int]) -> int:
        """Bytes of the memory that a call is given for the arrays at N, groups, channels a group, positions."""
        return 0

    def __str__(self) -> str:
        return "\n".join(
            [*(f"  launch {i + 1}, {launch}" for i, launch in enumerate(self.launches)), *_arrays_text(self.arrays)]
        )


def one_call(*, keeps_workspace: bool = False) -> Schedule:
    """The schedule of a plan that is compiled to one function."""
    kept = "; the workspace is kept from call to call" if keeps_workspace else ""
    return Schedule((PlannedLaunch("call", (), f"all sweeps, and the small values between them{kept}"),))


def _arrays_text(arrays: Iterable[WorkArray]) -> list[str]:
    """A line for all arrays of a shape that the same stages write and read."""
    alike: dict[tuple[object, ...], list[WorkArray]] = {}
    for array in arrays:
        alike.setdefault((array.dtype, array.shape, array.written, array.read), []).append(array)
    return [
        f"  workspace {', '.join(a.name for a in mine)}: {mine[0].dtype}[{mine[0].count}], "
        f"written by {', '.join(mine[0].written)}, read by {', '.join(mine[0].read) or 'nothing'}"
        for mine in alike.values()
    ]
