"""The formula form: a hand-written parser that points at the mistake, and the printer that it inverts.

The grammar is written down as EBNF in docs/formula.md.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from normforge.errors import ParseError, nearest
from normforge.ir.graph import EPS, Graph
from normforge.ir.limits import MAX_DEPTH, MAX_FORMULA, MAX_NODES
from normforge.ir.node import Node, const, data, make, param
from normforge.ir.ops import MOMENT, Op
from normforge.ir.types import INDEX_NAMES, INDEX_SETS

# Parameters that every formula may use without a declaration, and their start values (EvoNorm, section 3.2).
PARAMETERS = {"v0": 0.0, "v1": 1.0, "gamma": 1.0, "beta": 0.0}
UNARY_NAMES = {op.value: op for op in (Op.ABS, Op.SQUARE, Op.EXP, Op.SIGMOID, Op.TANH, Op.ERF, Op.SQRT, Op.LOG)}
SUGAR = ("relu", "silu", "gelu")
PAIR_NAMES = {"max": Op.MAX, "min": Op.MIN}
MOMENT_NAMES = {op.value: op for op in (Op.MEAN, Op.STD, Op.RMS)}
FUNCTIONS = (*UNARY_NAMES, *SUGAR, *PAIR_NAMES, *MOMENT_NAMES)
RESERVED = (*FUNCTIONS, "x", "param", "eps", "scalar")
_SETS = {frozenset(k.split(",")): axes for k, axes in INDEX_SETS.items()}

_TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/()\[\],;=]))")


@dataclass(frozen=True)
class Token:
    """kind: number, name, sign or end; `position` is that of its first character."""

    kind: str
    text: str
    position: int


def tokenize(text: str) -> list[Token]:
    """The tokens of a formula, with an `end` token last.

    Raises:
        ParseError: a character that no token starts with, or a text over the length limit.
    """
    if len(text) > MAX_FORMULA:
        raise ParseError(f"the formula has {len(text)} characters and {MAX_FORMULA} are allowed: shorten it")
    tokens, at = [], 0
    while m := _TOKEN.match(text, at):
        kind = str(m.lastgroup)
        tokens.append(Token(kind, m[kind], m.start(kind)))
        at = m.end()
    rest = len(text) - len(text[at:].lstrip())
    if rest < len(text):
        hint = "; write square(a) for a power" if text[rest] in "^" else ""
        raise ParseError(f"unexpected character {text[rest]!r}{hint}", text, rest)
    return [*tokens, Token("end", "", len(text))]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.at = 0
        self.depth = 0
        self.eps = EPS
        self.names: dict[str, Node] = {"x": data("x")} | {k: param(k, v) for k, v in PARAMETERS.items()}

    # -- reading tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        raise ParseError(message, self.text, (token or self.token).position)

    def accept(self, *texts: str) -> Token | None:
        token = self.token
        if token.text in texts and token.kind != "end":
            self.at += 1
            return token
        return None

    def expect(self, text: str, what: str = "") -> Token:
        found = self.accept(text)
        if found is None:
            got = repr(self.token.text) if self.token.text else "the end of the formula"
            self.fail(f"expected {text!r}{what}, found {got}")
        return found

    # -- declarations

    def formula(self) -> Graph:
        while self.token.text in ("param", "eps") and self.token.kind == "name":
            self.declaration()
        y = self.sum()
        if self.token.kind != "end":
            self.fail(f"expected an operator (+ - * /) or the end of the formula, found {self.token.text!r}")
        graph = Graph((("y", y),), (self.names["x"],), self.eps)
        if len(graph.nodes) > MAX_NODES:
            raise ParseError(f"the formula has {len(graph.nodes)} nodes and {MAX_NODES} are allowed: shorten it")
        return graph

    def declaration(self) -> None:
        if self.accept("eps"):
            self.expect("=")
            token = self.token
            self.eps = self.signed_number()
            if not self.eps > 0:
                self.fail("eps must be positive", token)
        else:
            self.expect("param")
            token = self.token
            if token.kind != "name" or not re.fullmatch(r"[a-z][a-z0-9_]*", token.text):
                self.fail("expected the parameter's name, in lower case")
            if token.text in RESERVED:
                self.fail(f"{token.text!r} has a meaning of its own: choose another parameter name")
            if any(n.op is Op.PARAM and k == token.text for k, n in self.names.items() if k not in PARAMETERS):
                self.fail(f"parameter {token.text!r} is declared twice")
            self.at += 1
            scalar = self.accept("scalar") is not None
            self.expect("=", " and the start value")
            self.names[token.text] = param(token.text, self.signed_number(), scalar=scalar)
        self.expect(";", " after a declaration")

    def signed_number(self) -> float:
        sign = -1.0 if self.accept("-") else 1.0
        if self.token.kind != "number":
            self.fail("expected a number")
        return sign * self.number()

    def number(self) -> float:
        token = self.token
        value = float(token.text)
        if math.isinf(value):
            self.fail("this number is too large for float64", token)
        self.at += 1
        return value

    # -- expressions

    def sum(self) -> Node:
        left = self.product()
        while op := self.accept("+", "-"):
            left = make(Op.ADD if op.text == "+" else Op.SUB, (left, self.product()))
        return left

    def product(self) -> Node:
        left = self.factor()
        while op := self.accept("*", "/"):
            left = make(Op.MUL if op.text == "*" else Op.DIV, (left, self.factor()))
        return left

    def factor(self) -> Node:
        minus = 0
        while self.accept("-"):
            minus += 1
        if minus and self.token.kind == "number":  # -2 is a number, -(2) a negation
            node, minus = const(-self.number()), minus - 1
        else:
            node = self.atom()
        for _ in range(minus):
            node = make(Op.NEG, (node,))
        return node

    def atom(self) -> Node:
        token = self.token
        if token.kind == "number":
            return const(self.number())
        if self.accept("("):
            node = self.nested()
            self.expect(")")
            return node
        if token.kind == "name":
            self.at += 1
            if self.token.text in ("(", "["):
                return self.call(token)
            if token.text in self.names:
                return self.names[token.text]
            if token.text in FUNCTIONS:
                self.fail(f"{token.text} is a function: expected {'[' if token.text in MOMENT_NAMES else '('!r} after it")
            self.fail(f"unknown name {token.text!r}{nearest(token.text, [*self.names, *FUNCTIONS])}", token)
        got = repr(token.text) if token.text else "the end of the formula"
        self.fail(f"expected a number, a name, a function or '(', found {got}")

    def nested(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"brackets are nested more than {MAX_DEPTH} deep")
        node = self.sum()
        self.depth -= 1
        return node

    def call(self, name: Token) -> Node:
        if name.text not in FUNCTIONS:
            if name.text in self.names:
                self.fail(f"{name.text!r} is a value, not a function: expected an operator", self.token)
            self.fail(f"unknown function {name.text!r}{nearest(name.text, FUNCTIONS)}", name)
        if op := MOMENT_NAMES.get(name.text):
            axes = self.index_set(name)
            self.expect("(")
            a = self.nested()
            self.expect(")")
            return make(op, (a,), (axes,))
        self.expect("(")
        a = self.nested()
        if op := PAIR_NAMES.get(name.text):
            self.expect(",", f" and the second operand of {name.text}")
            b = self.nested()
            self.expect(")")
            return make(op, (a, b))
        self.expect(")")
        return sugar(name.text, a) if name.text in SUGAR else make(UNARY_NAMES[name.text], (a,))

    def index_set(self, name: Token) -> int:
        known = " · ".join(INDEX_SETS)
        if not self.accept("["):
            self.fail(f"expected '[' and an index set after {name.text}, one of {known}")
        first = self.token
        letters: list[str] = []
        while True:
            letter = self.accept("b", "w", "h", "c")
            if letter is None:
                self.fail(f"expected one of b, w, h, c, c/g in an index set, found {self.token.text!r}")
            grouped = letter.text == "c" and self.accept("/") is not None
            if grouped:
                self.expect("g")
            letters.append("c/g" if grouped else letter.text)
            if not self.accept(","):
                break
        self.expect("]", " or ','")
        axes = _SETS.get(frozenset(letters))
        if axes is None or len(set(letters)) != len(letters):
            self.fail(f"[{','.join(letters)}] is not an index set: write one of {known}", first)
        return axes


def sugar(name: str, a: Node) -> Node:
    """relu, silu and gelu in terms of the primitives."""
    if name == "relu":
        return make(Op.MAX, (a, const(0.0)))
    if name == "silu":
        return make(Op.MUL, (a, make(Op.SIGMOID, (a,))))
    inner = make(Op.ERF, (make(Op.DIV, (a, const(math.sqrt(2.0)))),))
    return make(Op.MUL, (make(Op.MUL, (const(0.5), a)), make(Op.ADD, (const(1.0), inner))))


def parse_formula(text: str) -> Graph:
    """The surface graph of a formula: one input `x`, one output `y`.

    Raises:
        ParseError: with the position, what was expected, and the nearest known name.
    """
    return _Parser(text).formula()


_SIGNS = {Op.ADD: "+", Op.SUB: "-", Op.MUL: "*", Op.DIV: "/"}
_PRECEDENCE = {Op.ADD: 1, Op.SUB: 1, Op.MUL: 2, Op.DIV: 2}


def format_number(value: float) -> str:
    """The shortest decimal that reads back to the same float64."""
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def format_formula(graph: Graph) -> str:
    """The formula of a surface graph, declarations first; `parse_formula` returns the same graph.

    Raises:
        ParseError: sharing makes the text longer than a formula may be; use the dump.
    """
    head = [] if graph.eps == EPS else [f"eps = {format_number(graph.eps)}; "]
    for p in graph.params:
        if p.name not in PARAMETERS or p is not param(p.name, PARAMETERS[p.name]):
            head.append(f"param {p.name}{'' if p.axes else ' scalar'} = {format_number(p.attr[2])}; ")
    done: dict[Node, tuple[str, int]] = {}
    for node in graph.nodes:
        done[node] = _format(node, done)
        if len(done[node][0]) > MAX_FORMULA:
            raise ParseError("the graph shares too much to be written as a formula: use dump() or to_json()")
    return "".join(head) + done[graph.output][0]


def _format(node: Node, done: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    """Text and precedence (3 binds tightest) of one node."""
    op = node.op
    if op is Op.INPUT or op is Op.PARAM:
        return node.name, 3
    if op is Op.CONST:
        negative = math.copysign(1.0, node.value) < 0
        return (f"({format_number(node.value)})" if negative else format_number(node.value)), 3
    args = [done[a] for a in node.args]
    if op in _SIGNS:
        p = _PRECEDENCE[op]
        left = args[0][0] if args[0][1] >= p else f"({args[0][0]})"
        right = args[1][0] if args[1][1] > p else f"({args[1][0]})"
        return f"{left} {_SIGNS[op]} {right}", p
    if op is Op.NEG:
        inner = node.args[0]
        bare = args[0][1] == 3 and inner.op is not Op.CONST and inner.op is not Op.NEG
        return f"(-{args[0][0]})" if bare else f"(-({args[0][0]}))", 3
    index = f"[{INDEX_NAMES[node.reduced]}]" if op in MOMENT else ""
    return f"{op}{index}({', '.join(a[0] for a in args)})", 3


