"""Words that are short for primitives; a formula prints what they stand for.

The activations are torch's, but for ties: where two branches meet, each operand of `max` and `min` has half of the
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from normforge.ir.node import Node, const, make
from normforge.ir.ops import Op


def power(a: Node, exponent: int) -> Node:
    """a to a whole number above 1, in as few products as squares allow."""
    result = a
    for bit in f"{exponent:b}"[1:]:
        result = make(Op.SQUARE, (result,))
        if bit == "1":
            result = make(Op.MUL, (result, a))
    return result


def _clamp(a: Node, low: Node, high: Node) -> Node:
    return make(Op.MIN, (make(Op.MAX, (a, low)), high))


def _relu(a: Node) -> Node:
    return make(Op.MAX, (a, const(0.0)))


def _relu6(a: Node) -> Node:
    return _clamp(a, const(0.0), const(6.0))


def _leaky_relu(a: Node) -> Node:
    return make(Op.MAX, (a, make(Op.MUL, (const(0.01), a))))


def _elu(a: Node) -> Node:
    below = make(Op.EXP, (make(Op.MIN, (a, const(0.0))),))
    return make(Op.ADD, (_relu(a), make(Op.SUB, (below, const(1.0)))))


def _silu(a: Node) -> Node:
    return make(Op.MUL, (a, make(Op.SIGMOID, (a,))))


def _gelu(a: Node) -> Node:
    inner = make(Op.ERF, (make(Op.DIV, (a, const(math.sqrt(2.0)))),))
    return make(Op.MUL, (make(Op.MUL, (const(0.5), a)), make(Op.ADD, (const(1.0), inner))))


def _mish(a: Node) -> Node:
    return make(Op.MUL, (a, make(Op.TANH, (make(Op.SOFTPLUS, (a,)),))))


def _hardsigmoid(a: Node) -> Node:
    return make(Op.DIV, (_relu6(make(Op.ADD, (a, const(3.0)))), const(6.0)))


def _hardswish(a: Node) -> Node:
    return make(Op.DIV, (make(Op.MUL, (a, _relu6(make(Op.ADD, (a, const(3.0)))))), const(6.0)))


SUGAR: dict[str, Callable[..., Node]] = {
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "swish": _silu,
    "mish": _mish,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "clamp": _clamp,
}
SUGAR_ARITY = dict.fromkeys(SUGAR, 1) | {"clamp": 3}
