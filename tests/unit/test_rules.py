"""Every rule is true: by sympy where it can say so, by numbers drawn to fit its condition, and by hash."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import sympy

from normforge.ir import Graph, Op, evaluate, parse
from normforge.ir.node import data, make, param, substitute
from normforge.ir.types import INDEX_SETS
from normforge.passes import Differentiate
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.ranges import Ranges
from normforge.passes.rules import FIRED, IDENTITIES, RULES, Rule, Soundness
from normforge.testing import assert_close, tolerance

EVERY = (*RULES, *IDENTITIES)
ELEMENTWISE = [r for r in EVERY if "[" not in r.pattern]
TRAPS = (0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 1e200, -1e200, 1e-200, 5e-324)
LETTERS = "abck"


def name(rule: Rule) -> str:
    return f"{rule.pattern} -> {rule.rewrite}" + (f" if {rule.given}" if rule.given else "")


def test_names_are_unique() -> None:
    assert len({name(r) for r in EVERY}) == len(EVERY)


def graphs(rule: Rule, index: str = "w,h") -> tuple[Graph, Graph]:
    """Both sides as graphs of the inputs a, b, c of x's shape, and k, which is constant along the index set."""
    head = "".join(f"param {letter} = 0; " for letter in LETTERS)
    inputs = [*(data(n) for n in "abc"), data("k", data("k").axes & ~INDEX_SETS[index])]
    swap = {param(n.name, 0.0): n for n in inputs}
    out = []
    for side in (rule.pattern, rule.rewrite):
        node = parse(head + side.replace("[I]", f"[{index}]")).output
        out.append(Graph((("z", substitute([node], swap)[node]),), tuple(inputs)))
    return out[0], out[1]


def fits(rule: Rule, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers that satisfy the condition, NaN and infinities as far as it says nothing of them."""
    if rule.given in ("", "k constant"):
        return values
    left, relation, right = rule.given.split()
    out = dict(values)
    a = out[left]
    if right in LETTERS:
        out[left], out[right] = np.maximum(a, out[right]), np.minimum(a, out[right])
    elif relation == "!=":
        out[left] = np.where(a == 0, 3.0, a)
    elif relation == ">":
        out[left] = np.where(a == 0, 3.0, np.abs(a))
    else:
        out[left] = np.abs(a) if relation == ">=" else -np.abs(a)
    return out


def trapped(rule: Rule) -> dict[str, np.ndarray]:
    """Pairs of traps and ordinary numbers, one a channel, for elementwise rules."""
    rng = np.random.default_rng(0)
    pairs = np.array(list(itertools.product(TRAPS, TRAPS)))
    one = np.concatenate([pairs[:, 0], rng.standard_normal(400) * 3])
    two = np.concatenate([pairs[:, 1], rng.standard_normal(400) * 3])
    three = np.concatenate([rng.permutation(np.resize(TRAPS, len(pairs))), rng.standard_normal(400)])
    return fits(rule, {n: v.reshape(1, -1) for n, v in zip("abck", (one, two, three, three), strict=True)})


@pytest.mark.parametrize("rule", ELEMENTWISE, ids=name)
def test_elementwise_rules_hold(rule: Rule) -> None:
    values = trapped(rule)
    with np.errstate(all="ignore"):
        left, right = (
            np.broadcast_to(evaluate(g, values | {"k": values["k"][0]})["z"], values["a"].shape) for g in graphs(rule)
        )
    if rule.tag is Soundness.EXACT:
        assert_close(left, right, what=rule.pattern)  # NaN and infinities in the same places
        return
    # Rounding at 1e200 is as large as 1e184: what cancels there says nothing.
    tame = np.all([np.abs(values[n]) < 1e100 for n in "abc"], axis=0)
    both = np.isfinite(left) & np.isfinite(right) & tame
    assert both.sum() > 200
    assert_close(left[both], right[both], what=rule.pattern)


def full(axes: int) -> list[int]:
    """The shape of a value of these axes beside an input of shape (3, 6, 4, 5) in two groups."""
    return [n if axes & bit else 1 for bit, n in {1: 3, 2: 2, 4: 3, 8: 20}.items()]


@pytest.mark.parametrize("index", INDEX_SETS)
@pytest.mark.parametrize("rule", [r for r in EVERY if "[" in r.pattern], ids=name)
def test_rules_of_moments_hold(rule: Rule, index: str) -> None:
    rng = np.random.default_rng(1)
    shape = (3, 6, 4, 5)
    for scale in (1e-3, 1.0, 50.0):
        one, two = graphs(rule, index)
        values = {n: rng.standard_normal(shape) * scale for n in "abc"}
        k = two.inputs[3]
        values["k"] = rng.standard_normal(full(k.axes)) * scale
        left, right = (evaluate(g, values, groups=2)["z"] for g in (one, two))
        left, right = (v.reshape(full(g.output.axes)) for v, g in ((left, one), (right, two)))
        left, right = np.broadcast_arrays(left, right)
        largest = max(scale, scale**2, float(np.abs(left).max()))
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance("float64", 2**12) * largest)


SYMPY = {"sqrt", "log", "std", "mean", "rms"}  # guarded by ε, or moments: by numbers alone


@pytest.mark.parametrize("rule", [r for r in EVERY if not SYMPY & set(re.findall("[a-z]+", r.pattern))], ids=name)
def test_sympy_proves_what_it_can(rule: Rule) -> None:
    """Case by case of the signs of a, b, c and of a - b, which decide every abs, max and min."""
    if rule.given == "a >= b":
        cases = [(s, t, 1) for s in (1, -1) for t in (1, -1)]
    else:
        cases = list(itertools.product((1, -1), repeat=3))
    for a_sign, b_sign, order in cases:
        p, q, r = sympy.symbols("p q r", positive=True)
        b = b_sign * q
        a = b + order * p if order * a_sign > 0 or rule.given == "a >= b" else a_sign * p
        c = r if rule.given.startswith("c") else a_sign * r
        if rule.given in ("a >= 0", "a > 0"):
            a = p
        if rule.given == "a <= 0":
            a = -p
        names = {
            "a": a,
            "b": b,
            "c": c,
            "abs": sympy.Abs,
            "square": lambda v: v**2,
            "exp": sympy.exp,
            "tanh": sympy.tanh,
            "erf": sympy.erf,
            "sign": sympy.sign,
            "sin": sympy.sin,
            "cos": sympy.cos,
            "softplus": lambda v: sympy.log(1 + sympy.exp(v)),
            "sigmoid": lambda v: 1 / (1 + sympy.exp(-v)),
            "max": lambda u, v: (u + v + sympy.Abs(u - v)) / 2,
            "min": lambda u, v: (u + v - sympy.Abs(u - v)) / 2,
        }
        left, right = (eval(side, {"__builtins__": {}}, names) for side in (rule.pattern, rule.rewrite))
        difference = sympy.simplify(sympy.expand(sympy.sympify(left - right).rewrite(sympy.exp)))
        if difference != 0:  # signs inside that sympy does not decide: exact numbers of this case
            for numbers in (
                {p: sympy.Rational(7, 3), q: sympy.Rational(1, 5), r: 2},
                {p: sympy.Rational(1, 7), q: 3, r: 1},
            ):
                assert abs(sympy.N(difference.subs(numbers), 40)) < sympy.Rational(1, 10**30), (name(rule), difference)


BINDINGS = [
    {"a": "x", "b": "tanh(v1 * x)", "c": "gamma"},
    {"a": "x * sigmoid(x)", "b": "beta - x", "c": "abs(x)"},
    {"a": "log(x) + v0", "b": "square(x)", "c": "mean[w,h](x)"},
]
GIVEN = {
    "": {},
    "k constant": {},
    "a > 0": {"a": "1 + sigmoid(x)"},
    "a >= 0": {"a": "square(x) * abs(v1)"},
    "a <= 0": {"a": "min(tanh(x), 0)"},
    "c >= 0": {"c": "square(x)"},
    "a != 0": {"a": "std[w,h](x)"},
    "a >= b": {"a": "sigmoid(x)", "b": "-abs(x)"},
}


def instance(side: str, index: str, binding: dict[str, str]) -> Graph:
    """One side of a rule with formulas for its letters, beside a term that keeps it a layer."""
    head = "".join(f"param {letter} = 0; " for letter in LETTERS)
    node = parse(head + side.replace("[I]", f"[{index}]")).output
    node = substitute([node], {param(k, 0.0): parse(v).output for k, v in binding.items()})[node]
    return Graph((("y", make(Op.ADD, (node, parse("x * x").output))),), (data("x"),))


@pytest.mark.parametrize(
    ("rule", "index"),
    [(r, index) for r in EVERY for index in (INDEX_SETS if "[I]" in r.pattern else ["w,h"])],
    ids=lambda v: v if isinstance(v, str) else name(v),
)
def test_both_sides_have_one_hash(rule: Rule, index: str) -> None:
    constants = ("1.5", f"rms[{index}](x)", *(() if "c" in index else ("v1",)))
    for binding in BINDINGS:
        for k in constants:
            one, two = (
                instance(side, index, binding | {"k": k} | GIVEN[rule.given]) for side in (rule.pattern, rule.rewrite)
            )
            assert one.hash == two.hash, (str(one), str(two))


@pytest.mark.parametrize("rule", [r for r in RULES if r.tag is Soundness.EXACT], ids=name)
def test_exact_rules_hold_for_derivatives(rule: Rule) -> None:
    """A rewritten layer is differentiated after the rewrite: ties and zeros must get the same gradient."""
    values = {n: np.where(np.abs(v) < 100, v, 1.0) for n, v in trapped(rule).items()}
    values = fits(rule, {n: np.where(np.isfinite(v), v, 2.0) for n, v in values.items()})
    feed = values | {"k": values["k"][0], "ct.z": np.ones(values["a"].shape)}
    results = []
    for graph in graphs(rule):
        out = evaluate(Differentiate().run(graph), feed)
        results.append([np.broadcast_to(out[f"d.{k}"], values["a"].shape) for k in "ab"])
    for left, right in zip(*results, strict=True):
        both = np.isfinite(left) & np.isfinite(right)
        assert_close(left[both], right[both], what=rule.pattern)


def test_every_rule_fires_on_its_own_instance() -> None:
    FIRED.clear()
    for rule in RULES:
        graph = instance(rule.pattern, "w,h", BINDINGS[0] | GIVEN[rule.given])
        Canonicalise(finite_only=True).run(graph.with_outputs(("y", graph.output.args[0])))
    assert [name(r) for r in RULES if not FIRED[r.pattern, r.given]] == []


def test_conditions_are_asked() -> None:
    ranges = Ranges(1e-5)
    x, deviation = data("x"), make(Op.STD, (data("x"),), (8,))
    rule = next(r for r in RULES if r.given == "a > 0")
    assert rule.apply(make(Op.ABS, (deviation,)), ranges) is deviation
    assert rule.apply(make(Op.ABS, (x,)), ranges) is None
