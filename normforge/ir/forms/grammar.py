"""The vocabulary of formulas and the tokens they are made of; the grammar itself is EBNF in docs/formula.md."""

from __future__ import annotations

import re
from typing import NamedTuple

from normforge.errors import ParseError
from normforge.ir.forms.sugar import SUGAR_ARITY
from normforge.ir.limits import MAX_FORMULA, MAX_NAME
from normforge.ir.ops import MOMENT, UNARY, Op
from normforge.ir.types import INDEX_SETS

# Parameters that every formula may use without a declaration, and their start values (EvoNorm, section 3.2).
PARAMETERS = {"v0": 0.0, "v1": 1.0, "gamma": 1.0, "beta": 0.0}
UNARY_NAMES = {op.value: op for op in UNARY if op is not Op.NEG}
# Operations whose word is not their name.
WORDS = {Op.TOTAL: "sum", Op.WHERE_GE: "where"}
COMPARISONS = {">": Op.WHERE, "<": Op.WHERE, ">=": Op.WHERE_GE, "<=": Op.WHERE_GE}
PAIR_NAMES = {"max": Op.MAX, "min": Op.MIN}
MOMENT_NAMES = {WORDS.get(op, op.value): op for op in Op if op in MOMENT}
# By name, how many operands it takes: primitives, and what is short for some of them (`normforge.ir.forms.sugar`).
ARITY = dict.fromkeys((*UNARY_NAMES, *MOMENT_NAMES), 1) | dict.fromkeys(PAIR_NAMES, 2) | SUGAR_ARITY | {"where": 4}
FUNCTIONS = tuple(ARITY)
# Words that name nothing else. Functions that came later (softplus, sin, mish, ...) are not among them: a parameter
# declared under such a name wins, so that formulas written before keep their meaning.
RESERVED = frozenset((
    "x", "param", "eps", "scalar", "abs", "square", "exp", "sigmoid", "tanh", "erf", "sqrt", "log", "relu", "silu",
    "gelu", "max", "min", "mean", "std", "rms",
))  # fmt: skip
STATEMENTS = ("param", "eps", "input")
SETS = {frozenset(k.split(",")): axes for k, axes in INDEX_SETS.items()}

_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}")
_BUFFER = re.compile(r"running_(mean|var|ms)(_[0-9]+)?")
POWER_HINT = "; write a**2 for a power"
_BETWEEN = re.compile(r"\s+|#[^\n]*")  # spaces and comments
# ASCII alone: \d and \w would let in digits and letters of other scripts.
_TOKEN = re.compile(
    r"(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|[<>]=?|[-+*/()\[\],;=]))"
)


def is_parameter_name(name: str) -> bool:
    """True for a lower-case name that means nothing else: no word of the grammar, no buffer of a running statistic."""
    return bool(_NAME.fullmatch(name)) and name not in RESERVED and not is_buffer_name(name)


def is_input_name(name: str) -> bool:
    """True for a name that a further input or a local name may have: a parameter's, but for those that are there
    without a declaration and all words of the language."""
    return is_parameter_name(name) and name not in PARAMETERS and name not in FUNCTIONS


def is_buffer_name(name: str) -> bool:
    """True for the names that running statistics take."""
    return bool(_BUFFER.fullmatch(name))


class Token(NamedTuple):
    """A token of a formula.

    Attributes:
        type: number, name, sign or end.
        position: of its first character in the text.
    """

    type: str
    text: str
    position: int

    def __str__(self) -> str:
        return repr(self.text[:40]) if self.text else "the end of the formula"


def tokenize(text: str) -> list[Token]:
    """The tokens of a formula, with an `end` token last.

    Raises:
        ParseError: a character that no token starts with, or a text over the length limit.
    """
    if len(text) > MAX_FORMULA:
        raise ParseError(f"the formula has {len(text)} characters and {MAX_FORMULA} are allowed: shorten it")
    tokens, at = [], _start(text, 0)
    while m := _TOKEN.match(text, at):
        name = str(m.lastgroup)
        tokens.append(Token(name, m[name], at))
        at = _start(text, m.end())
    if at < len(text):
        hint = POWER_HINT if text[at] == "^" else ""
        raise ParseError(f"unexpected character {text[at]!r}{hint}", text, at)
    return [*tokens, Token("end", "", len(text))]


def _start(text: str, at: int) -> int:
    """The position of the next token, or of the end."""
    while m := _BETWEEN.match(text, at):
        at = m.end()
    return at
