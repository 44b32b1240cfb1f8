"""The text of compiled kernels, read: how wide accesses to memory are, and which are atomic."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.(?!v\d|[bfus]\d)[\w:]+)*(?:\.v(\d))?\.[bfus](\d+)\s+(.*);")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[[^\]]*\],\s*\[\s*(%rd\d+)[^\]]*\],\s*(0x[0-9a-f]+|\d+)")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(\w+)")
_AMD_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_REGISTER = re.compile(r"%rd\d+")


@dataclass(frozen=True)
class Accesses:
    """The widths of accesses to some tensors: bytes that one thread moves by each instruction."""

    loads: tuple[int, ...]
    stores: tuple[int, ...]


@dataclass(frozen=True)
class PtxAccess:
    """One instruction of PTX that reads or writes global memory.

    Attributes:
        load: it reads. bytes: one thread's share.
        line: of the emitted text, as the compiler notes it (triton 3.8 notes one a few lines on for wide loads); or 0.
        block: number of its basic block.
        wanted: its address follows from the parameters asked for.
    """

    load: bool
    bytes: int
    line: int
    block: int
    wanted: bool


def ptx_listing(ptx: str, kernel: str, parameters: Collection[int]) -> list[PtxAccess]:
    """The accesses of one kernel to global memory; asynchronous copies are loads.

    Addresses are followed through 64-bit registers from some pointer parameters, given by their positions in the
    signature.
    """
    wanted = {f"{kernel}_param_{i}" for i in parameters}
    rows = [row.split("//")[0].strip() for row in ptx.split("\n")]
    derived: set[str] = set()
    while True:  # a loop hands addresses on to lines above
        before = len(derived)
        for row in rows:
            registers = _REGISTER.findall(row)
            if not registers or _ACCESS.search(row) or _COPY.search(row):
                continue
            into, sources = registers[0], registers[1:]
            if any(f"[{name}]" in row or f"[{name}+" in row for name in wanted) or derived & set(sources):
                derived.add(into)
        if len(derived) == before:
            break
    file = re.search(r'\.file\s+(\d+)\s+"<normforge ', ptx)
    found: list[PtxAccess] = []
    line = block = 0
    for row in rows:
        if at := re.match(r"\.loc\s+(\d+)\s+(\d+)", row):
            line = int(at[2]) if file and at[1] == file[1] else 0
        elif row.startswith("$"):
            block += 1
        elif access := _ACCESS.search(row):
            access_op, vector, bits, operands = access.groups()
            address = re.search(r"\[\s*(%rd\d+)", operands)
            size = int(vector or 1) * int(bits) // 8
            found.append(PtxAccess(access_op == "ld", size, line, block, bool(address and address[1] in derived)))
        elif copy := _COPY.search(row):
            found.append(PtxAccess(True, int(copy[2], 0), line, block, copy[1] in derived))
    return found


def ptx_accesses(ptx: str, kernel: str, parameters: Collection[int]) -> Accesses:
    """The accesses through some pointer parameters of one kernel, by their positions in its signature."""
    found = [a for a in ptx_listing(ptx, kernel, parameters) if a.wanted]
    return Accesses(tuple(a.bytes for a in found if a.load), tuple(a.bytes for a in found if not a.load))


def amdgcn_accesses(text: str) -> Accesses:
    """All accesses to global memory of a kernel; its text does not say through which pointer."""
    found: dict[str, list[int]] = {"load": [], "store": []}
    for access, what in _AMD_ACCESS.findall(text):
        found[access].append(_AMD_BYTES.get(what, 1 if "byte" in what or "b8" in what else 2))
    return Accesses(tuple(found["load"]), tuple(found["store"]))


def atomics(text: str) -> tuple[str, ...]:
    """The atomic instructions of PTX or of AMD's assembly, each once."""
    return tuple(sorted(set(re.findall(r"\b(?:(?:atom|red)\.[\w.:]+|(?:global|flat|buffer)_atomic_\w+)", text))))


def is_float_atomic(instruction: str) -> bool:
    """True for arithmetic on floating-point numbers, whose result depends on the order of threads."""
    return re.search(r"[._](?:pk_)?(?:bf16|f16|f32|f64)(?:x2)?\b", instruction) is not None
