"""The operations: one row each, and the sets that passes ask about, which follow from the rows.

What an operation means is said by tables keyed by `Op`, one a file: float64 (ir/evaluate.py), derivative
(passes/differentiate.py), interval (passes/ranges.py), torch, C and Triton text (codegen/). How one is added is told
in docs/operations.md.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from normforge.errors import MissingOperationError


class Category(enum.Enum):
    """The way in which an operation takes its operands."""

    LEAF = enum.auto()
    ELEMENTWISE = enum.auto()
    REDUCTION = enum.auto()  # of one operand, along axes
    DELIVERY = enum.auto()  # the operand itself, in another type


class Level(enum.Enum):
    """The graphs in which an operation occurs."""

    BOTH = enum.auto()
    SURFACE = enum.auto()  # `legalise` removes it
    CORE = enum.auto()  # only `legalise` and later passes make it


class Bounds(NamedTuple):
    """The numbers between which results lie, whatever the operand is; finite ends are reached if `closed`."""

    low: int
    high: float
    closed: bool = False


@dataclass(frozen=True)
class Traits:
    """The traits of an operation, which passes ask about.

    Attributes:
        category, level: see `Category` and `Level`.
        arity: how many operands it takes.
        cost: of one element in a fused kernel, in additions, roughly; of a moment, with its sweep over memory. It
            chooses among equal forms, never what is hashed.
        commutative: f(a, b) = f(b, a).
        odd: f(-a) = -f(a), exactly. even: f(-a) = f(a).
        rising: a larger operand gives a larger result.
        range: of the results where they are finite; None if they may be anything.
        contracts: |f(a)| <= |a|.
        degree: d, where f(t·a) = t^d · f(a) for every t > 0; of sqrt and the moments in the limit ε -> 0.
        continuous: its results move little where its operands do.
        smooth: its derivatives are continuous and bounded (on bounded operands, for products).
        library: a function of mathematical libraries: dear, and different in the last bit from one to another.
        at_zero: the f(0) of such a function, where that is one number on every machine.
    """

    category: Category
    arity: int
    level: Level = Level.BOTH
    cost: float = 1.0
    commutative: bool = False
    odd: bool = False
    even: bool = False
    rising: bool = False
    range: Bounds | None = None
    contracts: bool = False
    degree: float | None = None
    continuous: bool = True
    smooth: bool = False
    library: bool = False
    at_zero: float | None = None


SWEEP = 40.0  # the cost of a moment: one more pass over memory
_BOTH, _SURFACE, _CORE = Level
_LEAF, _EACH, _ALONG, _DELIVERY = Category
_UNIT, _SIGNED, _CLOSED = Bounds(0, 1), Bounds(-1, 1), Bounds(-1, 1, closed=True)
_POSITIVE, _NONNEGATIVE = Bounds(0, math.inf), Bounds(0, math.inf, closed=True)


class Op(enum.StrEnum):
    """An operation, one row a meaning. `sqrt` and `log` are signed and ε-guarded, `root` and `ln` plain."""

    traits: Traits

    def __new__(cls, word: str, traits: Traits) -> Op:
        """The member that reads and prints as `word`."""
        op = str.__new__(cls, word)
        op._value_ = word
        op.traits = traits
        return op

    # fmt: off
    # leaves
    INPUT = "input", Traits(_LEAF, 0, cost=0.0)  # attr: name, axes, float class
    PARAM = "param", Traits(_LEAF, 0, cost=0.0)  # attr: name, axes, start value
    CONST = "const", Traits(_LEAF, 0, cost=0.0)  # attr: value
    SIZE = "size", Traits(_LEAF, 0, _CORE, cost=0.0)  # attr: axes; the number of elements along them
    # elementwise, surface and core
    ADD = "add", Traits(_EACH, 2, commutative=True, smooth=True)
    SUB = "sub", Traits(_EACH, 2, smooth=True)
    MUL = "mul", Traits(_EACH, 2, commutative=True, smooth=True)
    DIV = "div", Traits(_EACH, 2, cost=4.0)
    MAX = "max", Traits(_EACH, 2, commutative=True)
    MIN = "min", Traits(_EACH, 2, commutative=True)
    NEG = "neg", Traits(_EACH, 1, odd=True, contracts=True, degree=1, smooth=True)
    ABS = "abs", Traits(_EACH, 1, even=True, range=_NONNEGATIVE, contracts=True, degree=1)
    SQUARE = "square", Traits(_EACH, 1, even=True, range=_NONNEGATIVE, degree=2, smooth=True)
    EXP = "exp", Traits(_EACH, 1, cost=10.0, rising=True, range=_POSITIVE, library=True, at_zero=1)
    SIGMOID = "sigmoid", Traits(_EACH, 1, cost=15.0, rising=True, range=_UNIT, smooth=True, library=True, at_zero=0.5)
    TANH = "tanh", Traits(
        _EACH, 1, cost=16.0, odd=True, rising=True, range=_SIGNED, contracts=True, smooth=True, library=True, at_zero=0)
    ERF = "erf", Traits(
        _EACH, 1, cost=16.0, odd=True, rising=True, range=_SIGNED, smooth=True, library=True, at_zero=0)
    SOFTPLUS = "softplus", Traits(_EACH, 1, cost=24.0, rising=True, range=_POSITIVE, smooth=True, library=True)
    SIN = "sin", Traits(
        _EACH, 1, cost=20.0, odd=True, range=_CLOSED, contracts=True, smooth=True, library=True, at_zero=0)
    COS = "cos", Traits(_EACH, 1, cost=20.0, even=True, range=_CLOSED, smooth=True, library=True, at_zero=1)
    SIGN = "sign", Traits(_EACH, 1, odd=True, range=_CLOSED, degree=0, continuous=False)  # -1, 0, 1; NaN of NaN
    WHERE = "where", Traits(_EACH, 4, cost=2.0, continuous=False)  # where(a, b, c, d): c where a > b, else d
    WHERE_GE = "where_ge", Traits(_EACH, 4, cost=2.0, continuous=False)  # c where a >= b, else d; d unordered
    # surface only
    RSQRT = "rsqrt", Traits(_EACH, 1, _SURFACE, cost=8.0, degree=-0.5)  # 1 / root(a), -inf of -0
    SQRT = "sqrt", Traits(_EACH, 1, _SURFACE, cost=10.0, odd=True, rising=True, degree=0.5)  # a / sqrt(|a| + eps)
    LOG = "log", Traits(_EACH, 1, _SURFACE, cost=16.0, odd=True)  # sign(a) ln(|a| + eps)
    STD = "std", Traits(  # attr: axes; sqrt(var + eps)
        _ALONG, 1, _SURFACE, cost=SWEEP + 5.0, range=_NONNEGATIVE, degree=1, smooth=True)
    RMS = "rms", Traits(  # attr: axes; sqrt(mean of squares + eps)
        _ALONG, 1, _SURFACE, cost=SWEEP + 6.0, range=_NONNEGATIVE, degree=1, smooth=True)
    TOTAL = "total", Traits(_ALONG, 1, _SURFACE, cost=SWEEP, degree=1, smooth=True)  # attr: axes; the word is `sum`
    # moments; surface and core
    MEAN = "mean", Traits(_ALONG, 1, cost=SWEEP, degree=1, smooth=True)  # attr: axes
    VAR = "var", Traits(  # attr: axes; biased, centred: one level together with the mean of the same operand
        _ALONG, 1, cost=SWEEP, range=_NONNEGATIVE, degree=2)
    # core only
    SUM = "sum", Traits(_ALONG, 1, _CORE, cost=SWEEP, degree=1)  # attr: axes
    ROOT = "root", Traits(_EACH, 1, _CORE, cost=4.0, rising=True, range=_NONNEGATIVE, degree=0.5)  # IEEE square root
    LN = "ln", Traits(_EACH, 1, _CORE, cost=12.0, rising=True, library=True)  # IEEE natural logarithm
    BROADCAST = "broadcast", Traits(_DELIVERY, 1, _CORE, cost=0.0, degree=1)  # attr: axes, float class
    GATE = "gate", Traits(_EACH, 3, _CORE)  # gate(a, b, t): t where a > b, t/2 where a == b, 0 where a < b; t unordered
    # fmt: on


def _of_category(*categories: Category) -> frozenset[Op]:
    return frozenset(op for op in Op if op.traits.category in categories)


# What `legalise` removes, and what only it and later passes make.
SURFACE_ONLY = frozenset(op for op in Op if op.traits.level is Level.SURFACE)
CORE_ONLY = frozenset(op for op in Op if op.traits.level is Level.CORE)
CORE = frozenset(Op) - SURFACE_ONLY
SURFACE = frozenset(Op) - CORE_ONLY
LEAF = _of_category(Category.LEAF)
ELEMENTWISE = _of_category(Category.ELEMENTWISE)
REDUCTION = _of_category(Category.REDUCTION)
REDUCE = REDUCTION & CORE
MOMENT = REDUCTION & SURFACE
UNARY = tuple(op for op in Op if op in ELEMENTWISE & SURFACE and op.traits.arity == 1)  # in the order of the rows
BINARY = frozenset(op for op in ELEMENTWISE if op.traits.arity == 2)
COMMUTATIVE = frozenset(op for op in Op if op.traits.commutative)
LIBRARY = frozenset(op for op in Op if op.traits.library)
BY_NAME: dict[str, Op] = {op.value: op for op in Op}

Row = TypeVar("Row")


class Table(dict[Op, Row]):
    """An interpretation of operations, each by its row. What has none is refused by name.

    Attributes:
        name: of the interpretation, as an error says it.
        over: the operations that must have a row: a test asks every table for every one of them.
    """

    def __init__(self, name: str, over: Iterable[Op], rows: dict[Op, Row]) -> None:
        super().__init__(rows)
        self.name, self.over = name, frozenset(over)

    def __missing__(self, op: Op) -> Row:
        raise no_row(op, self.name)


def no_row(op: Op, table: str) -> MissingOperationError:
    """The error of a table that is asked for an operation which it does not know."""
    return MissingOperationError(f"the {table} has no row for the operation {op!s}: see docs/operations.md")
