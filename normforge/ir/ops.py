"""The operations, and the sets that passes ask about. Each interpretation is a table keyed by `Op` elsewhere:
evaluate (ir/evaluate.py), derivative (passes/differentiate.py), C, Triton and torch text (codegen/)."""

from __future__ import annotations

import enum


class Op(enum.StrEnum):
    """One row a meaning. `sqrt` and `log` are the signed, ε-guarded surface forms; `root` and `ln` the plain ones."""

    # leaves
    INPUT = "input"  # attr: name, axes, float class
    PARAM = "param"  # attr: name, axes, start value
    CONST = "const"  # attr: value
    SIZE = "size"  # attr: axes; the number of elements along them
    # elementwise, surface and core
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    MAX = "max"
    MIN = "min"
    NEG = "neg"
    ABS = "abs"
    SQUARE = "square"
    EXP = "exp"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    ERF = "erf"
    # surface only
    SQRT = "sqrt"  # a / sqrt(|a| + eps)
    LOG = "log"  # sign(a) ln(|a| + eps)
    STD = "std"  # attr: axes; sqrt(var + eps)
    RMS = "rms"  # attr: axes; sqrt(mean of squares + eps)
    # moments; surface and core
    MEAN = "mean"  # attr: axes
    # core only
    VAR = "var"  # attr: axes; biased, centred: one level together with the mean of the same operand
    SUM = "sum"  # attr: axes
    ROOT = "root"  # IEEE square root
    LN = "ln"  # IEEE natural logarithm
    SIGN = "sign"  # -1, 0, 1; NaN of NaN
    BROADCAST = "broadcast"  # attr: axes, float class; the operand, delivered in a larger type
    GATE = "gate"  # gate(a, b, t): t where a > b, t/2 where a == b, 0 where a < b; t where unordered


UNARY = frozenset({Op.NEG, Op.ABS, Op.SQUARE, Op.EXP, Op.SIGMOID, Op.TANH, Op.ERF, Op.SQRT, Op.LOG})
UNARY_CORE = frozenset({Op.ROOT, Op.LN, Op.SIGN})
BINARY = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.MIN})
COMMUTATIVE = frozenset({Op.ADD, Op.MUL, Op.MAX, Op.MIN})
MOMENT = frozenset({Op.MEAN, Op.STD, Op.RMS})
REDUCE = frozenset({Op.MEAN, Op.VAR, Op.SUM})
LEAF = frozenset({Op.INPUT, Op.PARAM, Op.CONST, Op.SIZE})
ELEMENTWISE = UNARY | UNARY_CORE | BINARY | {Op.GATE}
# What `legalise` removes, and what only it and later passes make.
SURFACE_ONLY = frozenset({Op.SQRT, Op.LOG, Op.STD, Op.RMS})
CORE_ONLY = frozenset({Op.VAR, Op.SUM, Op.ROOT, Op.LN, Op.SIGN, Op.GATE, Op.SIZE, Op.BROADCAST})
CORE = frozenset(Op) - SURFACE_ONLY
SURFACE = frozenset(Op) - CORE_ONLY

ARITY: dict[Op, int] = (
    dict.fromkeys(LEAF, 0)
    | dict.fromkeys(UNARY | UNARY_CORE | MOMENT | REDUCE | {Op.BROADCAST}, 1)
    | dict.fromkeys(BINARY, 2)
    | {Op.GATE: 3}
)
BY_NAME: dict[str, Op] = {op.value: op for op in Op}
