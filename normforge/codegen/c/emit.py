"""The C target: one file a derivative, from the plan: a function a sweep and a stage, and a description of them for the
driver (see `normforge.codegen.c.driver`), which is compiled once for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from normforge.codegen.c.driver import COLUMNS, DOUBLE, INTERFACE, POSITIONS, SIZE_BITS, WHOLE
from normforge.codegen.c.function import Function
from normforge.codegen.c.names import CStorage
from normforge.codegen.c.prelude import prelude
from normforge.codegen.c.small import Group, emit, group
from normforge.codegen.c.sweep import emit_sweep
from normforge.codegen.c.values import fused, kept
from normforge.codegen.index import element, extents
from normforge.codegen.plan import Plan
from normforge.codegen.text import Lines
from normforge.ir.node import Node
from normforge.ir.ops import LEAF
from normforge.ir.types import B, FloatClass, G, K, S
from normforge.passes.factor import is_full


def emit_c(plan: Plan, name: str, title: str = "") -> str:
    """C source that defines `const Kernel <name>`: what the driver calls on the operands and outputs of the plan."""
    storage = CStorage(plan)
    buffered, products = kept(plan), fused(plan)
    functions = [emit_sweep(storage, i, buffered, products) for i in range(len(plan.sweeps))]
    functions += _stages(storage)
    description = Lines()
    names = {f.name for f in functions}
    _emit_description(description, plan, name, storage, len(buffered), names)
    declarations = _declarations(plan, storage)
    if parts(plan) > 1:
        text = _parted(functions, declarations, str(description))
    else:
        text = "\n".join([*(f.text("static", declarations) for f in functions), str(description)])
    used = frozenset[str]().union(*(f.functions for f in functions))
    return f"{_comment(plan, title, storage)}{prelude(plan.dtype, used)}{INTERFACE}\n{text}"


def parts(plan: Plan) -> int:
    """Into how many pieces a source can be compiled at once, with PART defined as the number of each. Forward and
    backward are compiled at the same time as they are; what comes after is alone, and twice as long."""
    return 2 if plan.order > 1 else 1


def _parted(functions: list[Function], declarations: Mapping[str, str], description: str) -> str:
    """The functions in two parts of about one length, the description in the second. As one piece where PART is not
    defined."""
    out = Lines()
    out("#ifdef PART", '#define LOCAL __attribute__((visibility("hidden")))', "#else", "#define LOCAL static", "#endif")
    out(*(f"LOCAL void {f.signature};" for f in functions))
    texts = [f.text("LOCAL", declarations) for f in functions]
    lengths = [len(text) for text in texts]
    cut = min(range(1, len(texts) + 1), key=lambda i: abs(sum(lengths[:i]) - sum(lengths[i:])))
    first, second = ("\n".join(part) for part in (texts[:cut], texts[cut:]))
    guard = "#if !defined PART || PART =="
    return f"{out}\n{guard} 0\n{first}#endif\n\n{guard} 1\n{second}\n{description}#endif\n"


def _comment(plan: Plan, title: str, storage: CStorage) -> str:
    """The layer, its plan, and what each pointer of a context is."""
    given = [f"  {storage.operands[node]}: {node.name} {node.type}" for node in plan.operands]
    made = [f"  out{i}: {label} {node.type}" for i, (label, node) in enumerate(plan.outputs)]
    work = [f"  {a.name}: {a.ctype}[{' * '.join(a.shape) or 1}]" for a in storage.arrays.values()]
    text = "\n".join([f"{title}\n{plan.summary}", "pointers:", *given, *made, *work]).replace("*/", "* /")
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


def _expanded(storage: CStorage, nodes: tuple[Node, ...], *, leaves: bool) -> list[Node]:
    """The values among `nodes` (or leaves) that a sweep with channels inside reads from a copy."""
    frontier = {n: None for s in storage.plan.sweeps for n in s.frontier}
    here = set(nodes)
    return [n for n in frontier if storage.is_expanded(n) and (n in here or (leaves and n.op in LEAF))]


def _stages(storage: CStorage) -> list[Function]:
    """The functions between sweeps: prologue, one after each sweep, epilogue; none for what has nothing to do."""
    plan = storage.plan
    first, *between, last = [group(nodes, storage) for nodes in (plan.prologue, *plan.stages, plan.epilogue)]
    keep = _kept(plan, [first, *between, last])
    prologue = _stage(storage, "prologue", first, keep, _expanded(storage, plan.prologue, leaves=True))
    stages = [
        _stage(storage, f"stage{i}", groups, keep, _expanded(storage, plan.stages[i], leaves=False))
        for i, groups in enumerate(between)
    ]
    epilogue = _stage(storage, "epilogue", last, keep, [], copies=True)
    return [stage for stage in (prologue, *stages, epilogue) if stage is not None]


def _stage(
    storage: CStorage, name: str, groups: list[Group], keep: set[Node], expand: list[Node], *, copies: bool = False
) -> Function | None:
    outputs = list(enumerate(storage.plan.outputs)) if copies else []
    copied = [(i, n) for i, (_, n) in outputs if not is_full(n.axes) and storage.outputs.get(n) != f"out{i}"]
    if not groups and not expand and not copied:
        return None
    out = Function(storage, name, "const Ctx *x, Region r")
    emit(out, groups, keep)
    for node in expand:
        n = "for (int64_t n = r.n0; n < r.n1; ++n) " if node.axes & B else ""
        source = out.item(storage.array(node), element(node.axes, by_channel=True))
        target = out.item(storage.expanded(node), element(node.axes | K))
        out(f"{n}for (int64_t c = r.c0; c < r.c1; ++c) {target} = {source};")
    for i, node in copied:
        source = out.leaf(node) or f"{out.array(storage.array(node))}[i]"
        size = out.product(extents(node.axes))
        out(f"for (int64_t i = 0; i < {size}; ++i) {out.array(f'out{i}')}[i] = {source};")
    return out


def _ctype(node: Node) -> str:
    return "X" if node.type.cls is FloatClass.DATA else "T"


def _declarations(plan: Plan, storage: CStorage) -> dict[str, str]:
    """What a function can declare from its context, by name."""
    declared = {n: f"const int64_t {n} = x->{n};" for n in "NGKCSLQ"} | {"past": "const int past = x->past;"}
    pointers = [(f"const {_ctype(node)}", storage.operands[node]) for node in plan.operands]
    pointers += [(_ctype(node), f"out{i}") for i, (_, node) in enumerate(plan.outputs)]
    pointers += [(array.ctype, array.name) for array in storage.arrays.values()]
    return declared | {name: f"{ctype} *restrict {name} = x->p[{i}];" for i, (ctype, name) in enumerate(pointers)}


def _emit_description(out: Lines, plan: Plan, name: str, storage: CStorage, buffers: int, functions: Set[str]) -> None:
    """What the driver needs to know; `buffers` are kept between sweeps, `functions` the names of those that there
    are."""
    arrays = storage.arrays.values()
    sizes = [sum(SIZE_BITS[f] for f in a.shape) + DOUBLE * (a.ctype == "double") for a in arrays]
    # A sum over channels needs all channels of its positions; channels-last rows hold them anyway.
    whole = [int(plan.layout == "nhwc" or any(not n.reduced & S for n in sweep.sums)) for sweep in plan.sweeps]
    stages = [f if f in functions else "0" for f in ("prologue", *(f"stage{i}" for i in range(len(whole))), "epilogue")]
    sweeps = [f"sweep{i}" for i in range(len(whole))]
    full = [i for i, (_, node) in enumerate(plan.outputs) if is_full(node.axes)]
    fields = {
        "pointers": len(plan.operands) + len(plan.outputs),
        "arrays": len(sizes),
        "sweeps": len(sweeps),
        "data": "sizeof(X)",
        "wide": "sizeof(T)",
        "tensors": len({n for s in plan.sweeps for n in s.loads}) + sum(len(s.stores) for s in plan.sweeps),
        "kept": buffers,
        "streamed": len(plan.operands) + full[0] if len(full) == 1 else -1,
        "chunks": POSITIONS if plan.layout == "nhwc" else COLUMNS if storage.chunked else WHOLE,
        "slab": sum(SIZE_BITS[letter] for letter, axis in zip("NGKS", (B, G, K, S), strict=True) if plan.slab & axis),
        "sizes": f"(const unsigned char[]){{{', '.join(map(str, sizes or [0]))}}}",
        "whole": f"(const unsigned char[]){{{', '.join(map(str, whole))}}}",
        "sweep": f"(void (*const[])(const Ctx *, Region, void *, int)){{{', '.join(sweeps)}}}",
        "stage": f"(void (*const[])(const Ctx *, Region)){{{', '.join(stages)}}}",
    }
    with out.block(f"const Kernel {name} = {{", "};"):
        out(*(f".{field} = {value}," for field, value in fields.items()))
