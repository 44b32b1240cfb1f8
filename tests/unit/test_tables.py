"""No operation is missing from any table; every rule holds and fires."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from normforge.codegen.c.names import SMALL_CODE, VECTOR_CODE
from normforge.codegen.c.prelude import prelude as c_prelude
from normforge.codegen.triton.names import CODE
from normforge.codegen.triton.prelude import CALLS
from normforge.codegen.triton.prelude import FUNCTIONS as TRITON_FUNCTIONS
from normforge.codegen.triton.prelude import prelude as triton_prelude
from normforge.errors import MissingOperationError
from normforge.ir import Graph, Op, evaluate, parse
from normforge.ir.evaluate import EVALUATE
from normforge.ir.forms.grammar import MOMENT_NAMES, PAIR_NAMES, UNARY_NAMES
from normforge.ir.node import const, data, make, param, size
from normforge.ir.ops import BINARY, CORE, ELEMENTWISE, LEAF, REDUCE, REDUCTION, SURFACE, UNARY, Table
from normforge.ir.types import FULL, S
from normforge.passes.algebra import SYMPY, Algebra
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.differentiate import VJP, Differentiate
from normforge.passes.legalise import LOWER
from normforge.passes.normal_form.identity import FUNCTIONS, MOMENTS, Identity
from normforge.passes.pipeline import lower
from normforge.passes.properties import homogeneity, is_bounded, monotony
from normforge.passes.ranges import FINITE, INTERVALS, Ranges
from normforge.passes.running import BUFFERS
from normforge.passes.simplify import cost
from normforge.testing import random_values

TABLES = (EVALUATE, VJP, LOWER, INTERVALS, FINITE, SYMPY, FUNCTIONS, MOMENTS, BUFFERS)
TEXTS = (SMALL_CODE, VECTOR_CODE, CODE)
INPUTS = {1: ("x",), 2: ("x", "z"), 3: ("x", "z", "t"), 4: ("x", "z", "t", "u")}


def test_every_table_has_every_operation() -> None:
    for table in (*TABLES, *TEXTS):
        assert set(table) == table.over, table.name
    # What is not asked of one table is asked of another, or has its meaning by name in the same file.
    assert EVALUATE.over == CORE & ELEMENTWISE
    assert VJP.over == CORE - LEAF
    assert LOWER.over == frozenset(Op) - CORE
    assert all(table.over == CORE - LEAF - REDUCE for table in TEXTS)
    assert FINITE.over == frozenset(Op)
    assert FUNCTIONS.over | MOMENTS.over == SURFACE - LEAF
    assert set(UNARY_NAMES.values()) | set(PAIR_NAMES.values()) | set(MOMENT_NAMES.values()) <= SURFACE - LEAF
    assert SURFACE - LEAF - set((UNARY_NAMES | PAIR_NAMES | MOMENT_NAMES).values()) == {
        Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.WHERE, Op.WHERE_GE,
    }  # fmt: skip


def test_the_triton_prelude_says_what_its_functions_call() -> None:
    """`tl.join` is not `join`: what is called is a name by itself."""
    for name, text in TRITON_FUNCTIONS.items():
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        called = {f.id for f in calls if isinstance(f, ast.Name)} & set(TRITON_FUNCTIONS)
        assert called == set(CALLS.get(name, ())), name
    assert set(CALLS) <= set(TRITON_FUNCTIONS)


@pytest.mark.parametrize("op", Op)
def test_every_interpretation_knows_every_operation(op: Op) -> None:
    """Asked for one graph of this operation, by whatever branch it answers, no interpretation refuses."""
    if op in LEAF:
        x = data("x")
        leaf = {Op.INPUT: x, Op.PARAM: param("v1", 1.0), Op.CONST: const(1.5), Op.SIZE: size(8)}[op]
        graph = Graph((("y", make(Op.ADD, (x, leaf))),), (x,))
    else:
        inputs = tuple(data(n) for n in INPUTS[op.traits.arity])
        attr = (S,) if op in REDUCTION else (FULL, "data") if op is Op.BROADCAST else ()
        graph = Graph((("y", make(op, inputs, attr)),), inputs)
    values = random_values(graph, (2, 4, 2, 3), groups=2)
    assert evaluate(graph, values, groups=2)["y"].shape == (2, 4, 2, 3)
    core = lower(graph)
    assert core.is_core
    ranges = Ranges(graph.eps)
    assert ranges.of(graph.output) == Ranges(graph.eps, start=True).of(graph.output)
    assert len(Differentiate().run(core).outputs) == len(graph.inputs) + len(graph.params)
    assert Algebra().run(graph).outputs
    assert cost(graph) >= 0
    homogeneity(graph), monotony(graph), is_bounded(graph)
    assert Graph.from_dump(graph.dump()) == graph == Graph.from_json(graph.to_json())
    if graph.is_surface:
        assert parse(str(graph)) == graph
        assert Identity(graph.eps).value(graph).key
        assert len(graph.hash) == len(graph.family_hash) == 32


def test_every_function_that_text_calls_is_defined() -> None:
    own = re.compile(r"\b[fv]_\w+(?=\()")
    called = {name for table in (SMALL_CODE, VECTOR_CODE) for text in table.values() for name in own.findall(text)}
    for dtype in ("float32", "float64"):
        assert called <= set(re.findall(r"^INLINE \w+ (\w+)\(", c_prelude(dtype, called), re.MULTILINE)), dtype
    called = {name for text in CODE.values() for name in own.findall(text)}
    text = triton_prelude(called)
    assert called | set(own.findall(text)) <= set(re.findall(r"^def (\w+)\(", text, re.MULTILINE))


def test_torch_has_every_operation() -> None:
    pytest.importorskip("torch")
    from normforge.codegen.eager import TORCH

    assert set(TORCH) == TORCH.over == SURFACE & ELEMENTWISE & CORE


@pytest.mark.parametrize("table", (*TABLES, *TEXTS), ids=lambda t: t.name)
def test_a_table_names_the_operation_that_it_lacks(table: Table[object]) -> None:
    op = min(table.over)
    rest = Table(table.name, table.over, {k: v for k, v in table.items() if k is not op})
    with pytest.raises(MissingOperationError, match=rf"{re.escape(table.name)} has no row for the operation {op}:"):
        rest[op]
    assert rest.over - set(rest) == {op}


def test_traits_hold() -> None:
    """What a row claims of a function, on numbers."""
    a = np.concatenate([np.linspace(-30, 30, 4801), [0.0]])
    for op in (op for op in Op if op in ELEMENTWISE and op.traits.arity == 1):
        traits, function = op.traits, _function(op)
        f = function(a)
        finite = np.isfinite(f)
        if traits.odd:
            assert np.array_equal(function(-a), -f), op
        if traits.even:
            assert np.array_equal(function(-a), f), op
        if traits.rising:
            assert np.all(np.diff(f[:-1][finite[:-1]]) >= 0), op
        if traits.range:
            assert np.all((f >= traits.range.low) & (f <= traits.range.high) | ~finite), op
        assert not traits.contracts or np.all(np.abs(f) <= np.abs(a)), op
        if traits.degree is not None:
            np.testing.assert_allclose(function(4 * a)[finite], 4**traits.degree * f[finite], rtol=1e-12, err_msg=op)
        if traits.at_zero is not None:
            assert function(np.zeros(1))[0] == traits.at_zero, op


def test_symmetric_operations_say_so() -> None:
    """No unary operation is odd, even or rising without its row knowing it."""
    a = np.linspace(0.05, 20, 400)
    with np.errstate(invalid="ignore"):
        for op in UNARY:
            function = _function(op)
            assert op.traits.odd == np.array_equal(function(-a), -function(a)), op
            assert op.traits.even == np.array_equal(function(-a), function(a)), op
    for op in BINARY:
        b = a[::-1]
        assert op.traits.commutative == np.array_equal(EVALUATE[op](a, b), EVALUATE[op](b, a)), op


def _function(op: Op) -> Callable[[Any], Any]:
    eps = 1e-300  # traits of sqrt and log are those in the limit ε -> 0
    x = data("x")
    graph = Graph((("y", make(op, (x,))),), (x,), eps)
    return lambda a: evaluate(graph, {"x": a.reshape(1, 1, -1)})["y"].ravel()


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
