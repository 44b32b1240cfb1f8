"""Running statistics: which moments of a layer keep one, and the layer with those moments read from buffers."""

from __future__ import annotations

from dataclasses import dataclass

from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make, preorder, size, stat, substitute
from normforge.ir.ops import MOMENT, Op, Table, no_row
from normforge.ir.types import B

# moment -> (name of the buffer, start value)
BUFFERS: Table[tuple[str, float]] = Table(
    "running statistics (passes/running.py)",
    MOMENT - {Op.TOTAL},  # which is never over the batch
    {
        Op.MEAN: ("running_mean", 0.0),
        Op.VAR: ("running_var", 1.0),
        Op.STD: ("running_var", 1.0),
        Op.RMS: ("running_ms", 1.0),
    },
)


@dataclass(frozen=True)
class Running:
    """One running statistic.

    Attributes:
        name: of the buffer: `running_mean`, `running_var` (of std and var) or `running_ms` (of rms: the mean square),
            with `_1`, `_2`, ... for the second and later of one name, in the order in which the formula reads.
        node: the moment in the layer's graph.
        start: the buffer's start value.
    """

    name: str
    node: Node
    start: float

    @property
    def axes(self) -> int:
        """The axes of the buffer."""
        return self.node.axes

    @property
    def unbiased(self) -> bool:
        """True for a variance: the buffer keeps it times n/(n-1)."""
        return self.node.op in (Op.STD, Op.VAR)

    def raw(self) -> Node:
        """The statistic of a batch, as a node: E[a], the biased variance, or E[a²]."""
        a, axes = self.node.args[0], self.node.reduced
        if self.node.op in (Op.MEAN, Op.VAR):
            return self.node
        if self.node.op is Op.STD:
            return make(Op.VAR, (a,), (axes,))
        if self.node.op is Op.RMS:
            return make(Op.MEAN, (make(Op.SQUARE, (a,)),), (axes,))
        raise no_row(self.node.op, BUFFERS.name)

    def kept(self) -> Node:
        """The value that the buffer averages, as a node: `raw`, a variance times n/(n-1), or times 1 where n is 1.

        Beside the moments this costs a kernel nothing, and leaves the module one blend of all its buffers.
        """
        if not self.unbiased:
            return self.raw()
        n, one = size(self.node.reduced), const(1.0)
        less = make(Op.MAX, (make(Op.SUB, (n, one)), one))
        return make(Op.MUL, (self.raw(), make(Op.DIV, (n, less))))


def running_statistics(graph: Graph) -> tuple[Running, ...]:
    """The running statistics of a layer: one for each distinct moment over an index set with the batch, of a
    value that varies along one of its axes, in order of appearance in the formula as written."""
    found: list[Running] = []
    count: dict[str, int] = {}
    for node in preorder(n for _, n in graph.outputs):
        if node.op in MOMENT and node.reduced & B and node.args[0].axes & node.reduced:
            name, start = BUFFERS[node.op]
            k = count.get(name, 0)
            count[name] = k + 1
            found.append(Running(f"{name}_{k}" if k else name, node, start))
    return tuple(found)


def training_graph(graph: Graph) -> Graph:
    """The layer with what each running statistic averages as a further output."""
    extra = tuple((r.name, r.kept()) for r in running_statistics(graph))
    return graph.with_outputs(*graph.outputs, *extra)


def inference_graph(graph: Graph) -> Graph:
    """The layer with its running moments read from buffers, which are inputs of class `stat`."""
    replace: dict[Node, Node] = {}
    buffers = []
    for r in running_statistics(graph):
        value = stat(r.name, r.axes)
        buffers.append(value)
        if r.node.op in (Op.STD, Op.RMS):
            value = make(Op.ROOT, (make(Op.ADD, (value, const(graph.eps))),))
        replace[r.node] = value
    out = substitute((n for _, n in graph.outputs), replace)
    return Graph(tuple((k, out[n]) for k, n in graph.outputs), (*graph.inputs, *buffers), graph.eps)
