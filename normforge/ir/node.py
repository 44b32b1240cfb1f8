"""Nodes: immutable, hash-consed (equality is identity), each with its inferred type and a stable digest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from normforge.errors import GraphError
from normforge.ir.ops import Category, Level, Op, no_row
from normforge.ir.types import FULL, INDEX_NAMES, B, C, FloatClass, Type, axes_name, valid_axes

Attr = tuple[Any, ...]


class Node:
    """One operation. Never construct it directly: `make` returns the one node with this meaning.

    Attributes:
        op: the operation.
        args: operands.
        attr: what else defines it: (name, axes, float class) of an input, (name, axes, start) of a
            parameter, (value,) of a constant, (axes,) of a size or a reduction.
        type: the axes along which it varies and its float class.
        digest: 16 bytes that depend on the structure alone, equal in every process.
    """

    __slots__ = ("__weakref__", "args", "attr", "digest", "op", "type")
    op: Op
    args: tuple[Node, ...]
    attr: Attr
    type: Type
    digest: bytes

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("nodes are immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        # As rows, so that pickling a deep graph does not recurse.
        return _from_rows, tuple(to_rows([self]))

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        return self

    def __repr__(self) -> str:
        return f"<{self.op} {axes_name(self.axes)} {self.digest.hex()[:6]}>"

    @property
    def axes(self) -> int:
        """The axes along which the value varies."""
        return self.type.axes

    @property
    def name(self) -> str:
        """The name of an input or a parameter."""
        return str(self.attr[0])

    @property
    def value(self) -> float:
        """The value of a constant."""
        return float(self.attr[0])

    @property
    def reduced(self) -> int:
        """The axes that a reduction names (its operand may lack some of them), or those of a size."""
        return int(self.attr[0])


_nodes: WeakValueDictionary[tuple[Any, ...], Node] = WeakValueDictionary()
_lock = Lock()  # two threads that make one node must get one object


def infer(op: Op, args: tuple[Node, ...], attr: Attr) -> Type:
    """The type rule of every operation.

    Raises:
        GraphError: an operand count, an axis set or an attribute that the operation does not allow.
    """
    traits, category = op.traits, op.traits.category
    if len(args) != traits.arity:
        raise GraphError(f"{op} takes {traits.arity} operands, not {len(args)}")
    if category is Category.LEAF:
        return _infer_leaf(op, attr)
    if category is Category.ELEMENTWISE:
        if attr:
            raise GraphError(f"{op} has no attributes, so {attr} means nothing")
        axes, cls = 0, FloatClass.STAT
        for a in args:
            axes |= a.type.axes
            if a.type.cls is FloatClass.DATA:
                cls = FloatClass.DATA
        return Type(axes, cls)
    if category is Category.REDUCTION:
        over = attr[0] if len(attr) == 1 else None
        if type(over) is not int or not 0 < over <= FULL:
            raise GraphError(f"{op} needs one set of axes, not {attr}")
        if traits.level is Level.SURFACE and over not in INDEX_NAMES:
            raise GraphError(f"{op} over {axes_name(over)} is none of the index sets {', '.join(INDEX_NAMES.values())}")
        if op is Op.TOTAL and over & B:
            raise GraphError("a sum over the batch would grow with it: take the mean")
        return Type(args[0].axes & ~over, FloatClass.STAT)
    if op is Op.BROADCAST:
        if len(attr) != 2 or type(attr[0]) is not int or not valid_axes(attr[0]) or args[0].axes & ~attr[0]:
            raise GraphError(f"broadcast needs axes that hold those of its operand and a float class, not {attr}")
        return Type(attr[0], _float_class(op, attr[1]))
    raise no_row(op, "type rule (ir/node.py)")


def _infer_leaf(op: Op, attr: Attr) -> Type:
    if op is Op.CONST:
        if len(attr) != 1 or not isinstance(attr[0], float):
            raise GraphError(f"const needs one float, not {attr}")
        return Type(0, FloatClass.STAT)
    if op is Op.SIZE:
        if len(attr) != 1 or type(attr[0]) is not int or not 0 < attr[0] <= FULL:
            raise GraphError(f"size needs one set of axes, not {attr}")
        return Type(0, FloatClass.STAT)
    if op is not Op.INPUT and op is not Op.PARAM:
        raise no_row(op, "type rule of leaves (ir/node.py)")
    if len(attr) != 3 or not isinstance(attr[0], str) or type(attr[1]) is not int or not valid_axes(attr[1]):
        raise GraphError(f"{op} needs a name, axes and one more attribute, not {attr}")
    if op is Op.INPUT:
        return Type(attr[1], _float_class(op, attr[2]))
    if attr[1] not in (0, C) or not isinstance(attr[2], float) or not math.isfinite(attr[2]):
        raise GraphError(f"parameter {attr[0]} is one value a channel or a scalar, with a finite start value")
    return Type(attr[1], FloatClass.STAT)


def _float_class(op: Op, name: object) -> FloatClass:
    if name not in ("data", "stat"):
        raise GraphError(f"the float class of {op} is data or stat, not {name!r}")
    return FloatClass(name)


def make(op: Op, args: tuple[Node, ...] = (), attr: Attr = ()) -> Node:
    """The node with this operation, operands and attributes; the same object for the same meaning.

    Raises:
        GraphError: the type rule of `op` refuses them.
    """
    # By `repr`, attributes that compare equal but differ (0.0 and -0.0, 1 and True) are kept apart, and NaN is itself.
    attributes = repr(attr)
    key = (op, tuple(map(id, args)), attributes)
    node = _nodes.get(key)
    if node is not None:
        return node
    node_type = infer(op, args, attr)
    h = blake2b(f"{op}{attributes}".encode(), digest_size=16)
    for a in args:
        h.update(a.digest)
    node = object.__new__(Node)
    for field, value in (
        ("op", op),
        ("args", args),
        ("attr", attr),
        ("type", node_type),
        ("digest", h.digest()),
    ):
        object.__setattr__(node, field, value)
    with _lock:
        return _nodes.setdefault(key, node)


def const(value: float) -> Node:
    """A literal."""
    return make(Op.CONST, (), (float(value),))


def size(axes: int) -> Node:
    """The number of elements along `axes`; 1 when there are none."""
    return make(Op.SIZE, (), (axes,)) if axes else const(1.0)


def data(name: str, axes: int = FULL) -> Node:
    """A tensor input in the dtype of x, by default as large as x."""
    return make(Op.INPUT, (), (name, axes, FloatClass.DATA.value))


def stat(name: str, axes: int) -> Node:
    """A tensor input that is a statistic: float32, or float64 under a float64 x."""
    return make(Op.INPUT, (), (name, axes, FloatClass.STAT.value))


def param(name: str, start: float, *, scalar: bool = False) -> Node:
    """A trainable parameter, one value a channel or a scalar."""
    return make(Op.PARAM, (), (name, 0 if scalar else C, float(start) + 0.0))  # -0.0 starts like 0.0


def broadcast(node: Node, t: Type) -> Node:
    """The value delivered in type `t`; itself where it has that type already."""
    return node if node.type == t else make(Op.BROADCAST, (node,), (t.axes, t.cls.value))


Operands = Callable[[Node], Sequence[Node]]


def _args(node: Node) -> Sequence[Node]:
    return node.args


def toposort(roots: Iterable[Node], operands: Operands = _args) -> list[Node]:
    """Every node below `roots`, operands first; the order of the text where there is a choice. Not recursive.

    `operands` says where to go from a node: nowhere, where the walk should stop.
    """
    done: set[Node] = set()
    found: list[Node] = []
    for root in roots:
        stack: list[tuple[Node, Iterator[Node]]] = []
        if root not in done:
            done.add(root)
            stack.append((root, iter(operands(root))))
        while stack:
            node, rest = stack[-1]
            for a in rest:
                if a not in done:
                    done.add(a)
                    stack.append((a, iter(operands(a))))
                    break
            else:
                found.append(node)
                stack.pop()
    return found


def preorder(roots: Iterable[Node], operands: Operands = _args) -> list[Node]:
    """Every node below `roots` in order of first appearance, as a reader meets them. Not recursive.

    `operands` as of `toposort`.
    """
    seen: set[Node] = set()
    found: list[Node] = []
    stack = list(reversed(list(roots)))
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        found.append(node)
        stack.extend(reversed(operands(node)))
    return found


def substitute(roots: Iterable[Node], replace: dict[Node, Node]) -> dict[Node, Node]:
    """A map from every node below `roots` to the node after `replace`; what stands below a replaced node is dropped."""
    out: dict[Node, Node] = {}
    for node in toposort(roots):
        if node in replace:
            out[node] = replace[node]
        elif node.args:
            args = tuple(out[a] for a in node.args)
            out[node] = node if args == node.args else make(node.op, args, node.attr)
        else:
            out[node] = node
    return out


def to_rows(roots: Sequence[Node]) -> tuple[tuple[tuple[Any, ...], ...], tuple[int, ...]]:
    """All nodes below `roots` as (operation, operand numbers, attributes), and the numbers of the roots."""
    nodes = toposort(roots)
    number = {node: i for i, node in enumerate(nodes)}
    rows = tuple((node.op, tuple(number[a] for a in node.args), node.attr) for node in nodes)
    return rows, tuple(number[r] for r in roots)


def from_rows(rows: Iterable[tuple[Any, ...]], roots: Iterable[int]) -> list[Node]:
    """The inverse of `to_rows`."""
    nodes: list[Node] = []
    for op, args, attr in rows:
        nodes.append(make(op, tuple(nodes[i] for i in args), attr))
    return [nodes[i] for i in roots]


def _from_rows(rows: Iterable[tuple[Any, ...]], roots: Iterable[int]) -> Node:
    return from_rows(rows, roots)[0]
