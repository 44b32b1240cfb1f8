"""No operation is missing from any table; every rule holds and fires."""

from __future__ import annotations

import math
import re

import pytest

from normforge.ir import Graph, Op, parse
from normforge.ir.evaluate import EVALUATE
from normforge.ir.forms.grammar import MOMENT_NAMES, PAIR_NAMES, UNARY_NAMES
from normforge.ir.node import const, data, make
from normforge.ir.ops import ARITY, BINARY, CORE, CORE_ONLY, ELEMENTWISE, LEAF, MOMENT, REDUCE, SURFACE, SURFACE_ONLY
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.differentiate import VJP
from normforge.passes.legalise import LOWER
from normforge.passes.simplify import COST

# Evaluated by name, since they take more than operands: ε, axes, a type.
BY_NAME = SURFACE_ONLY | MOMENT | REDUCE | LEAF | {Op.BROADCAST}


def test_every_operation_is_in_every_table() -> None:
    every = set(Op)
    assert set(ARITY) == every
    assert set(COST) == every
    assert set(EVALUATE) | BY_NAME == every
    assert not set(EVALUATE) & BY_NAME
    assert set(LOWER) == SURFACE_ONLY
    assert set(VJP) == CORE - LEAF
    assert every == SURFACE | CORE_ONLY
    assert BINARY | set(UNARY_NAMES.values()) | {Op.NEG} == ELEMENTWISE - CORE_ONLY
    assert set(MOMENT_NAMES.values()) == MOMENT
    assert set(PAIR_NAMES.values()) == {Op.MAX, Op.MIN}


def test_finite_only_rules_need_to_be_asked_for() -> None:
    for formula in ("x - x", "x * 0", "0 / exp(x)", "exp(x) / exp(x)"):
        assert Canonicalise().run(parse(formula)).output.op is not Op.CONST
        assert Canonicalise(finite_only=True).run(parse(formula)).output.op is Op.CONST


def test_constants_fold_where_the_result_is_finite() -> None:
    folded = Canonicalise().run(parse("x * (2 + 3 * 4) + tanh(0.5) + 1 / 0"))
    assert [n.value for n in folded.nodes if n.op is Op.CONST].count(14.0) == 1
    assert any(n.op is Op.DIV for n in folded.nodes)
    assert Canonicalise().run(parse("exp(1) * x")).output.args[1] in (const(math.e), data("x"))
    # For identity, only what every machine and every order of folding agrees on.
    assert "exp(1)" in str(Canonicalise(finite_only=True).run(parse("exp(1) * x")))
    assert "1 / 3" in str(Canonicalise(finite_only=True).run(parse("1 / 3 * x")))
    assert "0.75" in str(Canonicalise(finite_only=True).run(parse("x * (0.5 + 0.25)")))


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("mean[w,h](mean[w,h](x)) * x", r"mean\[w,h\]\(x\) \* x|x \* mean\[w,h\]\(x\)"),
        ("mean[w,h](gamma) + x", r"gamma \+ x|x \+ gamma"),
        ("mean[b,w,h,c](gamma) + x", r"(x \+ )?mean\[c\]\(gamma\)( \+ x)?"),
        ("std[b,w,h](mean[c](x)) + x", r".*std\[b,w,h\].*"),
        ("std[w,h,c](mean[w,h](x)) + x", r".*std\[c\]\(mean\[w,h\]\(x\)\).*"),
        ("std[b,w,h,c](mean[c](x)) + x", r".*std\[b,w,h,c\].*"),  # a running variance counts every element
    ],
)
def test_moments_along_missing_axes(formula: str, expected: str) -> None:
    assert re.fullmatch(expected, str(Canonicalise().run(parse(formula))))


def test_a_sum_names_only_axes_that_are_there() -> None:
    graph = Graph((("z", make(Op.SUM, (make(Op.MEAN, (data("x"),), (8,)),), (9,))),), (data("x"),))
    assert Canonicalise().run(graph).output.reduced == 1
