"""The C target: one file a derivative, from the plan.

Slab by slab where a slab fits the cache (all sweeps over one slab while it is hot), else sweep by sweep over the
whole tensor. Both walk the same chunks in the same order, so results depend on neither the choice nor the number
of threads.
"""

from __future__ import annotations

import re

from normforge.codegen.c_element import KEEP, TILE, kept
from normforge.codegen.c_names import Storage, address, size_of
from normforge.codegen.c_prelude import prelude
from normforge.codegen.c_small import Group, emit, group
from normforge.codegen.c_sweep import SweepEmitter
from normforge.codegen.factor import is_full
from normforge.codegen.plan import Plan
from normforge.codegen.text import Lines
from normforge.ir.node import Node
from normforge.ir.ops import LEAF
from normforge.ir.types import B, FloatClass, G, K, S

# A slab worth keeping in the cache: all its full tensors together, in bytes.
SLAB_BYTES = 6 << 20
# Slabs are joined along channels up to about this many elements, so that small ones do not cost their overhead.
SLAB_ELEMENTS = 1 << 14
# A slab that crosses samples is walked in runs of at least this many elements: 16 KiB, so that prefetching pays.
RUN_ELEMENTS = 4096
# A call whose full tensors are larger together streams its output past the caches: they could not keep it.
PAST_BYTES = 32 << 20
# Below this many elements one thread is faster than waking others.
SERIAL_ELEMENTS = 1 << 15


def emit_c(plan: Plan, name: str, title: str = "") -> str:
    """C source with two functions: `int64_t <name>_workspace(const int64_t *dims)`, the bytes of scratch memory,
    and `void <name>(void *const *pointers, const int64_t *dims, int threads)`.

    `pointers` are the operands, the outputs, and the workspace; `dims` are N, G, K, S.
    """
    storage = Storage(plan)
    groups = [group(nodes, storage) for nodes in (plan.prologue, *plan.stages, plan.epilogue)]
    keep = _kept(plan, groups)
    body = Lines()
    for i, sweep in enumerate(plan.sweeps):
        SweepEmitter(body, storage, sweep).emit(i)
    _emit_stage(body, "prologue", groups[0], storage, keep, _expanded(storage, plan.prologue, leaves=True))
    for i, stage in enumerate(plan.stages):
        _emit_stage(body, f"stage{i}", groups[i + 1], storage, keep, _expanded(storage, stage, leaves=False))
    _emit_stage(body, "epilogue", groups[-1], storage, keep, [], copies=True)
    driver = Lines()
    _emit_driver(driver, plan, name, storage)
    head = Lines()
    _emit_head(head, plan, storage, name, title)
    functions = _unpacked(str(body), plan, storage)
    text = _parted(functions, str(driver)) if parts(plan) > 1 else f"{functions}{driver}"
    return f"{_comment(plan, title)}{prelude(plan.dtype)}\n{head}\n{text}"


def parts(plan: Plan) -> int:
    """Into how many pieces a source can be compiled at once, with PART defined as the number of each. Forward and
    backward are compiled at the same time as they are; what comes after is alone, and twice as long."""
    return 2 if plan.order > 1 else 1


def _parted(functions: str, driver: str) -> str:
    """The functions in two parts of about one length, the driver in the second. As one piece where PART is not
    defined."""
    each = [f"{f}\n" for f in functions.split("\n\n") if f.strip()]
    heads = [re.match(r"static (.*?) \{", f.strip()) for f in each]
    out = Lines()
    out("#ifdef PART", '#define LOCAL __attribute__((visibility("hidden")))', "#else", "#define LOCAL static", "#endif")
    out(*(f"LOCAL {h[1]};" for h in heads if h))
    cut = min(range(1, len(each)), key=lambda i: abs(len("".join(each[:i])) - len("".join(each[i:])) - len(driver)))
    moved = [f.replace("static void", "LOCAL void", 1) for f in each]
    first, second = ("\n".join(part) for part in (moved[:cut], moved[cut:]))
    guard = "#if !defined PART || PART =="
    return f"{out}\n{guard} 0\n{first}#endif\n\n{guard} 1\n{second}\n{driver}#endif\n"


def _comment(plan: Plan, title: str) -> str:
    text = f"{title}\n{plan}".replace("*/", "* /")
    return "/*\n" + "\n".join(f" * {line}" for line in text.strip().split("\n")) + "\n */\n"


def _kept(plan: Plan, groups: list[list[Group]]) -> set[Node]:
    """Small values that something outside their own nest reads: other nests, sweeps, the caller."""
    keep: set[Node] = {n for _, n in plan.outputs} | {n for s in plan.sweeps for n in s.frontier}
    for phase in groups:
        for g in phase:
            inside = set(g.elementwise)
            for node in g.nodes:
                keep |= {a for a in node.args if a not in inside}
    return keep


def _expanded(storage: Storage, nodes: tuple[Node, ...], *, leaves: bool) -> list[Node]:
    """The values among `nodes` (or leaves) that a sweep with channels inside reads from a copy."""
    frontier = {n: None for s in storage.plan.sweeps for n in s.frontier}
    here = set(nodes)
    return [n for n in frontier if storage.is_expanded(n) and (n in here or (leaves and n.op in LEAF))]


def _emit_stage(
    out: Lines,
    name: str,
    groups: list[Group],
    storage: Storage,
    keep: set[Node],
    expand: list[Node],
    *,
    copies: bool = False,
) -> None:
    with out.block(f"static void {name}(const Ctx *x, Region r) {{"):
        out("UNPACK")
        emit(out, groups, storage, keep)
        for node in expand:
            n = "for (int64_t n = r.n0; n < r.n1; ++n) " if node.axes & B else ""
            source = f"{storage.array(node)}[{address(node.axes).replace('g', 'c / K')}]"
            target = f"{storage.expanded(node)}[{'n * C + ' if node.axes & B else ''}c]"
            out(f"{n}for (int64_t c = r.c0; c < r.c1; ++c) {target} = {source};")
        if copies:
            for i, (_, node) in enumerate(storage.plan.outputs):
                if not is_full(node.axes) and storage.outputs.get(node) != f"out{i}":
                    source = storage.leaf(node) or f"{storage.array(node)}[i]"
                    out(f"for (int64_t i = 0; i < {size_of(node.axes)}; ++i) out{i}[i] = {source};")
    out("")


def _emit_head(out: Lines, plan: Plan, storage: Storage, name: str, title: str) -> None:
    with out.block("typedef struct {", "} Ctx;"):
        out("int64_t N, G, K, C, S, L, Q;", "int past;")
        for node in plan.operands:
            out(f"const {_ctype(node)} *{storage.operands[node]}; /* {node.name} {node.type} */")
        for i, (label, node) in enumerate(plan.outputs):
            out(f"{_ctype(node)} *out{i}; /* {label} {node.type} */")
        for array in storage.arrays.values():
            out(f"{array.ctype} *{array.name}; /* [{array.size}] */")
    out("typedef struct { int64_t n0, n1, c0, c1, q0, q1; } Region;", "")


def _ctype(node: Node) -> str:
    return "X" if node.type.cls is FloatClass.DATA else "T"


def _unpacked(text: str, plan: Plan, storage: Storage) -> str:
    """Functions with the locals that each uses in place of its UNPACK: a hundred unused pointers cost the compiler
    as much as the loops."""
    declared = {n: f"const int64_t {n} = x->{n};" for n in "NGKCSLQ"} | {"past": "const int past = x->past;"}
    for node in plan.operands:
        name = storage.operands[node]
        declared[name] = f"const {_ctype(node)} *restrict {name} = x->{name};"
    for i, (_, node) in enumerate(plan.outputs):
        declared[f"out{i}"] = f"{_ctype(node)} *restrict out{i} = x->out{i};"
    for array in storage.arrays.values():
        declared[array.name] = f"{array.ctype} *restrict {array.name} = x->{array.name};"
    functions = []
    for function in text.split("\n\n"):
        used = set(re.findall(r"\w+", function))
        functions.append(function.replace("UNPACK", "\n  ".join(d for n, d in declared.items() if n in used)))
    return "\n\n".join(functions)


def _emit_driver(out: Lines, plan: Plan, name: str, storage: Storage) -> None:
    tensors = len({n for s in plan.sweeps for n in s.loads}) + sum(len(s.stores) for s in plan.sweeps)
    slab = plan.slab
    buffers = len(kept(plan))
    with out.block("static int64_t layout(Ctx *x, const int64_t *dims, char *base) {"):
        out("const int64_t N = dims[0], G = dims[1], K = dims[2], S = dims[3], C = G * K;")
        if not storage.chunked:
            out("const int64_t L = MAX2(S, 1), Q = 1;")
        elif plan.layout == "nchw":  # columns: all channels of a block of positions stay in a level-2 cache
            out("const int64_t L = MIN2(MAX2(32768 / C / 16 * 16, 64), 1024), Q = (S + L - 1) / L;")
        else:
            out("const int64_t L = MAX2(8192 / C, 32), Q = (S + L - 1) / L;")
        out("x->N = N; x->G = G; x->K = K; x->C = C; x->S = S; x->L = L; x->Q = Q;", "int64_t end = 0;")
        for array in storage.arrays.values():  # each on a cache line of its own
            out(f"x->{array.name} = ({array.ctype} *)(base + end);")
            out(f"end += (({array.size}) * (int64_t)sizeof({array.ctype}) + 63) / 64 * 64;")
        out("return end;")
    out("")
    with out.block(f"int64_t {name}_workspace(const int64_t *dims) {{"):
        out("Ctx x;", "return layout(&x, dims, 0);")
    out("")
    with out.block(f"void {name}(void *const *pointers, const int64_t *dims, int threads) {{"):
        out("Ctx ctx, *x = &ctx;")
        for i, node in enumerate(plan.operands):
            out(f"x->in{i} = (const {_ctype(node)} *)pointers[{i}];")
        for i, (_, node) in enumerate(plan.outputs):
            out(f"x->out{i} = ({_ctype(node)} *)pointers[{len(plan.operands) + i}];")
        out(f"layout(x, dims, (char *)pointers[{len(plan.operands) + len(plan.outputs)}]);")
        out("const int64_t N = x->N, K = x->K, C = x->C, S = x->S, Q = x->Q;")
        full = [f"out{i}" for i, (_, node) in enumerate(plan.outputs) if is_full(node.axes)]
        if len(full) == 1:  # two streams hinder each other
            run = "S" if plan.layout == "nchw" else "C"
            aligned = f"{run} % W == 0 && (uintptr_t)x->{full[0]} % BYTES == 0"
            out(f"x->past = {aligned} && N * C * S * {tensors} * (int64_t)sizeof(X) > {PAST_BYTES};")
        else:
            out("x->past = 0;")
        out("const Region all = {0, N, 0, C, 0, Q};")
        out(f"if (N * C * S < {SERIAL_ELEMENTS}) threads = 1;", "if (N * C * S == 0) return;", "prologue(x, all);")
        dn = "1" if slab & B else "N"
        # Channels-last positions are walked whole: a few channels of each would be a few elements here and there.
        dc = "C" if plan.layout == "nhwc" else "1" if slab & K else "K" if slab & G else "C"
        dq = "1" if slab & S else "Q"
        out(f"int64_t dn = {dn}, dc = {dc}, dq = {dq};")
        out("const int64_t L = x->L, span = MIN2(S, dq * L);")
        if slab & G and plan.layout == "nchw":
            out(f"while (dn * dc * span < {SLAB_ELEMENTS} && dc < C) dc *= 2;")
            if not slab & B:
                room = f"dn * dc * span * {2 * tensors} * (int64_t)sizeof(X) <= {SLAB_BYTES}"
                out(f"while (dc * span < {RUN_ELEMENTS} && {room} && dc * 4 * threads <= C) dc *= 2;")
            out("dc = MIN2(dc, C);")
        out("const int64_t bn = (N + dn - 1) / dn, bc = (C + dc - 1) / dc, bq = (Q + dq - 1) / dq;")
        out("const int64_t blocks = bn * bc * bq;")
        out(f"const int64_t bytes = dn * dc * span * {tensors} * (int64_t)sizeof(X);")
        with out.block(f"if (bytes <= {SLAB_BYTES} && (blocks >= 2 * threads || threads == 1)) {{"):
            share = "MAX2(1, blocks / (8 * threads))"
            out(f"#pragma omp parallel for schedule(dynamic, {share}) num_threads(threads) if (threads > 1)")
            with out.block("for (int64_t i = 0; i < blocks; ++i) {"):
                out("const int64_t n = i / (bc * bq) * dn, c = i / bq % bc * dc, q = i % bq * dq;")
                out("const Region r = {n, MIN2(N, n + dn), c, MIN2(C, c + dc), q, MIN2(Q, q + dq)};")
                if buffers:
                    out(f"T keep[{buffers * KEEP}] __attribute__((aligned(64)));")
                    out(f"const int slab = (r.n1 - r.n0) * (r.c1 - r.c0) * span <= {KEEP};")
                for i in range(len(plan.sweeps)):
                    out(f"sweep{i}(x, r, {'keep, slab' if buffers else '0, 0'});", f"stage{i}(x, r);")
        with out.block("else {"):
            for i, sweep in enumerate(plan.sweeps):
                columns = any(not n.reduced & S for n in sweep.sums)
                # A sum over channels needs all channels of its positions; channels-last rows hold them anyway.
                whole = columns or plan.layout == "nhwc"
                out("{")
                rows = "C" if whole else "MAX2(1, MIN2(C, 16384 / MAX2(S, 1)))"
                out(f"const int64_t wc = {rows}, mc = (C + wc - 1) / wc;")
                out("const int64_t items = N * mc * Q;")
                out("#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)")
                with out.block("for (int64_t i = 0; i < items; ++i) {"):
                    out("const int64_t n = i / (mc * Q), c = i / Q % mc * wc, q = i % Q;")
                    out("const Region r = {n, n + 1, c, MIN2(C, c + wc), q, q + 1};")
                    if buffers:
                        out(f"T keep[{buffers * TILE}] __attribute__((aligned(64)));")
                    out(f"sweep{i}(x, r, {'keep' if buffers else '0'}, 0);")
                out(f"stage{i}(x, all);", "}")
        out("epilogue(x, all);")
