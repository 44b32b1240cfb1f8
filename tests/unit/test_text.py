"""The formula form: what it means, what it refuses and where it points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import GraphError, ParseError, UnknownNameError
from normforge.ir import Graph, Op, evaluate, layers, parse, verify
from normforge.ir.forms.formula import parse_formula
from normforge.ir.forms.grammar import FUNCTIONS, PARAMETERS
from normforge.ir.layers import CATALOGUE
from normforge.ir.limits import MAX_DEPTH, MAX_FORMULA, MAX_NODES
from normforge.ir.node import Node, const, data, make, param, stat, substitute
from normforge.testing import layer_graphs

x, gamma, beta, v1 = data("x"), param("gamma", 1.0), param("beta", 0.0), param("v1", 1.0)


def op(name: Op, *args: Node, axes: int | None = None) -> Node:
    return make(name, args, () if axes is None else (axes,))


MEANINGS = {
    "x - v1 - beta": op(Op.SUB, op(Op.SUB, x, v1), beta),
    "x / v1 / gamma": op(Op.DIV, op(Op.DIV, x, v1), gamma),
    "x + v1 * beta": op(Op.ADD, x, op(Op.MUL, v1, beta)),
    "x - v1 * beta / x + 1": op(Op.ADD, op(Op.SUB, x, op(Op.DIV, op(Op.MUL, v1, beta), x)), const(1.0)),
    "(x + v1) * beta": op(Op.MUL, op(Op.ADD, x, v1), beta),
    "-x * v1": op(Op.MUL, op(Op.NEG, x), v1),
    "x * -v1": op(Op.MUL, x, op(Op.NEG, v1)),
    "x - -2": op(Op.SUB, x, const(-2.0)),
    "-2 * x": op(Op.MUL, const(-2.0), x),
    "-(2) * x": op(Op.MUL, op(Op.NEG, const(2.0)), x),
    "--x": op(Op.NEG, op(Op.NEG, x)),
    "- - 2": op(Op.NEG, const(-2.0)),
    "-(x + 1)": op(Op.NEG, op(Op.ADD, x, const(1.0))),
    "-tanh(-x)": op(Op.NEG, op(Op.TANH, op(Op.NEG, x))),
    "-0": const(-0.0),
    ".5 * x": op(Op.MUL, const(0.5), x),
    "2.*x": op(Op.MUL, const(2.0), x),
    "1e-3 + x": op(Op.ADD, const(1e-3), x),
    "max(x, v1 + 1)": op(Op.MAX, x, op(Op.ADD, v1, const(1.0))),
    "min(max(x, 0), 6)": op(Op.MIN, op(Op.MAX, x, const(0.0)), const(6.0)),
    "relu(x)": op(Op.MAX, x, const(0.0)),
    "silu(x)": op(Op.MUL, x, op(Op.SIGMOID, x)),
    "std[h,w](x)": op(Op.STD, x, axes=8),
    "mean[ c / g , w,h ](x)": op(Op.MEAN, x, axes=12),
    "rms[c,h,b,w](x)": op(Op.RMS, x, axes=15),
    "where(x > v1, x, beta)": op(Op.WHERE, x, v1, x, beta),
    "where(x < v1, x, beta)": op(Op.WHERE, v1, x, x, beta),
    "where(x + 1 >= v1, -x, 2)": op(Op.WHERE_GE, op(Op.ADD, x, const(1.0)), v1, op(Op.NEG, x), const(2.0)),
    "where(x<=v1,where(x>0,x,v1),2)": op(Op.WHERE_GE, v1, x, op(Op.WHERE, x, const(0.0), x, v1), const(2.0)),
    "sum[w,h](x)": op(Op.TOTAL, x, axes=8),
    "var[c](x)": op(Op.VAR, x, axes=6),
    "\n x\t+ 1 ": op(Op.ADD, x, const(1.0)),
    "param tau = -1; max(x, tau)": op(Op.MAX, x, param("tau", -1.0)),
    "param s scalar = 0.5; x * s": op(Op.MUL, x, param("s", 0.5, scalar=True)),
    "param gamma scalar = 2; x * gamma": op(Op.MUL, x, param("gamma", 2.0, scalar=True)),
    "param b = 1; param w = 2; x * b + mean[b,w,h](x) * w": op(
        Op.ADD, op(Op.MUL, x, param("b", 1.0)), op(Op.MUL, op(Op.MEAN, x, axes=9), param("w", 2.0))
    ),
}


@pytest.mark.parametrize("formula", MEANINGS)
def test_meaning(formula: str) -> None:
    assert parse(formula).output is MEANINGS[formula]


def test_declarations() -> None:
    graph = parse("eps = 1e-3; param alpha scalar = 0.5; alpha * std[w,h](x)")
    assert graph.eps == 1e-3
    assert [p.name for p in graph.params] == ["alpha"]
    assert str(graph) == "eps = 0.001; param alpha scalar = 0.5; alpha * std[w,h](x)"
    assert str(parse("param unused = 3; x")) == "x"
    assert [p.name for p in parse("beta + x * gamma - v0").params] == ["beta", "gamma", "v0"]


@pytest.mark.parametrize("word", ["softplus", "sin", "cos"])
def test_a_declared_name_wins_over_a_later_word(word: str) -> None:
    graph = parse(f"param {word} = 0.5; x * {word}")
    assert graph.output is make(Op.MUL, (data("x"), param(word, 0.5)))
    assert str(graph) == f"param {word} = 0.5; x * {word}"
    assert parse(str(graph)) == graph
    assert parse(f"{word}(x)").output is make(Op(word), (data("x"),))
    with pytest.raises(ParseError, match=f"'{word}' is a value, not a function"):
        parse(f"param {word} = 0.5; {word}(x)")
    with pytest.raises(ParseError, match=f"{word} is a function"):
        parse(f"x * {word}")
    # What no formula can say, since the one would hide the other, is written as a dump.
    both = Graph((("y", make(Op.MUL, (make(Op(word), (data("x"),)), param(word, 0.5)))),), (data("x"),))
    assert not both.is_surface and Graph.from_dump(str(both)) == both


POWERS = {
    "x**2": "square(x)",
    "x**3": "square(x) * x",
    "x**5": "square(square(x)) * x",
    "x**6": "square(square(x) * x)",
    "x**7": "square(square(x) * x) * x",
    "x**8": "square(square(square(x)))",
    "-x**2": "-(square(x))",
    "-2**2 * x": "-(square(2)) * x",
    "v1 * (x + 1)**3 / std[w,h](x)**2": "v1 * (square(x + 1) * (x + 1)) / square(std[w,h](x))",
    "tanh(x)**2": "square(tanh(x))",
}


@pytest.mark.parametrize("exponent", range(2, 9))
def test_a_power_is_a_power(exponent: int) -> None:
    values = np.linspace(-2.0, 2.0, 8).reshape(1, 8)
    assert np.allclose(evaluate(parse(f"x**{exponent}"), {"x": values})["y"], values**exponent, rtol=1e-15)


def test_a_parameter_hides_a_later_short_word() -> None:
    graph = parse("param mish = 0.5; param clamp = 1; mish * x + clamp")
    assert [p.name for p in graph.params] == ["mish", "clamp"] and parse(str(graph)) == graph
    with pytest.raises(ParseError, match="'clamp' is a value, not a function"):
        parse("param clamp = 1; clamp(x, 0, 1)")


@pytest.mark.parametrize("word", ["sigmoid", "gelu", "mean", "x", "param"])
def test_first_words_name_nothing_else(word: str) -> None:
    with pytest.raises(ParseError, match="has a meaning of its own"):
        parse(f"param {word} = 0.5; x")


def test_names_win_over_expressions() -> None:
    assert parse(" bn-relu ") == layers["bn-relu"]
    with pytest.raises(UnknownNameError, match="did you mean 'bn-relu'"):
        layers["bn_relu"]


def test_named_layers_have_sources() -> None:
    assert all(entry.source for entry in CATALOGUE.values())
    assert list(layers) == list(CATALOGUE)
    assert "bn-relu" in layers
    assert len(layers) == 30


@pytest.mark.parametrize("name", CATALOGUE)
def test_named_layers_round_trip(name: str) -> None:
    graph = layers[name]
    assert parse_formula(str(graph)) == graph


@given(layer_graphs(max_nodes=12))
def test_drawn_layers_round_trip(graph: Graph) -> None:
    assert parse_formula(str(graph)) == graph


STATEMENTS = {
    # one name for what occurs twice
    "h = x / rms[c](x); tanh(h) * h": "tanh(x / rms[c](x)) * (x / rms[c](x))",
    # statements in any order, each after what it reads
    "param tau = 0; h = max(x, tau); eps = 1e-3; h * gamma": "eps = 1e-3; param tau = 0; max(x, tau) * gamma",
    "a = x * v1; b = a + beta; b * a": "(x * v1 + beta) * (x * v1)",
    "x # the input\n * gamma": "x * gamma",
    "# a comment; 2 * (\nx\n#another": "x",
    # not keywords where no declaration follows
    "param input = 2; x * input": "param input=2;x*input",
}


@pytest.mark.parametrize(("text", "other"), (POWERS | STATEMENTS).items())
def test_powers_and_statements_say_what_stands_in_their_place(text: str, other: str) -> None:
    assert parse(text) == parse(other)
    assert parse(text).hash == parse(other).hash


def test_declared_inputs() -> None:
    axes = {"": 0, "b": 1, "c": 6, "b,c": 7, "b,w,h": 9, "b,c,w,h": 15}
    for declared, varies in axes.items():
        graph = parse(f"input z[{declared}]; x * z")
        assert [n.name for n in graph.inputs] == ["x", "z"] and graph.inputs[1].axes == varies
        assert not graph.is_plain and graph.is_surface and str(graph) == f"input z[{declared}]; x * z"
    assert parse("input z[h,b,w]; x * z") == parse("input z[b,w,h]; x * z")
    graph = parse("input second[b]; input first[c]; x * first + second")
    assert [n.name for n in graph.inputs] == ["x", "second", "first"]  # as declared, whatever is read first


def test_several_results() -> None:
    graph = parse("input r[b,c,w,h]; h = x + r; h / rms[c](h) * gamma, h")
    assert [name for name, _ in graph.outputs] == ["y", "y1"] and not graph.is_plain
    assert graph.outputs[1][1] is make(Op.ADD, (data("x"), data("r")))
    # Parameters come in the order of the results with their local names expanded.
    assert [p.name for p in parse("a = x * beta; b = x * gamma; b + v1, a").params] == ["gamma", "v1", "beta"]


INPUT_AXES = (0, 1, 6, 7, 9, 15)


@given(st.data())
def test_printing_loses_nothing(draws: st.DataObject) -> None:
    """Of any graph over further inputs: the formula where it has one, else the dump, reads back to the same graph; a
    graph that no formula says, such as one whose gamma is an input, never prints as the formula of another."""
    base = draws.draw(layer_graphs(max_nodes=8))
    axes = draws.draw(st.sampled_from(INPUT_AXES))
    name = draws.draw(st.sampled_from(["z", "gamma", "v1", "tanh", "mish", "h", "input", "y"]))
    given_ = data(name) if axes == 15 else stat(name, axes)
    replaced = draws.draw(st.sampled_from([n for n in base.nodes if n.op in (Op.PARAM, Op.INPUT, Op.CONST)]))
    out = substitute([base.output], {replaced: given_})[base.output]
    results = [out, *draws.draw(st.lists(st.sampled_from([*base.nodes]), max_size=2))]
    names = draws.draw(st.sampled_from([["y", "y1", "y2"], ["y", "z1", "z2"]]))
    inputs = (data("x"), given_)
    graph = Graph(tuple(zip(names, results, strict=False)), inputs, base.eps)
    try:
        verify(graph)
    except GraphError:
        return  # two values of one name
    text = str(graph)
    assert (parse_formula(text) if graph.is_surface else Graph.from_dump(text)) == graph
    assert Graph.from_json(graph.to_json()) == graph == Graph.from_dump(graph.dump())
    if name not in ("z", "h", "input", "y"):
        assert not graph.is_surface


# formula with | before the character at fault -> phrases of the first line
MISTAKES = {
    "|": ["expected a number, a name, a function or '('", "the end of the formula"],
    "x +|": ["expected a number", "the end of the formula"],
    "x + |* 2": ["expected a number", "'*'"],
    "x |x": ["expected an operator (+ - * /)", "'x'"],
    "2|x": ["expected an operator", "'x'"],
    "x |) + 1": ["expected an operator", "')'"],
    "(x + 1|": ["expected ')'", "the end of the formula"],
    "tanh(x|": ["expected ')'", "tanh"],
    "tanh(x|, x)": ["expected ')'", "','"],
    "max(x|)": ["expected ','", "second operand of max"],
    "max(x, 1|, 2)": ["expected ')'", "','"],
    "tanh |x": ["tanh is a function", "expected '('"],
    "std|(x)": ["expected '['", "b,w,h · w,h · w,h,c · w,h,c/g · c · b,w,h,c"],
    "std |x": ["std is a function", "expected '['"],
    "std[w,h] |x": ["expected '(' after std", "'x'"],
    "std[|b](x)": ["[b] is not an index set", "write one of"],
    "std[|w,h,w](x)": ["[w,h,w] is not an index set"],
    "std[|b,w,h,c/g](x)": ["is not an index set"],
    "std[w,|n](x)": ["expected one of b, w, h, c, c/g", "'n'"],
    "std[w,h,c/|h](x)": ["expected 'g'", "'h'"],
    "std[w,h |(x)": ["expected ']' or ','", "'('"],
    "std[|](x)": ["expected one of b, w, h, c, c/g"],
    "tanh|[w,h](x)": ["expected '(' after tanh", "'['"],
    "|sigmod(x)": ["unknown function 'sigmod'", "did you mean 'sigmoid'?"],
    "x * |gama": ["unknown name 'gama'", "did you mean 'gamma'?"],
    "|X + 1": ["unknown name 'X'", "did you mean 'x'?"],
    "|Tanh(x)": ["unknown function 'Tanh'", "did you mean 'tanh'?"],
    "x * |kappa_long": ["unknown name 'kappa_long'", "param kappa_long = 0"],
    "x|(1)": ["'x' is a value, not a function", "expected an operator"],
    "x |^ 2": ["unexpected character '^'", "a**2"],
    "x * |* 2": ["expected a number", "'*'"],
    "x**|9": ["whole number from 2 to 8", "'9'"],
    "x**|-2": ["whole number from 2 to 8", "'-'"],
    "x**|2.5": ["whole number from 2 to 8"],
    "x**|v1": ["whole number from 2 to 8", "'v1'"],
    "x**2|**2": ["needs brackets"],
    "clamp(x, 1|)": ["expected ',' and the third operand of clamp"],
    "clamp(x, 0, 1|, 2)": ["expected ')'", "clamp"],
    "where(x|, 1, 2)": ["expected one of > < >= <=", "','"],
    "where(x > 1|)": ["expected ',' and the second operand of where"],
    "where(x > 1, 2|)": ["expected ',' and the third operand of where"],
    "where(x > 1, 2, 3|, 4)": ["expected ')'", "where"],
    "where(x > 1 |> 2, x, x)": ["expected ','", "'>'"],
    "x |> 1": ["expected an operator", "'>'"],
    "sum[|b,w,h](x)": ["a sum over the batch would grow with it"],
    "x + |é": ["unexpected character 'é'"],
    "x * |٣": ["unexpected character"],
    "x + |1e999": ["too large for float64"],
    "param |Tau = 0; x": ["lower-case"],
    "param |x = 0; x": ["'x' has a meaning of its own"],
    "param |running_mean = 0; x": ["'running_mean' has a meaning of its own"],
    "param |3 = 0; x": ["expected the parameter's name", "'3'"],
    "param tau |1; x": ["expected '=' and the start value", "'1'"],
    "param tau = |x; x": ["expected a number", "'x'"],
    "param tau = 1 |x": ["expected ';' after a declaration"],
    "param a = 1; param |a = 2; a * x": ["'a' is declared twice"],
    "param gamma = 1; param |gamma = 2; gamma * x": ["'gamma' is declared twice"],
    "eps = 1e-3; |eps = 1e-4; x": ["'eps' is declared twice"],
    "eps = |0; x": ["eps must be positive"],
    "eps = |-1; x": ["eps must be positive"],
    "x|; param a = 1": ["expected an operator"],
    "x + |param": ["belongs in a declaration"],
    "input |x[b]; x": ["'x' has a meaning of its own", "an input"],
    "input |gamma[b,c]; x * gamma": ["'gamma' has a meaning of its own"],
    "input |tanh[b]; x": ["'tanh' has a meaning of its own"],
    "input |Z[b]; x": ["lower-case"],
    "input z[|b,w]; x * z": ["the axes of 'z' are one of", "[b,w,h]"],
    "input z[|b,b]; x * z": ["the axes of 'z' are one of"],
    "input |z[b]; x": ["'z' is not used"],
    "input z[b]; input |z[c]; x * z": ["'z' is declared twice"],
    "input z[b]; param |z = 1; x * z": ["'z' is declared twice"],
    "|h = x; x": ["'h' is not used"],
    "h = x; |h = x + 1; h": ["'h' is declared twice"],
    "|v1 = x; v1": ["'v1' has a meaning of its own", "a local name"],
    "h = |h; h": ["unknown name 'h'"],
    "h = x|, x; h": ["expected an operator", "';' after the value of 'h'"],
    "h = x |h; h": ["';' after the value of 'h'"],
    "x,|": ["expected a number", "the end of the formula"],
    "x, |, x": ["expected a number", "','"],
}


@pytest.mark.parametrize("marked", MISTAKES)
def test_mistakes(marked: str) -> None:
    position = marked.index("|")
    formula = marked.replace("|", "", 1)
    with pytest.raises(ParseError) as e:
        parse(formula)
    first, *excerpt = str(e.value).split("\n")
    for phrase in MISTAKES[marked]:
        assert phrase in first
    assert e.value.position == position
    assert len(excerpt) == 2
    assert excerpt[1].index("^") - 2 == position  # every formula of the table is short enough to be shown whole


def test_a_long_formula_is_shown_around_the_mistake() -> None:
    formula = "x + " * 100 + "y" + " + x" * 100
    with pytest.raises(ParseError) as e:
        parse(formula)
    _, line, caret = str(e.value).split("\n")
    assert len(line) < 100
    assert line[caret.index("^")] == "y"


def test_the_line_of_the_mistake_is_shown() -> None:
    with pytest.raises(ParseError) as e:
        parse("param a = 1;\n\tx * b")
    _, line, caret = str(e.value).split("\n")
    assert line[caret.index("^")] == "b"


def test_what_looks_like_a_layer_is_told_about_layers() -> None:
    with pytest.raises(ParseError, match="there is no layer named 'evonorm-s4'; did you mean 'evonorm-s"):
        parse("evonorm-s4")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1), "nested more than"),
        ("(" * (MAX_FORMULA - 1), "nested more than"),
        ("tanh(" * 2000 + "x", "nested more than"),
        ("x+" * MAX_FORMULA, "characters"),
        ("-" * MAX_NODES + "x", "operations"),
        ("param " + "a" * 100 + " = 1; x", "lower-case"),
    ],
)
def test_limits(text: str, phrase: str) -> None:
    with pytest.raises(ParseError, match=phrase):
        parse(text)


def test_the_deepest_formula_parses() -> None:
    assert parse("(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH).output is x
    nested = parse("tanh(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH)
    assert parse(str(nested)) == nested


def test_what_no_formula_can_hold_prints_as_a_dump() -> None:
    node: Node = x
    for _ in range(40):
        node = make(Op.MUL, (make(Op.TANH, (node,)), node))
    graph = Graph((("y", node),), (x,))
    assert str(graph) == graph.dump()


WORDS = [
    *FUNCTIONS,
    *PARAMETERS,
    *"x+-*/()[],;= ",
    "param",
    "eps",
    "scalar",
    "w,h",
    "c/g",
    "1e-3",
    "0",
    "7",
    "^",
    "é",
    "a",
]


@given(st.lists(st.sampled_from(WORDS), max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        graph = parse(text)
    except ParseError as e:
        assert e.position is None or 0 <= e.position <= len(text)
        assert "\n" not in str(e).split("\n  ")[0]
    else:
        assert parse(str(graph)) == graph
