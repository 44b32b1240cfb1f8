"""C for the loops of a sweep that both walks over a chunk of one sample have.

The inner loop goes along the axis that is contiguous in memory (space in NCHW, channels in NHWC), the middle one along
the other: see `rows` and `positions`. A sum over the inner axis is a scalar of the middle loop; a sum over the middle
axis, a column, is a vector as long as the inner one. Variances take a second walk over data that is still in the
cache, centred by the mean of the tile or chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from normforge.codegen.c.element import ElementEmitter
from normforge.codegen.c.function import Function
from normforge.codegen.c.names import CStorage, is_stored
from normforge.codegen.c.small import has_variance
from normforge.codegen.c.values import KEEP, TILE, below, counts_all
from normforge.codegen.index import extents
from normforge.codegen.plan import Sweep, is_full_input
from normforge.ir.node import Node
from normforge.ir.ops import Op


@dataclass(frozen=True)
class Work:
    """What an inner loop takes and leaves.

    Attributes:
        roots: the full values that it needs.
        sums, pairs: over the inner axis; pairs are variances, taken as a mean and squared deviations.
        columns, column_pairs: over the middle axis, likewise.
        stores: (output name, value).
    """

    roots: tuple[Node, ...]
    sums: tuple[Node, ...]
    pairs: tuple[Node, ...]
    columns: tuple[Node, ...] = ()
    column_pairs: tuple[Node, ...] = ()
    stores: tuple[tuple[str, Node], ...] = ()

    @classmethod
    def of(cls, sweep: Sweep, storage: CStorage) -> Work:
        """All that a sweep does. The mean beside a variance is no sum of its own."""
        sums = [n for n in sweep.sums if n.op is Op.SUM or (n.op is Op.MEAN and not has_variance(n, storage))]
        pairs = [n for n in sweep.sums if n.op is Op.VAR]
        inner = storage.inner
        return cls(
            (*(n.args[0] for n in sweep.sums), *(n for _, n in sweep.stores)),
            tuple(n for n in sums if n.reduced & inner),
            tuple(n for n in pairs if n.reduced & inner),
            tuple(n for n in sums if not n.reduced & inner),
            tuple(n for n in pairs if not n.reduced & inner),
            sweep.stores,
        )

    @property
    def inner(self) -> tuple[Node, ...]:
        """What is summed over the inner axis."""
        return *self.sums, *self.pairs


class Walk(ABC):
    """Emits the loops over a chunk of one sample: `n`, `q`, and positions `lo` to `hi` are known.

    Attributes:
        out: the function. sweep: which. work: all of it. kept: values that have a buffer between loops.
        element: what is written at an element.
    """

    def __init__(self, out: Function, sweep: Sweep, kept: tuple[Node, ...], fused: frozenset[Node]) -> None:
        self.out = out
        self.storage = out.storage
        self.sweep = sweep
        self.work = Work.of(sweep, out.storage)
        self.kept = kept
        self.element = ElementEmitter(out, kept, fused)
        self._visited: set[Node] = set()  # full inputs that a loop emitted so far has brought into the cache

    @abstractmethod
    def emit(self) -> None:
        """Write the loops."""

    @abstractmethod
    def column(self, node: Node) -> str:
        """The element of a vector to which the operand of a sum over the middle axis is added; for a variance, that
        of the means."""

    @abstractmethod
    def mask_once(self) -> None:
        """Write `once`: the mask of the first channel of each group."""

    @abstractmethod
    def ahead(self) -> str:
        """How many bytes beyond an element of a full tensor the loops will be a little later."""

    @abstractmethod
    def place_in_slab(self) -> str:
        """Where the elements from `first` on are in the buffer of a slab; its rows start at `start` and have
        `width`."""

    # -- kept values

    def kept_below(self, roots: Iterable[Node]) -> list[Node]:
        """The kept values that the roots need."""
        return [n for n in below(self.storage.plan, roots) if n in self.kept]

    def slots(self, kept: Iterable[Node], tile: str) -> None:
        """Where the kept values of the tile are: `tile` elements into the buffer where that is not a slab's."""
        out, kept = self.out, list(kept)
        if not kept:
            return
        size = out.size
        out(f"const int64_t start = r.q0 * {size('L')}, width = MIN2({size('S')}, r.q1 * L) - start;")
        out(f"const int64_t tile = slab ? {self.place_in_slab()} : {tile};")
        for node in kept:
            slot = f"(slab ? {KEEP} : {TILE}) * {self.kept.index(node)}"
            out(f"T *restrict k{self.storage.var(node)} = (T *)keep + {slot} + tile;")

    def fill(self, kept: list[Node], tile: str) -> None:
        """Kept values of the tile, where no earlier sweep of the slab has left them."""
        out, st = self.out, self.storage
        self.slots(kept, tile)
        earlier = st.plan.sweeps[: st.plan.sweeps.index(self.sweep)]
        before = set(below(st.plan, [n.args[0] for s in earlier for n in s.sums]))
        for there in (True, False):
            nodes = [n for n in kept if (n in before) is there]
            if not nodes:
                continue
            computing = self._fetching(self.element.computing(nodes), nodes)

            def body(_: int, tail: bool, nodes: list[Node] = nodes, computing: ElementEmitter = computing) -> None:
                computing.values(nodes, tail=tail)
                for node in nodes:
                    v = st.var(node)
                    out.store(f"k{v} + {computing.step} - first", v, tail=tail)

            with out.block("if (!slab) {" if there else "{"):
                self.strips([], 1, body)

    # -- inner loops

    def inner_loop(self, work: Work) -> None:
        """Sums over the inner axis as a<v>, columns in place, outputs stored."""
        out, st, element = self.out, self.storage, self._fetching(self.element, work.roots)
        names = [name for name, _ in st.plan.outputs]

        def body(stream: int, tail: bool) -> None:
            element.values(work.roots, tail=tail)
            for node in work.inner:
                lane = f"la{st.var(node)}_{stream}"
                out(f"{lane} = {element.plus(lane, node, tail=tail)};")
            for node in (*work.columns, *work.column_pairs):
                element.add(self.column(node), node, tail=tail)
            for name, node in work.stores:
                place = f"{out.array(f'out{names.index(name)}')} + at + {element.step}"
                value = element.value(node)
                put = (
                    out.call("PUT_N", place, value, "some") if tail else out.call("PUT", place, value, out.size("past"))
                )
                out(f"{put};")

        self.strips([f"a{st.var(n)}" for n in work.inner], self._streams(work.roots), body)

    def _fetching(self, element: ElementEmitter, roots: Iterable[Node]) -> ElementEmitter:
        """The same, asking ahead for the full inputs that no loop before has visited. Several stores keep the memory
        busy, and what else is asked for gets in their way."""
        if len(self.work.stores) > 1:
            return element
        inputs = {n for n in element.below(roots) if is_full_input(n)} - self._visited
        self._visited |= inputs
        return replace(element, fetched=frozenset(inputs))

    def deviations(self, pairs: tuple[Node, ...]) -> None:
        """From a<v>, the mean, rounded: b<v>, the sum of squared deviations from it, and c<v>, that of the deviations,
        which tells the rounding (the corrected two-pass algorithm, Chan, Golub and LeVeque 1983)."""
        out, st, element = self.out, self.storage, self.element
        roots = [n.args[0] for n in pairs]

        def body(stream: int, tail: bool) -> None:
            element.values(roots, tail=tail)
            for node in pairs:
                v, b, c = (f"{k}{st.var(node)}" for k in ("", "lb", "lc"))
                b, c = f"{b}_{stream}", f"{c}_{stream}"
                e = element.once(node, f"{element.value(node.args[0])} - a{v}")
                out(f"const V e{v} = {out.call('bits_if', 'here', e) if tail else e};")
                out(f"{b} = {out.call('fma_', f'e{v}', f'e{v}', b)};", f"{c} += e{v};")

        sums = [f"{k}{st.var(n)}" for n in pairs for k in "bc"]
        out(f"T {', '.join(sums)};")
        self.strips(sums, self._streams(roots), body)

    def _streams(self, roots: Iterable[Node]) -> int:
        """How many elements far apart one iteration takes: where it does little, the sums wait for themselves."""
        roots = list(roots)
        if self.work.columns or self.work.column_pairs or self.work.stores or len(roots) > 2:
            return 1
        work = sum(not is_stored(n) or is_full_input(n) for n in self.element.below(roots))
        return 4 if work <= 3 else 2 if work <= 8 else 1

    def strips(
        self,
        sums: list[str],
        streams: int,
        body: Callable[[int, bool], None],
        first: str = "first",
        last: str = "last",
    ) -> None:
        """Loops over [first, last) that set the sums: vectors of W elements, `streams` of them at a time as long as
        they last, then the `some` elements that are left, of which `here` is the mask. A sum is a vector for each
        stream until the end."""
        out, i = self.out, self.element.step
        once = not all(counts_all(n) for n in self.sweep.sums)
        every = [f"l{a}_{k}" for a in sums for k in range(streams)]
        if every:
            out(f"V {', '.join(f'{v} = {{0}}' for v in every)};")
        with out.block("{"):
            out(f"int64_t from = {first};")
            for width in sorted({1, streams}, reverse=True):
                with out.block(f"for (; from + {width} * W <= {last}; from += {width} * W) {{"):
                    for k in range(width):
                        with out.block("{"):
                            out(f"const int64_t {i} = from + {k} * W;")
                            if once:
                                self.mask_once()
                            body(k, False)
            with out.block(f"if (from < {last}) {{"):
                out(f"const int64_t {i} = from, some = {last} - from;")
                if sums:
                    out(f"const M here = {out.call('lanes', 'some')};")
                if once:
                    self.mask_once()
                body(0, True)
        for a in sums:
            terms = [f"l{a}_{k}" for k in range(streams)]
            while len(terms) > 1:
                terms = [f"({x} + {y})" for x, y in zip(terms[::2], terms[1::2], strict=True)]
            out(f"{a} = {out.call('total', terms[0])};")

    # -- pieces

    def count(self, node: Node) -> str:
        """How many values a sum over channels adds."""
        axes = node.reduced & node.args[0].axes
        return f"(T){self.out.product(extents(axes)) if axes else self.out.size('K')}"

    def means(self, node: Node) -> list[Node]:
        """The mean taken beside a variance, where the plan asks for it."""
        return [n for n in self.sweep.sums if n.op is Op.MEAN and n.args == node.args and n.attr == node.attr]
