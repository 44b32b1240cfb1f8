"""eager: the formula in plain torch operations, differentiated by torch. The reference that needs no compiler.

It interprets the surface graph, not a derivative graph of ours, so it is a second opinion on every derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_active

from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import ELEMENTWISE, MOMENT, SURFACE, SURFACE_ONLY, Op, Table, no_row
from normforge.ir.types import FULL, B, G, K, S
from normforge.passes.running import Running, running_statistics


def _sign(a: Tensor) -> Tensor:
    """NaN of NaN, of which torch.sign makes 0."""
    return torch.where(torch.isnan(a), a.detach(), torch.sign(a))


TORCH: Table[Callable[..., Any]] = Table(
    "torch operations (codegen/eager.py)",
    ELEMENTWISE & SURFACE - SURFACE_ONLY,
    {
        Op.ADD: torch.add,
        Op.SUB: torch.sub,
        Op.MUL: torch.mul,
        Op.DIV: torch.div,
        Op.MAX: torch.maximum,
        Op.MIN: torch.minimum,
        Op.NEG: torch.neg,
        Op.ABS: torch.abs,
        Op.SQUARE: torch.square,
        Op.EXP: torch.exp,
        Op.SIGMOID: torch.sigmoid,
        Op.TANH: torch.tanh,
        Op.ERF: torch.erf,
        Op.SOFTPLUS: lambda a: torch.nn.functional.softplus(a, threshold=50.0),  # above it e^-a is below a's last bit
        Op.SIN: torch.sin,
        Op.COS: torch.cos,
        Op.SIGN: _sign,
        Op.WHERE: lambda a, b, c, d: torch.where(a > b, c, d),
        Op.WHERE_GE: lambda a, b, c, d: torch.where(a >= b, c, d),
    },
)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Differentiable: from a vector of this process those of all processes, in the order of their ranks.
Gather = Callable[[Tensor], Sequence[Tensor]]


def run_eager(
    graph: Graph,
    values: Mapping[str, Tensor],
    groups: int,
    *,
    buffers: Mapping[str, Tensor] | None = None,
    gather: Gather | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Evaluate a layer.

    Args:
        graph: a surface graph.
        values: `x` of shape (N, C, *spatial), further inputs, and the parameters, (C,) or scalars.
        groups: divides C.
        buffers: running statistics by name, for inference; None in training.
        gather: where moments over the batch are of several processes; called once for each level of them.

    Returns:
        The results, each like x, and in training what the running statistics average (E, variance times n/(n-1),
        mean square), detached, shaped by type: (C,), (groups,) or ().
    """
    x = values["x"]
    n, c = x.shape[:2]
    shape = (n, groups, c // groups, -1 if x.numel() else 0)
    dtype = arithmetic_dtype(x.dtype)
    statistics = {r.node: r for r in running_statistics(graph)}
    extents = (n, groups, c // groups, x[0, 0].numel() if x.numel() else 0)
    kept: dict[str, Tensor] = {}
    env: dict[Node, Tensor] = {}
    merged: dict[Node, tuple[Tensor, float]] = {}
    nodes, levels = (graph.nodes, {}) if gather is None else by_level(graph)
    for node in nodes:
        op = node.op
        if op is Op.INPUT:
            size = shape if node.axes == FULL else _small_shape(node.axes, extents)
            env[node] = values[node.name].to(dtype).reshape(size)
        elif op is Op.PARAM:
            env[node] = values[node.name].to(dtype).reshape(_small_shape(node.axes, extents))
        elif op is Op.CONST:
            env[node] = torch.full((1, 1, 1, 1), node.value, dtype=dtype, device=x.device)
        elif op in TORCH.over:
            env[node] = TORCH[op](*(env[a] for a in node.args))
        elif op is Op.RSQRT:
            env[node] = torch.rsqrt(env[node.args[0]])
        elif op is Op.SQRT or op is Op.LOG:
            a = env[node.args[0]]
            guarded = torch.abs(a) + graph.eps
            env[node] = a / torch.sqrt(guarded) if op is Op.SQRT else torch.sign(a) * torch.log(guarded)
        elif op is Op.TOTAL:
            env[node] = _mean(node, env[node.args[0]]) * _elements(node, extents)
        elif op not in MOMENT:
            raise no_row(op, TORCH.name)
        else:
            r = statistics.get(node)
            if r is not None and buffers is not None:
                value = buffers[r.name].to(dtype).reshape(_small_shape(node.axes, extents))
                env[node] = rooted(node, value, graph.eps)
                continue
            count: float = _elements(node, extents)
            if r is not None and gather is not None:
                if node in levels:  # the first of its level, which is exchanged as a whole
                    level = levels[node]
                    merged.update(exchanged(level, [env[m.args[0]] for m in level], extents, gather))
                statistic, count = merged[node]
                env[node] = rooted(node, statistic, graph.eps)
            else:
                env[node], statistic = _moment(node, env[node.args[0]], graph.eps)
            if r is not None:
                kept[r.name] = averaged(r, statistic, count)
    results = [_like(x, env[node], groups) for _, node in graph.outputs]
    return results, [kept[r.name] for r in statistics.values()] if buffers is None else []


def rooted(node: Node, statistic: Tensor, eps: float) -> Tensor:
    """A moment of the statistic that its buffer keeps."""
    return torch.sqrt(statistic + eps) if node.op in (Op.STD, Op.RMS) else statistic


def averaged(running: Running, statistic: Tensor, count: float) -> Tensor:
    """What a running statistic takes in: (C,), (groups,) or ().

    Args:
        running: it.
        statistic: of a batch.
        count: how many elements it is of.
    """
    flat = statistic.detach().reshape(-1)
    if running.unbiased and count > 1:
        flat = flat * (count / (count - 1))
    return flat if running.node.axes else flat.reshape(())


def by_level(graph: Graph) -> tuple[Sequence[Node], dict[Node, list[Node]]]:
    """Nodes, those first that stand on fewer levels of moments over the batch; and by the first such moment of each
    level all of them."""
    running = {r.node for r in running_statistics(graph)}
    level: dict[Node, int] = {}
    for node in graph.nodes:
        level[node] = max((level[a] for a in node.args), default=0) + (node in running)
    nodes = sorted(graph.nodes, key=lambda n: (level[n], n not in running))
    levels: dict[int, list[Node]] = {}
    for node in nodes:
        if node in running:
            levels.setdefault(level[node], []).append(node)
    return nodes, {of_level[0]: of_level for of_level in levels.values()}


def exchanged(
    moments: Sequence[Node], values: Sequence[Tensor], extents: tuple[int, int, int, int], gather: Gather
) -> dict[Node, tuple[Tensor, float]]:
    """The statistics of one level over all processes, and of how many elements: count, mean and variance of each
    process are exchanged in one vector, and merged in the order of ranks by Chan's formula.

    Args:
        moments: of the level. values: what each is of, in the four-axis form.
        extents: N, groups, channels a group, positions.
        gather: exchanges a vector.
    """
    parts: list[Tensor] = []
    for node, a in zip(moments, values, strict=True):
        count, over = _elements(node, extents), _along(node)
        if node.op in (Op.STD, Op.VAR) and over and count:
            own, mean = torch.var_mean(a, dim=over, correction=0, keepdim=True)
        else:
            own = _moment(node, a, 0.0)[1]
            mean = _mean(node, a) if node.op in (Op.STD, Op.VAR) else own
        both = torch.stack([mean, own]) if count else torch.zeros_like(torch.stack([mean, own]))
        parts += [both.new_full((1,), count), both.reshape(-1)]
    vectors = torch.stack(list(gather(torch.cat(parts))))
    found: dict[Node, tuple[Tensor, float]] = {}
    at = 0
    for node in moments:
        size = math.prod(_small_shape(node.axes, extents))
        counts = vectors[:, at].detach()
        means, owns = (vectors[:, at + 1 + i * size : at + 1 + (i + 1) * size] for i in (0, 1))
        total = counts.sum()
        weights = (counts / total)[:, None]
        mean = (weights * means).sum(0)
        value = (weights * owns).sum(0)
        if node.op in (Op.STD, Op.VAR):
            value = value + (weights * (means - mean).square()).sum(0)
        found[node] = (value.reshape(_small_shape(node.axes, extents)), float(total))
        at += 1 + 2 * size
    return found


def _like(x: Tensor, value: Tensor, groups: int) -> Tensor:
    """A value in the shape, dtype and strides of x, as every backend returns results."""
    n, c = x.shape[:2]
    y = value.to(x.dtype).expand(n, groups, c // groups, max(1, x[0, 0].numel()) if x.numel() else 0).reshape(x.shape)
    out = torch.empty_like(x)
    if y.stride() != out.stride() and not transforms_active():  # under vmap strides are of one sample
        y = torch.empty_strided(out.shape, out.stride(), dtype=x.dtype, device=x.device).copy_(y)
    return y


def _elements(node: Node, extents: tuple[int, int, int, int]) -> int:
    """How many elements are under the index set of a moment, broadcast ones counted."""
    count = 1
    for extent, bit in zip(extents, (B, G, K, S), strict=True):  # no generator: compilers trace this
        count *= extent if node.reduced & bit else 1
    return count


def _small_shape(axes: int, extents: tuple[int, int, int, int]) -> list[int]:
    """Shape of a smaller value in the four-axis form."""
    shape = []
    for extent, bit in zip(extents, (B, G, K, S), strict=True):  # no generator: compilers trace this
        shape.append(extent if axes & bit else 1)
    return shape


def _along(node: Node) -> list[int]:
    """The axes of the four-axis form that a moment reduces."""
    return [i for i, bit in enumerate((B, G, K, S)) if node.reduced & node.args[0].axes & bit]


def _mean(node: Node, a: Tensor) -> Tensor:
    over = _along(node)
    return a.mean(dim=over, keepdim=True) if over else a


def _moment(node: Node, a: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A moment and the statistic that a buffer would keep."""
    over = _along(node)
    if node.op is Op.MEAN:
        mean = _mean(node, a)
        return mean, mean
    if node.op is Op.RMS:
        square = a.square().mean(dim=over, keepdim=True) if over else a.square()
        return torch.sqrt(square + eps), square
    if node.op not in (Op.STD, Op.VAR):
        raise no_row(node.op, f"moments of the {TORCH.name}")
    var = (a - a.mean(dim=over, keepdim=True)).square().mean(dim=over, keepdim=True) if over else (a - a).square()
    return var if node.op is Op.VAR else torch.sqrt(var + eps), var
