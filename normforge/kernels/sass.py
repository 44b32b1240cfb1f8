"""The machine code of NVIDIA kernels, read: instructions with what they read and write, lines of the emitted text that
they come from, and loops. It is read from nvdisasm, which the triton wheel carries."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from normforge.errors import BackendError

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LINE = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
_REGISTER = re.compile(r"\b(U?)(R|P)(\d+)(\.64)?")
_NO_RESULT = ("ST", "RED", "BAR", "BRA", "EXIT", "NOP", "MEMBAR", "LDGSTS", "LDGDEPBAR", "DEPBAR", "CCTL", "CALL",
              "RET", "BSSY", "BSYNC", "WARPSYNC", "ERRBAR", "BPT", "UTMA", "SYNCS")  # fmt: skip
_PAIRS = ("IMAD.WIDE", "UIMAD.WIDE", "CS2R", "LDC.64", "ULDC.64", "F2I.S64", "F2I.U64")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        op: with its modifiers, such as "LDG.E.128".
        writes, reads: registers and predicates by name, each register of a wide access.
        target: the label that it jumps to or calls, or "".
        line: of the emitted text, or 0 where it comes from Triton's own library.
        immediate: the last hexadecimal number among its operands.
    """

    op: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    target: str = ""
    line: int = 0
    immediate: int = 0

    @cached_property
    def name(self) -> str:
        """The operation without modifiers."""
        return self.op.split(".")[0]

    @cached_property
    def bytes(self) -> int:
        """The bytes that one thread moves by an access to memory."""
        return _bytes(self.op)


@dataclass(frozen=True)
class Loop:
    """A stretch of instructions that ends in a jump to its start.

    Attributes:
        first, last: places of its instructions, both inside.
        depth: how many loops it lies in.
    """

    first: int
    last: int
    depth: int = 0

    def holds(self, other: Loop) -> bool:
        """True for a loop inside this one."""
        return other != self and self.first <= other.first and other.last <= self.last


@dataclass(frozen=True)
class Code:
    """The machine code of one kernel.

    Attributes:
        instructions: of the kernel, without the subroutines that it calls.
        subroutines: their instructions, by label.
        loops: outer ones first, in order of their starts.
    """

    instructions: tuple[Instruction, ...]
    subroutines: dict[str, tuple[Instruction, ...]]
    loops: tuple[Loop, ...]

    def own(self, loop: Loop | None) -> list[Instruction]:
        """The instructions of a loop, or of the kernel, that lie in no loop inside it; the loop at the end, in which a
        finished warp would be caught, counts for nothing."""
        whole = Loop(0, len(self.instructions) - 1, -1) if loop is None else loop
        inside = [other for other in self.loops if whole.holds(other)]
        places = range(whole.first, whole.last + 1)
        return [self.instructions[i] for i in places if not any(x.first <= i <= x.last for x in inside)]

    def inside(self, loop: Loop | None) -> list[Loop]:
        """The loops one level further in."""
        if loop is None:
            return [x for x in self.loops if x.depth == 0]
        return [x for x in self.loops if loop.holds(x) and x.depth == loop.depth + 1]


def disassemble(cubin: bytes) -> str:
    """The text of a compiled kernel's machine code, with the lines that it comes from.

    Raises:
        BackendError: nvdisasm cannot be run, or cannot read the code.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([str(tool), "-c", "-g", file.name], capture_output=True, text=True)
        except OSError as e:
            raise BackendError(f"cannot run {tool} ({e.strerror}): reinstall triton") from None
    if done.returncode:
        raise BackendError(f"nvdisasm cannot read a kernel: {done.stderr.strip()[:200]}")
    return done.stdout


def parse(text: str) -> Code:
    """The code of the one kernel of a disassembly."""
    instructions: list[Instruction] = []
    places: dict[str, int] = {}
    starts: dict[int, str] = {}
    line = 0
    for row in text.split("\n"):
        if label := re.match(r"^(\.L_\w+|\$\S+|[\w.]+):", row):
            places[label[1]] = len(instructions)
            if label[1].startswith("$"):
                starts[len(instructions)] = label[1]
        elif found := _LINE.match(row):
            line = int(found[2]) if found[1].startswith("<normforge ") else 0
        elif found := _INSTRUCTION.match(row):
            instructions.append(_instruction(found[1], found[2], found[3], line))
    end = min(starts, default=len(instructions))
    bounds = [*sorted(starts), len(instructions)]
    subroutines = {starts[i]: tuple(instructions[i:j]) for i, j in pairwise(bounds)}
    body = tuple(instructions[:end])
    last: dict[int, int] = {}
    for i, one in enumerate(body):
        start = places.get(one.target, end)
        if one.name == "BRA" and start < i:  # a jump to itself catches what has ended
            last[start] = i
    found_loops = [Loop(i, j) for i, j in sorted(last.items(), key=lambda x: (x[0], -x[1]))]
    loops = tuple(Loop(x.first, x.last, sum(y.holds(x) for y in found_loops)) for x in found_loops)
    return Code(body, subroutines, loops)


def _instruction(predicate: str | None, op: str, operands: str, line: int) -> Instruction:
    target = re.search(r"`\(([^)]+)\)", operands)
    parts = [] if target else [p.strip() for p in operands.split(",") if p.strip()]
    name = op.split(".")[0]
    writes: list[str] = []
    used = 0
    if parts and not name.startswith(_NO_RESULT):
        used = _results(name, parts)
        width = _bytes(op) // 4 if name in ("LDG", "LDS", "LD", "LDL", "LDSM") else 2 if op.startswith(_PAIRS) else 1
        writes = [r for part in parts[:used] for r in _registers(part, width if _is_register(part) else 1)]
    reads = [r for r in _registers(predicate or "")]
    for place, part in enumerate(parts[used:]):
        stored = name.startswith("ST") and place > 0
        reads += _registers(part, _bytes(op) // 4 if stored else 1)
    numbers = re.findall(r"(?<![\w\[])0x[0-9a-f]+(?![\w\]])", operands)
    value = int(numbers[-1], 16) if numbers else 0
    return Instruction(op, tuple(writes), tuple(reads), target[1] if target else "", line, value)


def _results(name: str, parts: Sequence[str]) -> int:
    """How many operands, counted from the first, are results: predicates beside a register, or two predicates."""
    count = 1
    if len(parts) > 1:
        if _is_register(parts[0]):
            return 2 if re.fullmatch(r"U?P\d", parts[1]) and name not in ("SEL", "FSEL", "USEL", "P2R") else 1
        if re.fullmatch(r"U?P\w", parts[0]) and (_is_register(parts[1]) or "SETP" in name or name == "PLOP3"):
            count = 2
    return count


def _is_register(part: str) -> bool:
    return re.fullmatch(r"U?R\w+(\.reuse)?", part) is not None


def _registers(part: str, width: int = 1) -> list[str]:
    found = []
    for uniform, file, number, wide in _REGISTER.findall(part):
        count = max(width, 2 if wide else 1) if file == "R" else 1
        found += [f"{uniform}{file}{int(number) + i}" for i in range(count)]
    return found


def _bytes(op: str) -> int:
    """Of one thread's share; 4 where the name says nothing."""
    found = re.search(r"\.(?:M88\.)?(128|64|[US]?16|[US]?8)(?:\.|$)", op)
    if op.startswith("LDSM"):
        matrices = re.search(r"\.([24])(?:\.|$)", op)
        return 4 * int(matrices[1]) if matrices else 4
    return int(found[1].lstrip("US")) // 8 if found else 4
