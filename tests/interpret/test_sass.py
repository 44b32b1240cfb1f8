"""Machine code is read as it is: operands, loops, lines; and the predictions that bench/predict.py makes of it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.triton.kinds import plan_of_kind
from normforge.kernels.launch_triton import CompiledKernel, compile_aot
from normforge.kernels.sass import Code, disassemble, parse

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter"),
]

LISTING = """
        /*0000*/                   IMAD.WIDE.U32 R6, R4.reuse, UR4, RZ ;
.L_x_1:
	//## File "<normforge nf>", line 7
        /*0010*/              @!P2 LDG.E.128 R20, desc[UR8][R44.64] ;
        /*0020*/                   IADD3 R28, P3, -R24, UR11, RZ ;
.L_x_2:
	//## File "/triton/language/standard.py", line 263
        /*0030*/                   SHFL.BFLY PT, R43, R20, 0x10, 0x1f ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
	//## File "<normforge nf>", line 8
        /*0050*/                   ISETP.GE.U32.AND.EX P0, PT, R60, RZ, PT, P3 ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*0070*/                   STG.E.64 desc[UR8][R6.64+0x10], R22 ;
        /*0080*/               @P0 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
$__internal_0_$__cuda_sm20_div_s64:
        /*00b0*/                   MUFU.RCP R4, R4 ;
        /*00c0*/                   RET.REL.NODEC R10 `(nf) ;
"""


def test_listing() -> None:
    code = parse(LISTING)
    names = [i.name for i in code.instructions]
    assert names == ["IMAD", "LDG", "IADD3", "SHFL", "BRA", "ISETP", "CALL", "STG", "BRA", "EXIT", "BRA"]
    by_name = dict(zip(names, code.instructions, strict=True))
    wide, load, carry, shuffle = (by_name[n] for n in ("IMAD", "LDG", "IADD3", "SHFL"))
    assert wide.writes == ("R6", "R7") and wide.reads == ("R4", "UR4")
    assert load.writes == ("R20", "R21", "R22", "R23") and load.reads == ("P2", "UR8", "R44", "R45")
    assert (load.bytes, load.line) == (16, 7)
    assert carry.writes == ("R28", "P3") and carry.reads == ("R24", "UR11")
    assert shuffle.writes == ("R43",) and shuffle.reads == ("R20",) and shuffle.line == 0
    assert by_name["ISETP"].writes == ("P0",) and by_name["ISETP"].reads == ("R60", "P3")
    store = by_name["STG"]
    assert not store.writes and store.reads == ("UR8", "R6", "R7", "R22", "R23") and store.line == 8
    assert [len(body) for body in code.subroutines.values()] == [2]
    outer, inner = code.loops
    assert (outer.first, outer.last, outer.depth) == (1, 8, 0) and (inner.first, inner.last, inner.depth) == (3, 4, 1)
    assert [i.name for i in code.own(outer)] == ["LDG", "IADD3", "ISETP", "CALL", "STG", "BRA"]
    assert code.inside(None) == [outer] and code.inside(outer) == [inner]


def compiled(layer: str, order: int, layout: str, dims: tuple[int, int, int, int]) -> tuple[Any, list[CompiledKernel]]:
    plan = plan_of_kind("multi-launch", program(nf.parse(layer), order, True), "bfloat16", layout)
    assert plan is not None
    return plan, compile_aot(plan, 90, dims=dims)


DIMS = (16, 32, 8, 56 * 56)


def count(code: Code, loop: Any, name: str) -> int:
    return sum(i.name == name for i in code.own(loop))


def test_a_sweep() -> None:
    """The last sweep of BatchNorm walks tiles of 32 elements a thread: four wide loads and four wide stores."""
    _, kernels = compiled("bn-relu", 0, "nhwc", DIMS)
    code = parse(disassemble(kernels[-1].asm["cubin"]))
    (loop,) = code.loops
    found = [(i.name, i.bytes) for i in code.own(loop) if i.name in ("LDG", "STG")]
    assert found == [("LDG", 16)] * 4 + [("STG", 16)] * 4
    assert count(code, loop, "BAR") == count(code, loop, "SHFL") == 0
    assert any(i.line for i in code.own(loop)), "lines of the text"
    assert kernels[-1].warps == 4


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    for name in ("costs", "loops", "predict"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_prediction(bench: None) -> None:
    """What is counted of a tile, how often loops run, and that no limit is below the bytes over the bandwidth."""
    from predict import COPY, predict

    plan, kernels = compiled("bn-relu", 0, "nhwc", DIMS)
    found = predict(plan, DIMS, kernels)
    tensor = 2 * 16 * 256 * 56 * 56
    assert found.floor == 2 * tensor and found.moved == 3 * tensor
    first, merge, last = found.launches
    assert not merge.tiles
    whole, rest = first.tiles  # tiles without masks, and what is left over
    assert rest.instructions > whole.instructions
    assert [t.load_bytes for t in (whole, rest, *last.tiles)] == [(16,)] * 3
    chunks = plan.schedule.sizes(DIMS)["Q0"]
    partials = 2 * 4 * 16 * 256 * chunks  # means and squared deviations
    assert first.dram == pytest.approx(tensor) and first.cache == partials
    assert last.tiles[0].barriers == last.tiles[0].shuffles == 0 and last.tiles[0].loads_in_flight == 4
    assert last.times["memory"] >= tensor / COPY
    assert found.seconds > sum(one.fast for one in found.launches)
    assert 0 < found.share < found.planned_share < 1


def test_loads_on_the_way(bench: None) -> None:
    from costs import CACHE, MEMORY, chain

    def body(*ops: str) -> Any:
        return parse(
            "".join(f'\t//## File "<normforge nf>", line 5\n        /*00{i:02x}*/ {op} ;\n' for i, op in enumerate(ops))
        )

    full = {(5, 16)}
    load, use = "LDG.E.128 R{0}, desc[UR8][R2.64]", "FADD R{1}, R{0}, R{1}"
    ahead = [load.format(4), load.format(8), use.format(4, 20), use.format(8, 20)]
    apart = [load.format(4), use.format(4, 20), load.format(8), use.format(8, 20)]
    cycles, loads, in_flight = chain(body(*ahead).instructions, full, set(), 4)
    assert MEMORY < cycles < MEMORY + 20 and (loads, in_flight) == (2, 32)
    cycles, loads, _ = chain(body(*apart).instructions, full, set(), 4)
    assert 2 * MEMORY < cycles < 2 * MEMORY + 20 and loads == 1
    cycles, _, _ = chain(body(*apart).instructions, full, full, 4)
    assert 2 * CACHE < cycles < 2 * CACHE + 20
    copies = ["LDGSTS.E.128 [R3], desc[UR8][R2.64]", "LDGDEPBAR", "DEPBAR.LE SB0, {0}"]
    for waiting in (0, 2):  # groups that may be on the way when an iteration goes on
        ops = [op.format(hex(waiting)) for op in copies]
        cycles, loads, _ = chain(body(*ops).instructions, full, set(), 12)
        assert loads == waiting + 1 and cycles == pytest.approx(MEMORY / (waiting + 1), rel=0.4)


def test_trips(bench: None) -> None:
    from loops import Text

    text = Text("""
@triton.jit
def merge(row, Q, BLOCK_Q: tl.constexpr):
    for q0 in range(0, Q, BLOCK_Q):
        row += q0
@triton.jit
def stage(pid, x_ptr, N, S, Q, L, BLOCK_S: tl.constexpr):
    S = S.to(tl.int64)
    q = (pid % Q).to(tl.int64)
    s = q + tl.arange(0, BLOCK_S)
    for t in range(0, tl.cdiv(tl.minimum(S - q * L, L), BLOCK_S)):
        for i in range(0, N, 4):
            x = tl.load(x_ptr + i)
    for t in range(0, x):
        pass
@triton.jit
def kernel(N):
    for item in range(tl.program_id(0), N, tl.num_programs(0)):
        stage(item)
""")
    merge, stage, inner, unknown, kernel = sorted(text.loops, key=lambda x: x.line)
    sizes = {"N": 10, "S": 100, "Q": 2, "L": 64, "BLOCK_S": 16, "BLOCK_Q": 1}
    assert text.trips(stage, "stage", sizes, 2) == text.trips(stage, "stage", sizes, 20)
    assert (text.trips(stage, "stage", sizes, 2).mean, text.trips(stage, "stage", sizes, 2).most) == (3.5, 4)
    assert text.trips(inner, "stage", sizes, 2).most == 3
    assert text.trips(merge, "stage", sizes, 2).most == 2
    assert (
        text.trips(kernel, "kernel", {"N": 10}, 4).mean == 2.5 and text.trips(kernel, "kernel", {"N": 10}, 4).most == 3
    )
    assert text.loop(12) == inner and text.called(9) == 19
    with pytest.raises(ValueError, match=r"range\(0, x\)"):
        text.trips(unknown, "stage", sizes, 2)
