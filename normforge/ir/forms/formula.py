"""The formula form: a hand-written parser that points at the mistake. `ir/forms/printer.py` is its inverse.

The grammar is written down as EBNF in docs/formula.md.
"""

from __future__ import annotations

import math
from typing import NoReturn

from normforge.errors import ParseError, nearest
from normforge.ir.forms.grammar import (
    ARITY,
    COMPARISONS,
    FUNCTIONS,
    MOMENT_NAMES,
    PAIR_NAMES,
    PARAMETERS,
    RESERVED,
    SETS,
    UNARY_NAMES,
    Token,
    is_buffer_name,
    is_input_name,
    is_parameter_name,
    tokenize,
)
from normforge.ir.forms.sugar import SUGAR, power
from normforge.ir.graph import EPS, Graph, declared_input, result_name
from normforge.ir.limits import MAX_DEPTH, MAX_NAME, MAX_NODES
from normforge.ir.node import Node, const, data, make, param
from normforge.ir.ops import Op
from normforge.ir.types import INDEX_SETS, INPUT_AXES

EXPONENTS = tuple("2345678")
_SIGNS = {"+": Op.ADD, "-": Op.SUB, "*": Op.MUL, "/": Op.DIV}


class _Level:
    """What has been read inside one open bracket: a sum so far, a product so far, and the signs that wait."""

    def __init__(self, name: str = "", axes: int = 0) -> None:
        self.name, self.axes = name, axes  # the function whose bracket this is, and its index set
        self.args: list[Node] = []
        self.comparison = ""  # of `where`
        self.restart()

    def restart(self) -> None:
        self.sum: Node | None = None
        self.product: Node | None = None
        self.add = self.multiply = "+"

    def take(self, factor: Node) -> None:
        if self.product is None:
            self.product = factor
        else:
            self.product = make(_SIGNS[self.multiply], (self.product, factor))

    def close_product(self) -> Node:
        """The sum with the product added to it."""
        assert self.product is not None
        self.sum = self.product if self.sum is None else make(_SIGNS[self.add], (self.sum, self.product))
        self.product = None
        return self.sum

    def value(self) -> Node:
        """The node of the closed bracket."""
        if not self.name:
            return self.args[0]
        if self.name in SUGAR:
            return SUGAR[self.name](*self.args)
        if self.name == "where":
            a, b, *branches = self.args
            return make(COMPARISONS[self.comparison], (*((a, b) if self.comparison[0] == ">" else (b, a)), *branches))
        if self.name in MOMENT_NAMES:
            return make(MOMENT_NAMES[self.name], tuple(self.args), (self.axes,))
        return make((UNARY_NAMES | PAIR_NAMES)[self.name], tuple(self.args))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.at = 0
        self.eps = EPS
        self.declared: set[str] = set()
        self.inputs: dict[str, Token] = {}
        self.locals: dict[str, Token] = {}
        self.read: set[str] = set()  # inputs and local names
        self.names: dict[str, Node] = {"x": data("x")} | {k: param(k, v) for k, v in PARAMETERS.items()}

    # -- reading tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        raise ParseError(message, self.text, (token or self.token).position)

    def accept(self, *texts: str) -> Token | None:
        token = self.token
        if token.text in texts and token.type != "end":
            self.at += 1
            return token
        return None

    def expect(self, text: str, what: str = "") -> None:
        if self.accept(text) is None:
            self.fail(f"expected {text!r}{what}, found {self.token}")

    def after(self, steps: int) -> Token:
        """The token that comes so many later."""
        return self.tokens[min(self.at + steps, len(self.tokens) - 1)]

    # -- statements

    def formula(self) -> Graph:
        while self.statement():
            self.expect(";", " after a declaration")
        results = [self.expression()]
        while self.accept(","):
            results.append(self.expression())
        if self.token.type != "end":
            self.fail(f"expected an operator (+ - * /) or the end of the formula, found {self.token}")
        for name, token in (self.inputs | self.locals).items():
            if name not in self.read:
                self.fail(f"{name!r} is not used", token)
        inputs = (self.names["x"], *(self.names[name] for name in self.inputs))
        graph = Graph(tuple((result_name(i), y) for i, y in enumerate(results)), inputs, self.eps)
        if len(graph.nodes) > MAX_NODES:
            raise ParseError(f"the formula has {len(graph.nodes)} operations and {MAX_NODES} are allowed: shorten it")
        return graph

    def statement(self) -> bool:
        """Read one without its semicolon; false where the results begin."""
        first = self.token
        if first.text in ("param", "eps"):
            self.declaration()
        elif first.text == "input" and self.after(1).type == "name" and self.after(2).text == "[":
            self.input()
        elif first.type == "name" and self.after(1).text == "=":
            self.local()
        else:
            return False
        return True

    def input(self) -> None:
        self.expect("input")
        token = self.new_name("an input")
        self.inputs[token.text] = token
        self.names[token.text] = declared_input(token.text, self.input_axes(token))

    def local(self) -> None:
        token = self.new_name("a local name")
        self.expect("=")
        value = self.expression()
        if self.token.text != ";":
            self.fail(f"expected an operator (+ - * /) or ';' after the value of {token}, found {self.token}")
        self.locals[token.text], self.names[token.text] = token, value

    def new_name(self, what: str) -> Token:
        """The name of an input or of a local value."""
        token = self.token
        if token.text in self.inputs or token.text in self.locals or token.text in self.declared:
            self.fail(f"{token} is declared twice")
        if not is_input_name(token.text):
            meaning = token.text in RESERVED or token.text in self.names or token.text in FUNCTIONS
            if meaning or is_buffer_name(token.text):
                self.fail(f"{token} has a meaning of its own: choose another name for {what}")
            self.fail(f"expected {what}, lower-case letters, digits and _, at most {MAX_NAME}")
        self.at += 1
        return token

    def input_axes(self, name: Token) -> int:
        known = " · ".join(f"[{axes}]" for axes in INPUT_AXES)
        self.expect("[")
        first = self.token
        letters = []
        while letter := self.accept("b", "c", "w", "h"):
            letters.append(letter.text)
            if not self.accept(","):
                break
        if self.accept("]") and len(set(letters)) == len(letters):
            for text, axes in INPUT_AXES.items():
                if set(text.split(",")) == set(letters or [""]):
                    return axes
        self.fail(f"the axes of {name} are one of {known}", first)

    def declaration(self) -> None:
        first = self.token
        if self.accept("eps"):
            name = "eps"
            self.expect("=", " and the value of ε")
            token = self.token
            self.eps = self.signed_number()
            if not self.eps > 0:
                self.fail("eps must be positive", token)
        else:
            self.expect("param")
            first = self.token
            name = self.parameter_name()
            scalar = self.accept("scalar") is not None
            self.expect("=", " and the start value")
            self.names[name] = param(name, self.signed_number(), scalar=scalar)
        if name in self.declared or name in self.inputs or name in self.locals:
            self.fail(f"{name!r} is declared twice", first)
        self.declared.add(name)

    def parameter_name(self) -> str:
        name = self.token.text
        if self.token.type != "name":
            self.fail(f"expected the parameter's name, found {self.token}")
        if name in RESERVED or is_buffer_name(name):
            self.fail(f"{name!r} has a meaning of its own: choose another parameter name")
        if not is_parameter_name(name):
            self.fail(f"expected the parameter's name, lower-case letters, digits and _, at most {MAX_NAME}")
        self.at += 1
        return name

    def signed_number(self) -> float:
        sign = -1.0 if self.accept("-") else 1.0
        if self.token.type != "number":
            self.fail(f"expected a number, found {self.token}")
        return sign * self.number()

    def number(self) -> float:
        value = float(self.token.text)
        if math.isinf(value):
            self.fail("this number is too large for float64")
        self.at += 1
        return value

    # -- expressions

    def expression(self) -> Node:
        """All up to what ends it; open brackets wait on a list, since they may nest deeper than Python's stack."""
        levels = [_Level()]
        signs = [0]  # how many minus signs stand before each open bracket, the innermost last
        while True:
            minus = 0
            while self.accept("-"):
                minus += 1
            literal = self.token.type == "number" and self.tokens[self.at + 1].text != "**"
            if minus and literal:  # -2 is a number, -(2) a negation, -2**2 that of a power
                node, minus = const(-self.number()), minus - 1
            else:
                operand = self.operand()
                if isinstance(operand, _Level):
                    if len(levels) > MAX_DEPTH:
                        self.fail(f"brackets are nested more than {MAX_DEPTH} deep", self.tokens[self.at - 1])
                    levels.append(operand)
                    signs.append(minus)
                    continue
                node = operand
            while True:
                if self.accept("**"):
                    node = power(node, self.exponent())
                for _ in range(minus):
                    node = make(Op.NEG, (node,))
                level = levels[-1]
                level.take(node)
                if self.operator(level):
                    break
                level.args.append(level.close_product())
                if len(levels) == 1:
                    return level.args[0]
                if len(level.args) < ARITY.get(level.name, 1):
                    self.separator(level)
                    level.restart()
                    break
                self.expect(")", f" or an operator (+ - * /){f' after the operand of {level.name}' * bool(level.name)}")
                node, minus = level.value(), signs.pop()
                levels.pop()

    def separator(self, level: _Level) -> None:
        """What stands between two operands of a function."""
        if level.name == "where" and len(level.args) == 1:
            sign = self.accept(*COMPARISONS)
            if sign is None:
                self.fail(f"expected one of {' '.join(COMPARISONS)} in the condition of where, found {self.token}")
            level.comparison = sign.text
        else:
            which = ("second", "third", "fourth")[len(level.args) - 1 - (level.name == "where")]
            self.expect(",", f" and the {which} operand of {level.name}")

    def exponent(self) -> int:
        """A literal from 2 to 8."""
        token = self.token
        if token.type != "number" or token.text not in EXPONENTS:
            self.fail(f"an exponent is a whole number from {EXPONENTS[0]} to {EXPONENTS[-1]}, not {token}")
        self.at += 1
        if self.token.text == "**":
            self.fail("a power of a power needs brackets")
        return int(token.text)

    def operator(self, level: _Level) -> bool:
        """Read one of + - * / into the level, if there is one."""
        if op := self.accept("*", "/"):
            level.multiply = op.text
        elif op := self.accept("+", "-"):
            level.close_product()
            level.add = op.text
        return op is not None

    def operand(self) -> Node | _Level:
        """A number, a name, or the bracket that opens one."""
        token = self.token
        if token.type == "number":
            return const(self.number())
        if self.accept("("):
            return _Level()
        if token.type != "name":
            self.fail(f"expected a number, a name, a function or '(', found {token}")
        self.at += 1
        if self.token.text in ("(", "["):
            return self.call(token)
        if token.text in self.names:
            self.read.add(token.text)
            return self.names[token.text]
        if token.text in FUNCTIONS:
            opening = "[" if token.text in MOMENT_NAMES else "("
            self.fail(f"{token.text} is a function: expected {opening!r} after it, found {self.token}")
        if token.text in RESERVED:
            self.fail(f"{token.text!r} belongs in a declaration, before the expression", token)
        known = [*self.names, *FUNCTIONS]
        hint = nearest(token.text, known) if len(token.text) > 2 or token.text.lower() in known else ""
        declared = f"; the input is x; declare others, as in param {token.text[:20]} = 0; ..."
        self.fail(f"unknown name {token}{hint or declared}", token)

    def call(self, name: Token) -> _Level:
        if name.text not in FUNCTIONS or name.text in self.declared:
            if name.text in self.names:
                self.fail(f"{name} is a value, not a function: expected an operator (+ - * /)")
            self.fail(f"unknown function {name}{nearest(name.text, FUNCTIONS)}", name)
        axes = self.index_set(name) if name.text in MOMENT_NAMES else 0
        self.expect("(", f" after {name.text}")
        return _Level(name.text, axes)

    def index_set(self, name: Token) -> int:
        known = " · ".join(INDEX_SETS)
        if not self.accept("["):
            self.fail(f"expected '[' and an index set after {name.text}, one of {known}")
        first = self.token
        letters: list[str] = []
        while True:
            letter = self.accept("b", "w", "h", "c")
            if letter is None:
                self.fail(f"expected one of b, w, h, c, c/g in an index set, found {self.token}")
            grouped = letter.text == "c" and self.accept("/") is not None
            if grouped:
                self.expect("g")
            letters.append("c/g" if grouped else letter.text)
            if not self.accept(","):
                break
        self.expect("]", " or ','")
        axes = SETS.get(frozenset(letters))
        if name.text == "sum" and "b" in letters:
            self.fail("a sum over the batch would grow with it: take the mean", first)
        if axes is None or len(set(letters)) != len(letters):
            self.fail(f"[{','.join(letters)[:40]}] is not an index set: write one of {known}", first)
        return axes


def parse_formula(text: str) -> Graph:
    """The surface graph of a formula: one input `x`, one output `y`.

    Raises:
        ParseError: with the position, what was expected, and the nearest known name.
    """
    return _Parser(text).formula()
