"""What a program of a compiled kernel costs: instructions by unit, cycles until it ends, by loops of its machine code.

Rates are those of the table of arithmetic throughput in the CUDA programming guide for compute capability 9.0;
latencies are rounded from published microbenchmarks of Hopper.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from loops import Text, TextLoop, Trips

from normforge.codegen.triton.launch import Launch
from normforge.kernels.assembly import ptx_listing
from normforge.kernels.sass import Code, Instruction, Loop

SCHEDULERS = 4  # of a processor
# Cycles that a unit of a processor is busy with one instruction of one warp.
ALU, TRANSCENDENTAL, SHUFFLE = 0.5, 2.0, 1.0  # 64, 16 and 32 threads a cycle
LANE_BYTES = 0.25  # a byte of each thread: 128 bytes a cycle, to shared memory and to the level-1 cache
# Cycles until the result of an instruction can be read.
ARITHMETIC = 4
MEMORY = 1100  # 650 ns: a load from memory that is under load
CACHE = 250  # there and back to the level-2 cache
LATENCY = {
    "SHFL": 23, "LDS": 26, "LDSM": 30, "MUFU": 20, "I2F": 20, "F2I": 20, "BAR": 20, "LDC": 30, "S2R": 30, "S2UR": 30,
    "MEMBAR": CACHE, "ATOM": CACHE, "ATOMG": CACHE, "CALL": 600,
}  # fmt: skip
ACCESSES = ("LDG", "LDGSTS", "STG")
ROUNDS = 12  # of a loop, until it is steady
Access = tuple[int, int]  # line of the text and bytes
ALU_NAMES = ("IADD", "VIADD", "LOP", "SHF", "LEA", "ISETP", "SEL", "PRMT", "IABS", "SGXT", "IMNMX", "FMNMX", "FSETP",
             "FSEL", "FSET", "PLOP", "P2R", "R2P", "F2FP", "I2FP", "MOV", "POPC", "FLO", "BMSK", "VOTE")  # fmt: skip


@dataclass
class Cost:
    """Of one warp: cycles of a processor's units by name, and how many instructions of which kind."""

    units: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Cost, times: float = 1) -> None:
        """Add another, several times."""
        for mine, its in ((self.units, other.units), (self.counts, other.counts)):
            for key, value in its.items():
                mine[key] += value * times


def cost_of(instructions: Iterable[Instruction], code: Code) -> Cost:
    """Of some instructions, each once."""
    cost = Cost()
    for one in instructions:
        if one.name == "NOP":
            continue
        cost.counts["instructions"] += 1
        cost.units["issue"] += 1 / SCHEDULERS
        if one.name == "SHFL":
            cost.units["exchange"] += SHUFFLE
            cost.counts["shuffles"] += 1
        elif one.name in ("LDS", "LDSM", "STS"):
            cost.units["exchange"] += max(one.bytes * LANE_BYTES, 1)
            cost.counts["shared accesses"] += 1
        elif one.name in ACCESSES:
            cost.units["exchange"] += max(one.bytes * LANE_BYTES, 1)
        elif one.name == "BAR":
            cost.counts["barriers"] += 1
        elif one.name in ("MUFU", "F2I", "I2F"):
            cost.units["transcendental"] += TRANSCENDENTAL
        elif one.name.startswith(ALU_NAMES):
            cost.units["alu"] += ALU
        elif one.name == "CALL":
            cost.counts["divisions"] += 1
            cost.add(cost_of(code.subroutines.get(one.target, ()), Code((), {}, ())))
    return cost


def chain(body: Sequence[Instruction], full: set[Access], cached: set[Access], rounds: int) -> tuple[float, int, int]:
    """Cycles of one warp alone in a round of a body, on average over the later half of some, and the most loads and
    bytes of full tensors that a thread has on the way at once.

    Instructions start in order, one a cycle, when all that they read is there. A barrier costs its own latency.

    Args:
        body: instructions.
        full: accesses to full tensors. cached: those that find them in the level-2 cache.
        rounds: 1 for what is no loop.
    """
    ready: dict[str, float] = {}
    groups: list[float] = []  # of asynchronous copies
    last, time, start = 0.0, 0.0, 0.0
    flying: list[tuple[float, int]] = []
    most = (0, 0)
    for number in range(rounds):
        if number == rounds // 2:
            start = time
        for one in body:
            time = max([time + 1, *(ready.get(r, 0.0) for r in one.reads)])
            delay = LATENCY.get(one.name, ARITHMETIC)
            if one.name in ("LDG", "LDGSTS"):
                at = one.line, one.bytes
                delay = MEMORY if at in full and at not in cached else CACHE
                if at in full:
                    flying = [(t, b) for t, b in flying if t > time] + [(time + delay, one.bytes)]
                    most = max(most, (sum(b for _, b in flying), len(flying)))
            if one.name == "LDGSTS":
                last = time + delay
            elif one.name == "LDGDEPBAR":
                groups.append(last)
            elif one.op.startswith("DEPBAR.LE") and one.immediate < len(groups):
                time = max(time, groups[len(groups) - 1 - one.immediate])
            elif one.name in ("BAR", "MEMBAR", "CALL"):
                time += delay
            for register in one.writes:
                ready[register] = time + delay
    return (time - start) / (rounds - rounds // 2), most[1], most[0]


@dataclass(frozen=True)
class Tile:
    """One iteration of the loop in which full tensors are read, or written; a whole program where there is no loop."""

    instructions: int
    barriers: int
    shuffles: int
    shared_accesses: int
    divisions: int
    load_bytes: tuple[int, ...]
    loads_in_flight: int
    bytes_in_flight: int


class Kernel:
    """The machine code of one launch beside its text.

    Args:
        code: of the kernel. ptx: what it was made from.
        text: of the module.
        launch: of the kernel.
        full: names of the pointers to full tensors.
        stages: for each stage the sizes and blocks by the names that it uses, and how many programs run it.
        whole, grid: the same for the kernel around them.
    """

    def __init__(
        self, code: Code, ptx: str, text: Text, launch: Launch, full: Sequence[str],
        stages: Sequence[tuple[Launch, dict[str, int], int]], whole: dict[str, int], grid: int,
    ) -> None:  # fmt: skip
        self.code, self.text, self.launch = code, text, launch
        self.stages, self.whole, self.grid = stages, whole, grid
        self.cooperative = launch.cooperative
        names = {stage.stage: i for i, (stage, _, _) in enumerate(stages)}
        places = [i for i, pointer in enumerate(launch.pointers) if pointer in full]
        accesses = ptx_listing(ptx, launch.kernel, places)
        self.full = {(a.line, a.bytes) for a in accesses if a.wanted}
        # What one sweep of a cooperative launch has read is in the level-2 cache for the next.
        later = {s.stage for s, _, _ in stages if s.sweep > 0} if self.cooperative else ()
        self.cached = {at for at in self.full if text.function(at[0]) in later}
        # Accesses of one iteration of the innermost loop around a line: what is compiled has more where it is unrolled.
        blocks = Counter((a.line, a.bytes, a.block) for a in accesses)
        self.once: dict[tuple[int, int], int] = {}
        for (line, size, _), count in blocks.items():
            self.once[line, size] = max(count, self.once.get((line, size), 0))
        self.owner: list[int] = []  # of each instruction, the stage; -1 for the kernel around them
        stage = -1
        for one in code.instructions:
            function = text.function(one.line)
            stage = names.get(function, -1 if function == launch.kernel else stage)
            self.owner.append(stage)
        self.loop_of: dict[Loop, TextLoop] = {}
        for loop in sorted(code.loops, key=lambda x: -x.depth):
            self.loop_of[loop] = self._text_loop(loop)
        self.tiles: list[Tile] = []
        # Cycles of a cooperative kernel: of an item of each stage; of a step without items; of a step in which a
        # program that has an item of each stage moves no full tensors.
        self.lives: dict[int, float] = {}
        self.step = self.idle = 0.0

    def _text_loop(self, loop: Loop) -> TextLoop:
        """The loop of the text that a loop of the code is: most of its own instructions come from there."""
        taken = {found for inner, found in self.loop_of.items() if loop.holds(inner)}
        votes: Counter[TextLoop] = Counter()
        for one in self.code.own(loop):
            found = self.text.loop(one.line) or self.text.loop(self.text.called(one.line))
            if found is not None and found not in taken:
                votes[found] += 1
        if not votes:
            raise ValueError(f"{self.launch.kernel}: a loop of the machine code has no line of the text")
        return votes.most_common(1)[0][0]

    def _stage(self, loop: Loop) -> int:
        """The stage that most of a loop belongs to."""
        return Counter(self.owner[loop.first : loop.last + 1]).most_common(1)[0][0]

    def _trips(self, loop: Loop) -> Trips:
        mine = self.loop_of[loop]
        copies = [x for x, its in self.loop_of.items() if its == mine and x.depth == loop.depth]
        copy = sorted(copies, key=lambda x: x.first).index(loop)
        if mine.function == self.launch.kernel:
            return self.text.trips(mine, self.launch.kernel, self.whole, self.grid, copy)
        stage, names, programs = self.stages[max(self._stage(loop), 0)]
        return self.text.trips(mine, stage.stage, names, programs, copy)

    def _copies(self, body: Iterable[Instruction]) -> float:
        """How many iterations a body holds, where the compiler has unrolled a loop: by its accesses to memory."""
        found = Counter((i.line, i.bytes) for i in body if i.name in ACCESSES)
        return max((n / self.once[at] for at, n in found.items() if at in self.once), default=0.0)

    def _split(
        self, own: Sequence[Instruction], loops: Sequence[Loop]
    ) -> tuple[list[Instruction], dict[TextLoop, list[Instruction]]]:
        """A body without, and by loop, the iterations that unrolled loops inside it leave over."""
        inner = {self.loop_of[x] for x in loops}
        main: list[Instruction] = []
        beside: dict[TextLoop, list[Instruction]] = defaultdict(list)
        for one in own:
            around = self.text.loop(one.line)
            (beside[around] if around in inner else main).append(one)
        return main, beside

    def programs(self) -> list[tuple[Cost, float, int]]:
        """For each stage, or for all together in a cooperative kernel: what a warp costs, the cycles of its life, and
        how many programs there are."""
        outside = [x for x in self.code.loops if x.depth == 0]
        free = [i for i in range(len(self.code.instructions)) if not any(x.first <= i <= x.last for x in outside)]
        if self.cooperative:
            return [(*self._body([self.code.instructions[i] for i in free], outside, 1), self.grid)]
        found = []
        for number, (_, _, programs) in enumerate(self.stages):
            body = [self.code.instructions[i] for i in free if self.owner[i] in (-1, number)]
            loops = [x for x in outside if self._stage(x) == number]
            found.append((*self._body(body, loops, 1), programs))
        return found

    def _body(self, own: Sequence[Instruction], loops: Sequence[Loop], rounds: int) -> tuple[Cost, float]:
        """What one iteration of a loop, or a program around all loops, costs, and its cycles.

        Args:
            own: its instructions in no loop further in. loops: those. rounds: more than 1 in a loop.
        """
        main, beside = self._split(own, loops)
        left: Counter[TextLoop] = Counter()
        cost, before = cost_of(main, self.code), len(self.tiles)
        cycles, loads, in_flight = chain(main, self.full, self.cached, rounds)
        if self.cooperative and any(x.depth == 1 for x in loops):
            self.step = cycles
            self.idle += cycles
        for loop in loops:
            mine, trips, known = self.loop_of[loop], self._trips(loop), len(self.tiles)
            body, further = self.code.own(loop), self.code.inside(loop)
            each = max(round(self._copies(self._split(body, further)[0])), 1)
            its, long = self._body(body, further, ROUNDS)
            mean, most = trips.mean // each if each > 1 else trips.mean, trips.most // each
            left[mine] += trips.most % each
            cost.add(its, mean)
            if self.cooperative and loop.depth == 1:  # a program has no item, one or several of a stage
                if mine.over is not None:
                    self.lives[self._stage(loop)] = long
                if len(self.tiles) == known:
                    self.idle += long
            cycles += long * most
        for mine, body in beside.items():
            copies = self._copies(body)
            part = min(left[mine] / copies, 1.0) if copies else 1.0
            cost.add(cost_of(body, self.code), part)
            cycles += chain(body, self.full, self.cached, 1)[0] * part
        full = [i for i in main if (i.line, i.bytes) in self.full and i.name in ACCESSES]
        if full and (rounds > 1 or len(self.tiles) == before):
            each = max(round(self._copies(full)), 1)
            c = cost_of(main, self.code).counts
            names = ("instructions", "barriers", "shuffles", "shared accesses", "divisions")
            widths = tuple(sorted({i.bytes for i in full if i.name != "STG"}))
            self.tiles.append(Tile(*(round(c[name] / each) for name in names), widths, loads, in_flight))
        return cost, cycles
