"""The machine sized for a board and a model: the Config that fits the device and runs the model fastest.

Every Config that fits by the area model has a roofline, the cycles that its array and the board's memory take at the
least. The best of them is scheduled and its cycles are predicted, exactly, with the board's memory; then the next,
until no roofline is below what was found. Memories are as large as the model needs.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.boards.area import measure
from patchloom.boards.board import BOARDS, Board
from patchloom.boards.estimate import Area, device_area, estimate, exceeds, soc_area, usable
from patchloom.compiler.machine.commands import Kind, Queue, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config, ConfigError
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.frames import Samples, Tell, input_region
from patchloom.compiler.machine.program import Program
from patchloom.compiler.quantise import Quantised
from patchloom.compiler.schedule import FitError, schedule
from patchloom.compiler.schedule.buffers import aligned
from patchloom.sim.cycles import Prediction, Routed, predict, queue_lengths

Floats = NDArray[np.float64]
CUT = 512  # commands that the smallest memory for them holds on most devices
HOPELESS = 8  # times too small a scratchpad is, that more cuts do not help
TRIES = 12  # Configs that are scheduled before the best of them is taken
VARIANTS = 2  # of one shape: with other lanes or rows
SLACK = 0.98  # a roofline is this sure: padding differs a little from Config to Config
WORTH = 0.995  # of the cycles: what a larger buffer must bring at least
EPILOGUE_LANES = (0, 4, 2, 1)  # that are tried behind the array, the fastest first
LANES = (4, 8, 16, 32, 64)
CHUNK_BYTES = ELEMENT_WIDTH // 8  # of each lane
WIDEST = 256  # inputs or outputs that are tried
# A machine that little but its commands' fields limits.
ROOMY = Config(
    inputs=16, outputs=16, lanes=16, scratchpad_chunks=1 << 20, max_rows=4096, statistics_rows=8192, max_experts=256,
    max_top_k=8, command_depth=16384,
)  # fmt: skip
LEAST = {"statistics_rows": 16, "max_experts": 2, "max_top_k": 1, "accumulator_width": 24}
KINDS = {"lut": "look-up tables", "ff": "flip-flops", "dsp": "multipliers", "bram": "block RAMs"}


class SizeError(Error, ValueError):
    """A model or a Config that a board cannot hold: what is missing, and where it would fit."""


@dataclass(frozen=True)
class Budget:
    """What a machine takes of its board, and what the model gets from it."""

    board: Board
    config: Config
    machine: Area
    measured: bool  # the machine's area, by Yosys; else by the area model
    cycles: Mapping[str, int]  # of a frame, by task
    bytes_read: Mapping[str, int]  # of a frame, by task
    limit: str  # what keeps it from being faster
    larger: "Budget | None" = None  # on the next larger device

    @property
    def soc(self) -> Area:
        return soc_area(self.board)

    @property
    def device(self) -> Area:
        return device_area(self.board)

    def share(self, kind: str) -> float:
        """Of the device: `kind` is "lut", "ff", "dsp" or "bram"."""
        return float((getattr(self.machine, kind) + getattr(self.soc, kind)) / getattr(self.device, kind))

    @property
    def bandwidth(self) -> float:
        """Bytes a second that the board's memory gives at the most."""
        memory = self.board.memory
        return memory.bus_width / 8 * memory.beats_per_cycle * self.board.clock_hz

    @property
    def frames_per_second(self) -> dict[str, float]:
        return {task: self.board.clock_hz / cycles for task, cycles in self.cycles.items()}


# --- The model, whatever the Config ---


@dataclass(frozen=True, eq=False)
class Model:
    """A quantised model, and what of it no Config changes."""

    quantised: Quantised
    sizes: Mapping[str, int]  # the least that some fields must be
    rows: int  # the longest run of tokens
    routed: bool  # whether all of them must be in one run
    commands: int  # of the longest task, uncut
    work: Floats  # a row for each product: rows, features, channels, bits streamed, bits standing, from memory?
    routes: Mapping[str, Sequence[Routed]]  # by task, as the first sample goes

    @property
    def widths(self) -> dict[str, Any]:
        """Of the array's operands: as wide as most of the model needs."""
        precision = self.quantised.precision
        return {"weight_width": max(precision.weights, 8), "activation_width": max(precision.activations, 8)}


def read_model(quantised: Quantised, samples: Samples) -> Model:
    """Raises `FitError` for a model that no machine at all can run."""
    model = Model(quantised, {}, 1, False, 1, np.zeros((0, 6)), {})
    roomy = replace(ROOMY, **model.widths)
    program = schedule(quantised, roomy)
    routes: dict[str, Sequence[Routed]] = {}
    for task in program.tasks:
        mixed = any(command.kind == Kind.ROUTE for command in task.commands)
        region, _ = input_region(task, {port.name: samples[port.name][0] for port in task.inputs})
        routes[task.name] = queue_lengths(program, task.name, region) if mixed else []
    commands = [command for task in program.tasks for command in task.commands]
    mixtures = [command for command in commands if command.kind == Kind.ROUTE]
    products = [command for command in commands if command.kind == Kind.MATMUL]
    sizes = {
        "statistics_rows": max((c.o_statistics + c.rows for c in products if c.statistics), default=0),
        "max_experts": max((c.columns for c in mixtures), default=0),
        "max_top_k": max((c.top_k for c in mixtures), default=0),
        "accumulator_width": _accumulator(quantised, roomy),
    }
    return Model(
        quantised, {name: max(size, LEAST[name]) for name, size in sizes.items()}, max(c.rows for c in products),
        bool(mixtures), max(len(task.commands) for task in program.tasks), _work(program, routes), routes,
    )  # fmt: skip


def _accumulator(quantised: Quantised, roomy: Config) -> int:
    """Bits that every sum fits in."""
    try:
        schedule(quantised, replace(roomy, accumulator_width=LEAST["accumulator_width"]))
    except FitError as error:
        return error.sizes["accumulator_width"]
    return LEAST["accumulator_width"]


def _work(program: Program, routes: Mapping[str, Sequence[Routed]]) -> Floats:
    """What products ask for, whatever the Config; an expert's rows are those that it gets."""
    rows = []
    for task in program.tasks:
        waiting = iter(routes[task.name])
        lengths: Sequence[int] = ()
        for c in task.commands:
            if c.kind == Kind.ROUTE:
                lengths = next(waiting).lengths
            elif c.kind == Kind.MATMUL:
                tokens = lengths[c.expert] if c.queue != Queue.NONE else c.rows
                stored = c.b_source == Stationary.MEMORY and tokens > 0
                bits = c.b_digits * program.config.weight_width
                rows.append((tokens, c.depth, c.columns, 16 if c.a_wide else 8, bits, stored))
    return np.array(rows, np.float64)


# --- Which Configs there are ---


@dataclass(frozen=True)
class Candidate:
    """An array with the smallest memories."""

    config: Config
    roofline: int  # cycles
    likely: int  # cycles, if weights of one command did not come during the one before
    area: Area
    lacks: Mapping[str, float]  # kinds of the device's resources that it wants more of than there is


def candidates(model: Model, board: Board) -> list[Candidate]:
    """Every array with no more multipliers than the device has, the most promising first; of equals the smaller one."""
    family, room = board.device.family, usable(board)
    found: dict[tuple[int, ...], Candidate] = {}
    for base in _arrays(model, board):
        config = replace(base, scratchpad_chunks=_fewest_chunks(base))
        shape = config.inputs, config.outputs, config.lanes, config.max_rows
        if shape in found and not found[shape].lacks:
            continue  # packed multipliers are no faster and take more look-up tables, fewer lanes behind are slower
        area = estimate(config, family)
        array, memory = products(model, config, board)
        roofline, likely = max(array.sum(), memory.sum()), np.maximum(array, memory).sum()
        found[shape] = Candidate(config, int(roofline), int(likely), area, exceeds(area, room))
    return sorted(found.values(), key=lambda one: (one.likely, one.area.lut))


def _arrays(model: Model, board: Board) -> Iterator[Config]:
    """Every shape with no more multipliers than the device has, its memories small."""
    widths, bus = model.widths, board.memory.bus_width
    packs = board.device.family == "xcup" and set(widths.values()) == {8}
    depth = _power_of_two(model.commands)
    for packed, lanes, rows in itertools.product((False, True)[: 1 + packs], LANES, _most_rows(model)):
        most = board.device.dsps * (2 if packed else 1)
        for inputs in _multiples(lanes, most):
            beats = _word_beats(inputs * widths["weight_width"], bus)
            for outputs, behind in itertools.product(_multiples(lanes, most // inputs), EPILOGUE_LANES):
                with suppress(ConfigError):
                    yield Config(
                        inputs=inputs, outputs=outputs, lanes=lanes, multipliers_packed=packed, bus_width=bus,
                        word_beats=beats, max_rows=rows, scratchpad_copies=1, scratchpad_chunks=4096 * lanes,
                        command_depth=depth, epilogue_lanes=behind, **widths, **model.sizes,
                    )  # fmt: skip


def _multiples(lanes: int, most: int) -> Iterator[int]:
    """Of lanes; coarser ones where the array is large."""
    for size in range(lanes, min(WIDEST, most) + 1, lanes):
        if size % (1 if size <= 32 else 8 if size <= 64 else 16) == 0:
            yield size


def _most_rows(model: Model) -> list[int]:
    """Rows of a command: all, or, where they need not stay together, parts of them."""
    rows = [max(model.rows, 16)]
    while rows[-1] > 256 and not model.routed:
        rows.append(-(-rows[-1] // 2))
    return rows


def _word_beats(column: int, bus: int) -> int:
    """The fewest beats of a word that a column is a multiple or a divisor of."""
    return next((beats for beats in (1, 2, 4, 8) if column % (bus * beats) == 0 or (bus * beats) % column == 0), 1)


def _power_of_two(size: int) -> int:
    """Commands: a task's first one then needs no multiplier."""
    return max(64, 1 << (size - 1).bit_length())


def _fewest_chunks(config: Config) -> int:
    return aligned(64, config.banks)


def products(model: Model, config: Config, board: Board) -> tuple[Floats, Floats]:
    """Cycles of each product that the array, and that the memory takes at the least."""
    rows, depth, columns, streamed, stationary, stored = model.work.T
    groups = np.ceil(columns / config.outputs)
    digits = np.ceil(stationary / config.weight_width)
    tiles = groups * np.ceil(depth / config.inputs) * digits
    beats = np.ceil(rows / config.max_rows) * (tiles * config.tile_beats + groups * config.parameter_beats)
    beats_of_row = tiles / groups * np.ceil(streamed / config.activation_width)
    array = rows * groups * np.maximum(beats_of_row, config.passes)
    return array, beats * stored / board.memory.beats_per_cycle


# --- What one takes ---


@dataclass(frozen=True, eq=False)
class Tried:
    """A Config with memories as the model needs them, and what it makes of the model."""

    program: Program
    predictions: Mapping[str, Prediction]

    @property
    def cycles(self) -> dict[str, int]:
        return {task: found.cycles for task, found in self.predictions.items()}

    @property
    def total(self) -> int:
        return sum(self.cycles.values())


def attempt(model: Model, config: Config, board: Board) -> Tried:
    """With the largest scratchpad that the device has room for, then the smallest that does as well.

    Raises `FitError` where the model does not fit that, or `SizeError` where the device or its memory has no room.
    """
    short, depth = None, max(config.command_depth, _power_of_two(model.commands), CUT)
    while depth <= ROOMY.command_depth:
        try:
            roomy = _with_scratchpad(replace(config, command_depth=depth), board)
        except SizeError:
            if short:
                break
            raise
        try:
            room = roomy.scratchpad_chunks
            return _tried(model, _shrunk(schedule(model.quantised, roomy)), board)
        except FitError as error:  # cut so often that there are too many commands?
            need = error.sizes.get("scratchpad_chunks", 0)
            if error.sizes.keys().isdisjoint({"scratchpad_chunks", "command_depth"}) or need > HOPELESS * room:
                raise
            short, depth = error, 2 * depth
    assert short is not None
    raise short


def _with_scratchpad(config: Config, board: Board) -> Config:
    """The largest that fits the device."""
    family, room = board.device.family, usable(board)

    def sized(banks: int) -> Config:
        return replace(config, scratchpad_chunks=banks * config.banks)

    low, high = -(-64 // config.banks), (1 << 20) // config.banks
    if lacks := exceeds(estimate(sized(low), family), room):
        raise SizeError(f"{board.name} has too few {', '.join(KINDS[kind] for kind in lacks)}")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if exceeds(estimate(sized(middle), family), room) else (middle, high)
    return sized(low)


def _shrunk(program: Program) -> Config:
    """The program's Config with no more chunks and commands than are used."""
    used = max((buffer.address + buffer.chunks for task in program.tasks for buffer in task.buffers), default=64)
    config, commands = program.config, max(len(task.commands) for task in program.tasks)
    chunks = max(aligned(used, config.banks), _fewest_chunks(config))
    return replace(config, scratchpad_chunks=chunks, command_depth=_power_of_two(commands))


def _tried(model: Model, config: Config, board: Board) -> Tried:
    """The Program of this very Config."""
    program = schedule(model.quantised, config)
    check_memory(program, board)
    return Tried(program, {task.name: _predict(program, task.name, model, board) for task in program.tasks})


def _predict(program: Program, task: str, model: Model, board: Board) -> Prediction:
    return predict(program, task, queues=model.routes[task], **board.memory.timing)


def check_memory(program: Program, board: Board) -> None:
    """That image, inputs and outputs have room in the board's memory."""
    need = len(program.image) + max(task.input_bytes + task.output_bytes for task in program.tasks)
    if need > board.memory.bytes:
        raise SizeError(
            f"does not fit: image, inputs and outputs need {need} bytes of memory, board {board.name} has "
            f"{board.memory.bytes}; try {_boards(lambda other: other.memory.bytes >= need) or 'a smaller model'}"
        )


# --- The search ---


def size(
    quantised: Quantised, samples: Samples, board: Board, progress: Tell | None = None, *, measured: bool = False
) -> tuple[Program, Budget]:
    """The fastest Program for a board, all tasks counted once; `samples` are its inputs, as calibration had them.

    `measured` by Yosys, which takes minutes, an array that does not fit is put aside. Raises `SizeError` with what is
    missing where none fits.
    """
    model = read_model(quantised, samples)
    program, made = _measured(model, board, progress) if measured else sized(model, board, progress)
    return program, replace(made, larger=_larger(model, board))


def _measured(model: Model, board: Board, progress: Tell | None) -> tuple[Program, Budget]:
    """The fastest that fits by Yosys."""
    aside: set[tuple[int, int]] = set()
    while True:
        program, made = sized(model, board, progress, aside=aside)
        if progress:
            progress("Yosys", len(aside), len(aside) + 1)
        area = measure(made.config, board.device.family)
        if not exceeds(area, usable(board)):
            return program, replace(made, machine=area, measured=True)
        aside.add((made.config.inputs, made.config.outputs))


def sized(
    model: Model,
    board: Board,
    progress: Tell | None = None,
    tries: int = TRIES,
    aside: Collection[tuple[int, int]] = (),
) -> tuple[Program, Budget]:
    """The same of a model that was read, by the area model, without a look at larger devices."""
    found, limit = search(model, board, progress, tries, aside)
    return found.program, _budget(found, board, limit)


def search(
    model: Model,
    board: Board,
    progress: Tell | None = None,
    tries: int = TRIES,
    aside: Collection[tuple[int, int]] = (),
) -> tuple[Tried, str]:
    """The fastest of `tries`, but for the arrays put `aside`; and what keeps it from being faster."""
    every = candidates(model, board)
    best, short, tried_already = None, _Short(), 0
    failed: FitError | SizeError | None = None
    shapes: Counter[tuple[int, int]] = Counter()
    for candidate in every:
        if tried_already == tries:
            break
        if candidate.lacks or (best and candidate.roofline * SLACK >= best.total):
            continue
        shape = candidate.config.inputs, candidate.config.outputs
        if shape in aside or shapes[shape] == VARIANTS or short.of(candidate.config, board):
            continue
        shapes[shape] += 1
        tried_already += 1
        if progress:
            progress(f"size for {board.name}", tried_already, tries)
        try:
            tried = attempt(model, candidate.config, board)
        except (FitError, SizeError) as error:
            failed = error
            short.remember(candidate.config, error)
            continue
        best = min(best or tried, tried, key=lambda one: one.total)
    if best is None:
        raise _too_small(model, board, short) if failed is None or short.least else failed
    if progress:
        progress(f"size for {board.name}", tries, tries)
    best = _refined(model, best, board)
    return best, _limit(model, best, board, every)


class _Short:
    """Scratchpads that were found too small."""

    def __init__(self) -> None:
        self.least: dict[int, int] = {}  # bytes that are needed, by lanes

    def remember(self, config: Config, error: FitError | SizeError) -> None:
        if isinstance(error, FitError) and "scratchpad_chunks" in error.sizes:
            need = error.sizes["scratchpad_chunks"] * config.lanes * CHUNK_BYTES
            self.least[config.lanes] = min(need, self.least.get(config.lanes, need))

    def of(self, config: Config, board: Board) -> bool:
        """Whether this one will be too small as well."""
        need = self.least.get(config.lanes)
        return need is not None and _bytes(_with_scratchpad(config, board)) < need


def _bytes(config: Config) -> int:
    """Of the scratchpad, as a program sees it."""
    return config.scratchpad_chunks * config.lanes * CHUNK_BYTES


def _too_small(model: Model, board: Board, short: _Short) -> SizeError:
    """What is missing on the board, and where it is not."""
    smallest = min(candidates(model, board), key=lambda one: one.area.lut)
    if smallest.lacks:
        room = usable(board)
        wants = (f"{want:g} {KINDS[kind]}, has {getattr(room, kind):g}" for kind, want in smallest.lacks.items())
        others = _boards(lambda other: any(not one.lacks for one in candidates(model, other)))
        text = f"the smallest machine needs {'; '.join(wants)} on board {board.name}"
        return SizeError(f"does not fit: {text}; try {others or 'a smaller model'}")
    need, have = min(short.least.values()), _capacity(model, board)
    others = _boards(lambda other: _capacity(model, other) >= need)
    return SizeError(
        f"does not fit: activations need {need} bytes of scratchpad, board {board.name} has room for {have}: "
        f"{need - have} bytes are missing; try {others or 'a smaller model'}"
    )


def _capacity(model: Model, board: Board) -> int:
    """Bytes of the largest scratchpad, beside the smallest machine."""
    fitting = [one for one in candidates(model, board) if not one.lacks]
    if not fitting:
        return 0
    return _bytes(_with_scratchpad(min(fitting, key=lambda one: one.area.bram).config, board))


def _boards(holds: Callable[[Board], bool]) -> str:
    """Names of the boards that it holds for."""
    return " or ".join(f"board {name}" for name, board in BOARDS.items() if holds(board))


def _refined(model: Model, best: Tried, board: Board) -> Tried:
    """With larger buffers where that is worth it."""
    for field, factor in (("scratchpad_copies", 2), ("fifo_beats", 4), ("fifo_beats", 4), ("word_beats", 2)):
        config = best.program.config
        with suppress(FitError, SizeError, ConfigError):
            other = attempt(model, replace(config, **{field: getattr(config, field) * factor}), board)
            if other.total < best.total * WORTH:
                best = other
    return best


def _limit(model: Model, best: Tried, board: Board, every: Sequence[Candidate]) -> str:
    """What keeps a machine of the board from being faster."""
    array, memory = (int(cycles.sum()) for cycles in products(model, best.program.config, board))
    if memory > array:
        return "memory: its bandwidth"
    faster = [one for one in every if one.roofline < WORTH * array]
    if not faster:
        return "the model: no larger array is faster"
    room = usable(board)

    def excess(one: Candidate) -> float:
        return max((want / getattr(room, kind) for kind, want in one.lacks.items()), default=0.0)

    nearest = min(faster, key=excess)
    shape = f"{nearest.config.inputs} x {nearest.config.outputs}"
    if not nearest.lacks:
        return f"block RAMs: beside an array of {shape} the scratchpad is too small"
    wants = (f"{want:g} {KINDS[kind]} of {getattr(room, kind):g}" for kind, want in nearest.lacks.items())
    return f"{', '.join(KINDS[kind] for kind in nearest.lacks)}: an array of {shape} wants {', '.join(wants)}"


def _larger(model: Model, board: Board) -> Budget | None:
    """On the board with the next larger device."""
    larger = [other for other in BOARDS.values() if other.device.dsps > board.device.dsps]
    if not larger:
        return None
    with suppress(SizeError, FitError):
        return sized(model, min(larger, key=lambda one: one.device.dsps), tries=2)[1]
    return None


def _budget(found: Tried, board: Board, limit: str) -> Budget:
    config = found.program.config
    read = {task: made.beats_read * config.beat_bytes for task, made in found.predictions.items()}
    machine = estimate(config, board.device.family)
    return Budget(board, config, machine, False, found.cycles, read, limit)


# --- A Config that is given ---


def check_config(config: Config, board: Board) -> None:
    """Raises `SizeError` with everything in which the Config contradicts the board."""
    problems = []
    if config.bus_width != board.memory.bus_width:
        problems.append(
            f"Config.bus_width must be {board.memory.bus_width}, as wide as the memory controller of board "
            f"{board.name}, not {config.bus_width}"
        )
    if config.multipliers_packed and board.device.family != "xcup":
        problems.append(
            f"Config.multipliers_packed must be False: the multipliers of board {board.name} are too narrow for two"
        )
    room = usable(board)
    for kind, want in exceeds(estimate(config, board.device.family), room).items():
        problems.append(f"Config needs {want:g} {KINDS[kind]}, board {board.name} has room for {getattr(room, kind):g}")
    if problems:
        problems.append(f"without a Config the machine is sized for board {board.name} and the model")
        raise SizeError("\n".join(problems))


def budget(quantised: Quantised, samples: Samples, program: Program, board: Board) -> Budget:
    """Of a Program whose Config was given."""
    model = read_model(quantised, samples)
    check_memory(program, board)
    found = Tried(program, {task.name: _predict(program, task.name, model, board) for task in program.tasks})
    return _budget(found, board, "the Config that was given")
