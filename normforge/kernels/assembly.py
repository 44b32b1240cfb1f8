"""What the text of a compiled kernel says: how wide its accesses to memory are, and which are atomic."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.(?!v\d|[bfus]\d)[\w:]+)*(?:\.v(\d))?\.[bfus](\d+)\s+(.*);")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(\w+)")
_AMD_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_REGISTER = re.compile(r"%rd\d+")


@dataclass(frozen=True)
class Accesses:
    """Bytes of each instruction that reads or writes some tensors: one thread's share of one access."""

    loads: tuple[int, ...]
    stores: tuple[int, ...]


def ptx_accesses(ptx: str, kernel: str, parameters: Collection[int]) -> Accesses:
    """The accesses through some pointer parameters of one kernel, by their positions in its signature.

    Addresses are followed from the parameters through 64-bit registers.
    """
    wanted = {f"{kernel}_param_{i}" for i in parameters}
    lines = [line.split("//")[0].strip() for line in ptx.split("\n")]
    derived: set[str] = set()
    while True:  # a loop hands addresses on to lines above
        before = len(derived)
        for line in lines:
            registers = _REGISTER.findall(line)
            if not registers or _ACCESS.search(line):
                continue
            into, sources = registers[0], registers[1:]
            if any(f"[{name}]" in line or f"[{name}+" in line for name in wanted) or derived & set(sources):
                derived.add(into)
        if len(derived) == before:
            break
    found: dict[str, list[int]] = {"ld": [], "st": []}
    for line in lines:
        if access := _ACCESS.search(line):
            kind, vector, bits, operands = access.groups()
            address = re.search(r"\[\s*(%rd\d+)", operands)
            if address and address[1] in derived:
                found[kind].append(int(vector or 1) * int(bits) // 8)
    return Accesses(tuple(found["ld"]), tuple(found["st"]))


def amdgcn_accesses(text: str) -> Accesses:
    """All accesses to global memory of a kernel; its text does not say through which pointer."""
    found: dict[str, list[int]] = {"load": [], "store": []}
    for kind, what in _AMD_ACCESS.findall(text):
        found[kind].append(_AMD_BYTES.get(what, 1 if "byte" in what or "b8" in what else 2))
    return Accesses(tuple(found["load"]), tuple(found["store"]))


def atomics(text: str) -> tuple[str, ...]:
    """The atomic instructions of PTX or of AMD's assembly, each once."""
    return tuple(sorted(set(re.findall(r"\b(?:(?:atom|red)\.[\w.:]+|(?:global|flat|buffer)_atomic_\w+)", text))))


def is_float_atomic(instruction: str) -> bool:
    """True for arithmetic on floating-point numbers, whose result depends on the order of threads."""
    return re.search(r"[._](?:pk_)?(?:bf16|f16|f32|f64)(?:x2)?\b", instruction) is not None
