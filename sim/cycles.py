"""How many cycles a Program takes, without simulating its data: the number in the machine's `cycles` register.

The model steps the control of `hw` cycle by cycle (native/cycles.cpp); data matter only to ROUTE, whose queues come
from the interpreter:

    prediction = predict(program, task, queues=queue_lengths(program, task, inputs), latency=20)

    python -m patchloom.sim.cycles check --count 50

compares it with the RTL over random machines, commands and memories.
"""

import argparse
import ctypes
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import (
    COMMAND_BITS,
    COMMAND_BYTES,
    FIELDS,
    Command,
    Kind,
    Queue,
    Residual,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.layout import stream_beats
from patchloom.compiler.machine.program import Program, Task, command_table
from patchloom.compiler.machine.tables import ENTRIES, ENTRY_BITS, TABLE_BYTES
from patchloom.host.session import Session
from patchloom.hw import cache, dma
from patchloom.hw.boot import command_beats
from patchloom.hw.bundles import ROUTES_WIDTH, chunk_width, columns_width, parameters_at_once, parameters_width
from patchloom.hw.datapath import Datapath
from patchloom.hw.epilogue import Epilogue
from patchloom.hw.router import Router
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.serialiser import ParameterQueue, Serialiser
from patchloom.hw.storer import Storer
from patchloom.sim import toolchain
from patchloom.sim.device import NATIVE, SimulatedDevice, check_memory
from patchloom.sim.interpret import State, execute

# What each unit waits for. What is left of its cycles it works.
WAITS = {
    "issuer.boot": "commands to be there",
    "issuer.command": "the next command to be read and begun",
    "issuer.settle": "the last beats of the command before to leave the datapath",
    "issuer.weights": "a tile or parameters, for which the loader waits for memory",
    "issuer.tile": "a tile or parameters, which the loader is about to write",
    "issuer.stager": "a tile or parameters, which the stager has not asked the loader for",
    "issuer.gap": "a row of few to come back no sooner than it may",
    "issuer.port": "the scratchpad's port, which reads the residual of the row before",
    "issuer.room": "room behind the array, where rows wait for the epilogue",
    "issuer.load": "a LOAD or a TABLE",
    "issuer.behind": "stager and fetcher to come to a ROUTE, as they still look at the queues of the one before",
    "issuer.route": "a ROUTE",
    "issuer.store": "a STORE",
    "issuer.end": "the memory to have everything",
    "stager.boot": "commands to be there",
    "stager.command": "the next command to be read and begun",
    "stager.route": "a ROUTE to be done",
    "stager.end": "the issuer to come to the end",
    "loader.stager": "a command",
    "loader.weights": "memory",
    "loader.tile": "the tile it wrote before to be used",
    "loader.parameters": "the parameters it wrote before to be used",
    "loader.issuer": "the issuer to allow it the scratchpad",
    "loader.port": "the scratchpad's port, which writes",
    "fetcher.boot": "commands to be there",
    "fetcher.command": "the next command to be read and begun",
    "fetcher.route": "a ROUTE to send a token to an expert",
    "fetcher.reader": "the reader to take a request",
    "fetcher.end": "the issuer to come to the end",
    "reader.request": "a request",
    "reader.room": "room in the buffer",
    "reader.memory": "the memory to take an address",
    "memory.request": "a burst to be asked for",
    "memory.latency": "its latency",
    "memory.bandwidth": "its next beat",
    "memory.refresh": "its refresh to end",
}
AHEAD = ("stager", "fetcher")  # what fetches for commands that are not yet issued
UNITS = tuple(dict.fromkeys(name.partition(".")[0] for name in WAITS))


Ints16 = NDArray[np.int16]


class CycleError(Error, RuntimeError):
    """The machine would stand still for ever."""


@dataclass(frozen=True)
class Routed:
    """What a ROUTE does to the machine's timing."""

    lengths: tuple[int, ...]  # of the experts' queues
    first: tuple[int, ...]  # number of the push (from 0, over all experts) that begins the queue, -1 if none does


@dataclass(frozen=True)
class Prediction:
    """One frame, the first after power-on; cycles count from the start on."""

    cycles: int
    waits: dict[str, int]  # cycles that each unit waits, by what it waits for: see WAITS
    per_command: list[tuple[int, int]]  # first cycle and end, from the issuer's view; the first one is the boot
    ahead: dict[str, list[int]]  # ends of each from the view of those that walk before it, stager and fetcher
    beats_read: int
    beats_written: int
    waits_per_command: list[dict[str, int]] = field(repr=False)  # those that are not 0, by the unit's own command


# --- What hw/ and compiler/ say, for the native side ----------------------------------------------------------------


TIMING = ("latency", "cycles_per_beat", "refresh_period", "refresh_cycles", "outstanding")


def _machine(config: Config, task: int, memory: Mapping[str, int]) -> dict[str, int]:
    """Constants that control depends on; `memory` by the names of `TIMING`."""
    return {
        "inputs": config.inputs,
        "outputs": config.outputs,
        "lanes": config.lanes,
        "max_experts": config.max_experts,
        "max_top_k": config.max_top_k,
        "fifo_beats": config.fifo_beats,
        "beat_bytes": config.beat_bytes,
        "bus_width": config.bus_width,
        "word_width": config.word_width,
        "word_beats": config.word_beats,
        "word_commands": config.word_commands,
        "columns_at_once": config.columns_at_once,
        "columns_width": columns_width(config),
        "parameters_at_once": parameters_at_once(config),
        "words_width": parameters_width(config),
        "chunk_width": chunk_width(config),
        "entry_width": ENTRY_BITS,
        "command_width": COMMAND_BITS,
        "command_beats": command_beats(config),
        "first_beat": task * config.command_depth * COMMAND_BYTES // config.beat_bytes,
        "splits_streamed": int(config.activation_width < ELEMENT_WIDTH),
        "routes": 1 << ROUTES_WIDTH,
        "datapath_latency": Datapath.latency(config),
        "datapath_write": Datapath.write_latency(config),
        "sums_latency": Datapath.sums_latency(config),
        "passes": config.passes,
        "rows_waiting": Serialiser.depth(config),
        "parameter_sets": ParameterQueue.SETS,
        "residual_lead": Epilogue.residual_lead(config, Residual.ADD),
        "factor_lead": Epilogue.residual_lead(config, Residual.MULTIPLY),
        "period": Datapath.PERIOD,
        "epilogue_period": Epilogue.PERIOD,
        "shared_port": int(Scratchpad.shares_port(config)),
        "read_latency": Scratchpad.READ_LATENCY,
        "write_latency": Scratchpad.WRITE_LATENCY,
        "router_rows": Router.ROWS,
        "router_latency": Router.latency(config),
        "router_settle": Router.settle(config),
        "storer_buffer": Storer.BUFFER,
        "read_chunk": dma.Reader.burst_beats(config),
        "write_chunk": dma.Writer.burst_beats(config),
        "bursts_ahead": dma.BURSTS_AHEAD,
        "bursts_unanswered": dma.BURSTS_UNANSWERED,
        **{name: memory[name] for name in TIMING},
    }


def _facts() -> str:
    """facts.hpp of native/cycles.cpp."""
    enums: tuple[type[IntEnum], ...] = (Kind, Queue, Residual, Stationary)
    lines = []
    for enum in enums:
        values = (f"{enum.__name__}_{value.name} = {value}".upper() for value in enum)
        lines.append(f"enum {enum.__name__} {{ {', '.join(values)} }};")
    waits = (name.replace(".", "_").upper() for name in WAITS)
    lines.append(f"enum Wait {{ NO_WAIT = -1, {', '.join(waits)}, WAITS }};")
    for name, members in (("Command", FIELDS), ("Machine", _machine(Config(), 0, dict.fromkeys(TIMING, 1)))):
        lines.append(f"struct {name} {{ int64_t {', '.join(members)}; }};")
    return "\n".join(lines) + "\n"


class _Job(ctypes.Structure):
    """As in native/cycles.cpp."""

    _fields_ = [
        ("machine", ctypes.c_void_p),
        ("commands", ctypes.c_void_p),
        ("command_count", ctypes.c_int64),
        ("lengths", ctypes.c_void_p),
        ("firsts", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("ahead", ctypes.c_void_p),
        ("waits", ctypes.c_void_p),
        ("cycles", ctypes.c_int64),
        ("beats_read", ctypes.c_int64),
        ("beats_written", ctypes.c_int64),
        ("stuck_at", ctypes.c_int64),
    ]


SOURCE = NATIVE / "cycles.cpp"
COMPILE = ("g++", "-std=c++20", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared")


@functools.cache
def _library() -> ctypes.CDLL:
    facts = _facts()

    def make(directory: Path) -> None:
        (directory / "facts.hpp").write_text(facts)
        toolchain.call([*COMPILE, "-I.", "-o", "cycles.so", SOURCE], directory)

    key = cache.digest(facts, *COMPILE, *cache.sources(NATIVE))
    library = ctypes.CDLL(str(cache.entry("native", key, make) / "cycles.so"))
    library.cycles_run.restype, library.cycles_run.argtypes = None, [ctypes.POINTER(_Job)]
    return library


# --- Prediction -----------------------------------------------------------------------------------------------------


def queue_lengths(program: Program, task: str | None, inputs: Ints16) -> list[Routed]:
    """What each ROUTE does for these inputs, in the order of the commands."""
    routed: list[Routed] = []

    def observe(_: int, command: Command, state: State) -> None:
        if command.kind == Kind.ROUTE:
            lengths = tuple(len(queue.token) for queue in state.queues)
            routed.append(Routed(lengths, tuple(int(next(iter(queue.push), -1)) for queue in state.queues)))

    execute(program, task, inputs, observe)
    return routed


def _spread(lengths: Sequence[int]) -> Routed:
    """Lengths alone: as if each expert's tokens came at even distances."""
    return Routed(tuple(lengths), tuple(sum(lengths) // (length + 1) if length else -1 for length in lengths))


def predict(
    program: Program,
    task: str | None = None,
    *,
    queues: Sequence[Routed | Sequence[int]],
    latency: int = 40,
    cycles_per_beat: int = 1,
    refresh_period: int = 0,
    refresh_cycles: int = 0,
    outstanding: int = 32,
) -> Prediction:
    """Cycles of one frame under `SimulatedDevice`'s memory of the same settings.

    `queues` are those of each ROUTE. Of an expert's queue the machine's timing depends on its length, and on when it
    gets its first token: `queue_lengths` says both, and the prediction is exact; plain lengths are taken to be
    spread evenly over the tokens. The program is one that `compiler.machine.verify` accepts.
    """
    memory = check_memory(
        latency=latency, cycles_per_beat=cycles_per_beat, refresh_period=refresh_period,
        refresh_cycles=refresh_cycles, outstanding=outstanding,
    )  # fmt: skip
    chosen, config = program.task(task), program.config
    routes = [command for command in chosen.commands if command.kind == Kind.ROUTE]
    if [len(q.lengths if isinstance(q, Routed) else q) for q in queues] != [route.columns for route in routes]:
        raise ValueError(f"queues must be those of {len(routes)} ROUTEs, one length per expert")
    routed = [q if isinstance(q, Routed) else _spread(q) for q in queues]
    lengths, firsts = (np.full((len(routes) + 1, config.max_experts), empty, np.int64) for empty in (0, -1))
    for row, q in enumerate(routed):
        lengths[row, : len(q.lengths)] = q.lengths
        firsts[row, : len(q.first)] = q.first
    constants = _machine(config, program.tasks.index(chosen), memory)
    return _run(chosen, np.array(list(constants.values()), np.int64), lengths, firsts)


def _run(task: Task, machine: Ints, lengths: Ints, firsts: Ints) -> Prediction:
    count = len(task.commands)
    commands = np.array([[int(getattr(c, name)) for name in FIELDS] for c in task.commands], np.int64)
    spans, ahead, waits = (np.zeros((count, width), np.int64) for width in (2, 2, len(WAITS)))
    arrays = (array.ctypes.data for array in (lengths, firsts, spans, ahead, waits))
    job = _Job(machine.ctypes.data, commands.ctypes.data, count, *arrays, stuck_at=-1)
    _library().cycles_run(ctypes.byref(job))
    if job.stuck_at >= 0:
        raise CycleError(f"command {job.stuck_at}, {task.commands[job.stuck_at].kind.name}, never ends")
    return Prediction(
        cycles=job.cycles,
        waits=dict(zip(WAITS, waits.sum(axis=0).tolist(), strict=True)),
        per_command=[(begin, end) for begin, end in spans.tolist()],
        ahead={unit: _ends(column, spans[0, 1], job.cycles) for unit, column in zip(AHEAD, ahead.T, strict=True)},
        beats_read=job.beats_read,
        beats_written=job.beats_written,
        waits_per_command=[{n: w for n, w in zip(WAITS, row, strict=True) if w} for row in waits.tolist()],
    )


def _ends(ends: Ints, boot: int, cycles: int) -> list[int]:
    """With those of the boot and of END, which no unit leaves."""
    return [int(boot), *ends[1:-1].tolist(), cycles]


# --- Comparison with the RTL over random commands -------------------------------------------------------------------

# Machines that differ in all that control depends on, small enough to be built in a short time.
_SMALL = Config(max_rows=40, max_experts=6, scratchpad_chunks=2048, statistics_rows=128, command_depth=128)
MACHINES = (
    replace(_SMALL, inputs=8, outputs=4, lanes=4, scratchpad_copies=1),
    replace(_SMALL, inputs=4, outputs=8, lanes=4, bus_width=512, fifo_beats=64),
    replace(_SMALL, inputs=8, outputs=8, lanes=8, bus_width=32, weight_width=16, activation_width=16, max_experts=10),
    replace(
        _SMALL,
        inputs=12,
        outputs=4,
        lanes=4,
        bus_width=32,
        fifo_beats=32,
        scratchpad_copies=1,
        epilogue_lanes=1,
    ),
    replace(
        _SMALL,
        inputs=16,
        outputs=8,
        lanes=8,
        bus_width=256,
        activation_width=16,
        max_rows=24,
        max_experts=12,
        max_top_k=2,
    ),
    replace(_SMALL, inputs=8, outputs=12, lanes=4, bus_width=128, weight_width=16, fifo_beats=32, max_experts=16),
    replace(
        _SMALL,
        inputs=16,
        outputs=16,
        lanes=8,
        bus_width=128,
        word_beats=4,
        fifo_beats=1024,
        max_experts=10,
        epilogue_lanes=8,
    ),
    replace(
        _SMALL,
        inputs=8,
        outputs=12,
        lanes=4,
        bus_width=512,
        word_beats=4,
        fifo_beats=128,
        max_experts=8,
        scratchpad_copies=1,
        epilogue_lanes=2,
    ),
)
MEMORIES = {
    "latency": (0, 1, 2, 20, 60, 200), "cycles_per_beat": (1, 1, 2, 3, 7), "refresh_period": (0, 50, 400),
    "outstanding": (1, 2, 3, 8, 32),
}  # fmt: skip


class _Commands:
    """Random commands of one task. Only timing matters: nothing is normalised, results overwrite each other."""

    def __init__(self, config: Config, rng: np.random.Generator, image: range, region: int) -> None:
        self.config, self.rng, self.image, self.region = config, rng, image, region
        self.commands = [Command(kind=Kind.BEGIN)]
        self.route: Command | None = None

    def up_to(self, most: int) -> int:
        """1 to `most`, small and large ones alike."""
        return int(min(most, np.exp(self.rng.uniform(0, np.log(most + 1)))))

    def one_of(self, *several: int) -> int:
        return several[self.rng.integers(len(several))]

    def tensor(self, name: str, rows: int, columns: int) -> dict[str, Any]:
        """Where one may lie."""
        stride = -(-columns // self.config.lanes)
        last = self.config.scratchpad_chunks - rows * stride
        return {f"{name}_address": int(self.rng.integers(last + 1)), f"{name}_stride": stride}

    def beat(self, region: range, size: int) -> int:
        """Address of `size` bytes."""
        step = self.config.beat_bytes
        return int(self.rng.integers(region.start // step, (region.stop - size) // step + 1)) * step

    def transfer(self, kind: Kind, address: int, chunks: int) -> None:
        size, space = chunks * self.config.lanes * 2, Space.INPUT if kind == Kind.LOAD else Space.OUTPUT
        at, beats = self.beat(range(self.region), size), size // self.config.beat_bytes
        self.commands.append(
            Command(kind=kind, rows=chunks, a_address=address, dma_space=space, dma_address=at, dma_beats=beats)
        )

    def chunks(self, most: int) -> int:
        """A number that fills whole words."""
        step = max(1, self.config.word_width // chunk_width(self.config))
        return self.up_to(max(1, most // step)) * step

    def load_or_store(self) -> None:
        chunks = self.chunks(1024)
        kind = (Kind.LOAD, Kind.STORE)[self.rng.integers(2)]
        self.transfer(kind, int(self.rng.integers(self.config.scratchpad_chunks - chunks + 1)), chunks)

    def table(self) -> None:
        at, beats = self.beat(self.image, TABLE_BYTES), TABLE_BYTES // self.config.beat_bytes
        self.commands.append(Command(kind=Kind.TABLE, rows=ENTRIES, dma_address=at, dma_beats=beats))

    def matmul(self, rows: int | None = None, **queue: Any) -> None:
        config = self.config
        rows = rows or self.up_to(config.max_rows)
        widest = (config.scratchpad_chunks // (rows + 1)) * config.lanes
        depth, columns = self.up_to(min(4 * config.inputs, widest)), self.up_to(min(4 * config.outputs, widest))
        digits = self.one_of(1, 2) if config.weight_width < ELEMENT_WIDTH else 1
        source = Stationary(self.one_of(*Stationary, Stationary.MEMORY, Stationary.MEMORY))
        if source == Stationary.MEMORY:
            beats = stream_beats(config, depth, columns, digits)
            where: dict[str, Any] = {
                "dma_beats": beats,
                "dma_address": self.beat(self.image, beats * config.beat_bytes),
            }
        elif source == Stationary.COLUMNS:
            where = self.tensor("b", columns, depth)
        else:
            where = self.tensor("b", depth, columns)
        if source != Stationary.MEMORY:
            queue["expected"] = 0
        if self.one_of(0, 1):
            where |= {"residual": self.one_of(Residual.ADD, Residual.MULTIPLY, Residual.MAXIMUM)} | self.tensor(
                "r", rows, columns
            )
        fields = where | self.tensor("a", rows, depth) | self.tensor("o", rows, columns) | queue
        self.commands.append(
            Command(kind=Kind.MATMUL, rows=rows, depth=depth, columns=columns, b_source=source, b_digits=digits,
                    a_wide=self.one_of(0, 1), o_wide=1, **fields)
        )  # fmt: skip

    def mixture(self) -> None:
        """Logits straight from the input, a ROUTE, and some experts in any order."""
        config = self.config
        rows, experts = self.up_to(config.max_rows), self.one_of(*range(2, config.max_experts + 1))
        step = max(1, config.word_width // chunk_width(config))
        logits = self.tensor("a", rows + step, experts)
        self.transfer(Kind.LOAD, logits["a_address"], -(-rows * logits["a_stride"] // step) * step)
        most = min(config.max_top_k, experts)
        self.commands.append(
            Command(kind=Kind.ROUTE, rows=rows, columns=experts, top_k=self.one_of(*range(1, most + 1)),
                    score_all=self.one_of(0, 1), exp_shift=3, **logits)
        )  # fmt: skip
        for expert in self.rng.permutation(experts)[: self.one_of(1, experts)].tolist():
            expected = self.one_of(0, 1)
            for queue in (Queue.GATHER, Queue.SCATTER)[: self.one_of(1, 2)]:
                if self.rng.random() < 0.2:
                    self.matmul()
                self.matmul(rows, queue=queue, expert=expert, expected=expected)

    def task(self, name: str) -> Task:
        longest = 3 * 2 * self.config.max_experts + 2  # of a mixture
        makers: list[Callable[[], None]] = [self.load_or_store, self.matmul, self.matmul, self.mixture, self.table]
        for _ in range(self.one_of(*range(1, 16))):
            if len(self.commands) + longest + 1 <= self.config.command_depth:
                makers[self.rng.integers(len(makers))]()
        count = len(self.commands) + 1
        begin = Command(kind=Kind.BEGIN, rows=count, epsilon=self.config.fingerprint)
        commands = (begin, *self.commands[1:], Command(kind=Kind.END))
        return Task(name, commands, (), (), self.region, self.region, 0)


def random_program(config: Config, seed: int) -> tuple[Program, Ints16]:
    """Tasks of random commands, and an input region for them."""
    rng = np.random.default_rng(seed)
    size = 2 * config.beat_bytes * stream_beats(config, 4 * config.inputs, 4 * config.outputs, 2) + TABLE_BYTES
    region = 2 * ELEMENT_WIDTH // 8 * config.scratchpad_chunks * config.lanes
    count = int(rng.integers(1, 4))
    table = count * config.command_depth * COMMAND_BYTES
    image = range(table, table + size)
    tasks = tuple(_Commands(config, rng, image, region).task(f"task {number}") for number in range(count))
    weights = rng.integers(0, 256, size, np.uint8).tobytes()
    program = Program(config, "random", tasks, command_table(config, [task.commands for task in tasks]) + weights)
    spread = int(rng.choice([2, 30, 30_000]))  # few values: many ties, which the first experts win
    return program, rng.integers(-spread, spread, region // 2).astype(np.int16)


@dataclass(frozen=True)
class Comparison:
    """The RTL beside its prediction: cycles, beats read, beats written."""

    config: Config
    seed: int
    task: str
    memory: dict[str, int]
    rtl: tuple[int, int, int]
    predicted: tuple[int, int, int]


def compare(config: Config, seed: int) -> Iterator[Comparison]:
    """Every task of a random program, each on a machine just switched on, under a random memory."""
    program, inputs = random_program(config, seed)
    rng = np.random.default_rng(seed)
    for task in program.tasks:
        memory: dict[str, Any] = {name: int(rng.choice(values)) for name, values in MEMORIES.items()}
        memory["refresh_cycles"] = memory["refresh_period"] // 9
        with SimulatedDevice(config, **memory, memory_bytes=1 << 26) as device:
            cycles = Session(device, program).frame(inputs, task.name)[1]
            rtl = cycles, device.traffic.read_beats, device.traffic.write_beats
        p = predict(program, task.name, queues=queue_lengths(program, task.name, inputs), **memory)
        yield Comparison(config, seed, task.name, memory, rtl, (p.cycles, p.beats_read, p.beats_written))


def check(count: int, seed: int = 0, machines: Sequence[Config] = MACHINES) -> dict[str, Any]:
    """Compare `count` programs, machine after machine in turn; the result as `main` writes it."""
    began = perf_counter()
    comparisons = [c for i in range(count) for c in compare(machines[i % len(machines)], seed + i)]
    return {
        "programs": count,
        "machines": min(count, len(machines)),
        "frames": len(comparisons),
        "cycles": sum(c.rtl[0] for c in comparisons),
        "mismatches": [asdict(c) for c in comparisons if c.rtl != c.predicted],
        "seconds": round(perf_counter() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a prediction is off."""
    parser = argparse.ArgumentParser(prog="python -m patchloom.sim.cycles", description=__doc__)
    commands = parser.add_subparsers(required=True)
    checking = commands.add_parser("check", help="compare predictions with the RTL; JSON to stdout or a file")
    checking.add_argument("--count", type=int, default=50, help="random programs")
    checking.add_argument("--seed", type=int, default=0, help="of the first one; others follow")
    checking.add_argument("--output", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    result = check(options.count, options.seed)
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    sys.stdout.write(text)
    return int(bool(result["mismatches"]))


if __name__ == "__main__":
    sys.exit(main())
