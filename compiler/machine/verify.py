"""What must hold of a Program before a machine runs it.

The commands of each task are walked in order with what they leave behind (chunks written, statistics, row
maxima, queues); every rule is a condition and the text that says how it is broken.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import (
    COMMAND_BYTES,
    FIELDS,
    Command,
    Kind,
    Post,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.encoding import Bits
from patchloom.compiler.machine.fixed import (
    MAX_SHIFT,
    NORMALISED_FEATURES,
    SCORE_FRACTION,
    SHIFT_WIDTH,
    SUM_WIDTH,
    Ints,
)
from patchloom.compiler.machine.layout import stream_beats
from patchloom.compiler.machine.program import NAME_RULE, Layer, Port, Program, ProgramError, Task, is_name
from patchloom.compiler.machine.tables import ENTRIES, ENTRY, LAST, TABLE_BYTES, WITH_TABLE, Table

Bools = NDArray[np.bool_]
Marks = TypeVar("Marks", bound=NDArray[Any])
Rules = Iterator[tuple[bool, str]]  # (holds, what is wrong if it does not)


def verify(program: Program) -> None:
    """Raises `ProgramError` naming every rule that is broken."""
    problems = [f"program: {text}" for holds, text in _image_rules(program) if not holds]
    for number, task in enumerate(program.tasks):
        problems += [f"task '{task.name}': {text}" for holds, text in _task_rules(program, task, number) if not holds]
        if not problems:
            problems += _Walk(program, task).problems()
    if problems:
        raise ProgramError("\n".join(problems))


_VERIFIED: WeakSet[Program] = WeakSet()


def verify_once(program: Program) -> None:
    """As `verify`, at a Program's first time only."""
    if program not in _VERIFIED:
        verify(program)
        _VERIFIED.add(program)


def _image_rules(program: Program) -> Rules:
    size, names = len(program.image), [task.name for task in program.tasks]
    yield len(names) > 0, "it has no task"
    yield len(set(names)) == len(names), f"task names must differ, not {names!r}"
    yield all(map(is_name, names)), f"a task must have {NAME_RULE}, not {names!r}"
    yield size % 2 == 0, f"the image must be whole elements, not {size} bytes"
    for segment in program.segments:
        end = segment.offset + segment.length
        yield 0 <= segment.offset <= end <= size, f"segment '{segment.name}' ends at byte {end} of {size}"


def _task_rules(program: Program, task: Task, number: int) -> Rules:
    config, count = program.config, len(task.commands)
    table = number * config.command_depth * COMMAND_BYTES
    yield 2 <= count <= config.command_depth, f"must have 2 to {config.command_depth} commands, not {count}"
    encoded = b"".join(command.encode() for command in task.commands)
    yield program.image[table : table + len(encoded)] == encoded, "its commands are not those in the image"
    kinds = [command.kind for command in task.commands]
    yield kinds[:1] == [Kind.BEGIN] and kinds.count(Kind.BEGIN) == 1, "must begin with its only BEGIN"
    yield kinds[-1:] == [Kind.END] and kinds.count(Kind.END) == 1, "must end with its only END"
    if kinds[:1] == [Kind.BEGIN]:
        begin = task.commands[0]
        yield begin.rows == count, f"BEGIN must state {count} commands, not {begin.rows}"
        yield (
            begin.epsilon == config.fingerprint,
            f"was made for another Config: fingerprint {begin.epsilon:08x}, not {config.fingerprint:08x}",
        )
    yield len(task.notes) in (0, count), f"must have a note per command, not {len(task.notes)} for {count}"
    yield task.input_bytes % 2 == task.output_bytes % 2 == 0, "its regions must be whole elements"
    for ports, size, what in ((task.inputs, task.input_bytes, "input"), (task.outputs, task.output_bytes, "output")):
        for port in ports:
            yield is_name(port.name), f"an {what} must have {NAME_RULE}, not {port.name!r}"
            for holds, text in _port_rules(port, config, size, what):
                yield holds, f"{what} '{port.name}' {text}"
    for layer in task.layers:
        for holds, text in _layer_rules(layer, config, count):
            yield holds, f"layer {layer.name!r} {text}"
    owned = [command for layer in task.layers for command in layer.commands]
    yield len(owned) == len(set(owned)), "a command must be of one layer"


def _port_rules(port: Port, config: Config, size: int, what: str) -> Rules:
    beats = port.offset % config.beat_bytes == 0
    yield port.offset >= 0 and port.elements > 0, f"is at byte {port.offset} with {port.elements} elements"
    yield port.end <= size, f"ends at byte {port.end} of a region of {size}"
    yield beats, f"must start at a multiple of {config.beat_bytes} bytes, not at {port.offset}"
    yield port.width in (8, ELEMENT_WIDTH), f"must have 8 or 16 bits, not {port.width}"
    yield not port.packed or (what == "input" and port.width == 8), "is packed, which only inputs of 8 bits are"
    if port.preprocessing is not None:
        yield what == "input", "has a preprocessing, which only inputs have"
        made = port.preprocessing.shape
        yield port.shape == made, f"must have the shape {list(made)} of its preprocessing, not {list(port.shape)}"
    shape, low, high = port.shape, 0, port.elements
    if what == "input":
        shape, low, high = (port.elements,), -1, int(np.prod(port.shape))
    yield port.index.shape == shape, f"must have an index of shape {shape}, not {port.index.shape}"
    inside = not port.index.size or low <= int(port.index.min()) <= int(port.index.max()) < high
    yield inside, f"must have an index of {low} to {high - 1}"


def _layer_rules(layer: Layer, config: Config, commands: int) -> Rules:
    rows, columns = layer.shape
    texts = layer.name, layer.kind, layer.where, layer.precision
    yield all(text.isprintable() for text in texts), f"must be called something printable, not {texts!r}"
    yield rows > 0 and columns > 0, f"must have rows and columns, not {rows} x {columns}"
    yield layer.width in (8, ELEMENT_WIDTH), f"must have 8 or 16 bits, not {layer.width}"
    yield 0 < layer.scale < inf, f"must have a positive scale, not {layer.scale}"
    yield -inf < layer.low <= layer.high < inf, f"must have a finite range, not {layer.low} to {layer.high}"
    yield layer.macs >= 0, f"must have no fewer than 0 multiply-accumulates, not {layer.macs}"
    positions = [*layer.commands, *(piece.command for piece in layer.pieces)]
    yield all(0 <= command < commands for command in positions), f"must have commands of 0 to {commands - 1}"
    for piece in layer.pieces:
        yield 0 <= piece.row < piece.row + piece.rows <= rows, f"has no rows {piece.row} to {piece.row + piece.rows}"
        chunk, ends = config.lanes << piece.packed, [position + count for _, count, position in piece.columns]
        last = piece.address + (piece.rows - 1) * piece.stride + -(-max(ends, default=0) // chunk)
        inside = min(piece.address, piece.stride) >= 0 and last <= config.scratchpad_chunks
        yield inside, f"has rows {piece.row} to {piece.row + piece.rows} outside of the scratchpad"
        runs = all(first >= 0 <= position and 0 < count <= columns - first for first, count, position in piece.columns)
        yield runs, f"has columns that are not among its {columns}"


@dataclass(frozen=True)
class _Place:
    """A tensor's rows in the scratchpad, in half chunks: the piece that a packed tensor is written in."""

    name: str
    first: int
    rows: int
    pitch: int
    pieces: int
    line: int = 0  # rows, if they come in lines
    outer: int = 0

    @property
    def lines(self) -> tuple[int, int]:
        """How many, and rows of each."""
        return (self.rows // self.line, self.line) if self.line else (1, self.rows)

    @property
    def last(self) -> int:
        lines, rows = self.lines
        return self.first + (lines - 1) * self.outer + (rows - 1) * self.pitch + self.pieces - 1

    def of(self, marks: Marks) -> Marks:
        """The tensor's [lines, rows, pieces] of a mark per half chunk."""
        steps = tuple(step * marks.itemsize for step in (self.outer, self.pitch, 1))
        here: Any = as_strided(marks[self.first :], (*self.lines, self.pieces), steps)
        return here  # type: ignore[no-any-return]

    def chunk(self, marks: Bools) -> int:
        """The first one with a mark."""
        line, row, piece = np.unravel_index(int(marks.argmax()), marks.shape)
        return int(self.first + line * self.outer + row * self.pitch + piece) // 2

    def overlaps(self, marks: Bools) -> bool:
        """Whether two rows have a piece in common."""
        clear = np.zeros_like(marks)
        self.of(clear)[:] = True
        return int(clear.sum()) < self.rows * self.pieces

    @property
    def whole(self) -> "_Place":
        """With the other halves of its chunks."""
        return replace(self, pieces=self.pieces + self.pieces % 2)


@dataclass
class _Walk:
    """What the commands so far have left behind."""

    program: Program
    task: Task
    written: Bools = field(init=False)  # half chunks
    gathered: Ints = field(init=False)  # of each statistics row: how many columns it is of
    maxima: Command | None = None  # whose output's rows have known maxima
    experts: int = 0
    tokens: int = 0
    table: Table | None = None  # the epilogue's
    queued: NDArray[np.int16] = field(init=False)  # half chunks: 1 + the expert whose tokens are gathered there
    # Experts since the ROUTE, by what they did.
    scattered: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.config = self.program.config
        self.written = np.zeros(2 * self.config.scratchpad_chunks, np.bool_)
        self.gathered = np.zeros(self.config.statistics_rows, np.int64)
        self.queued = np.zeros(len(self.written), np.int16)

    def problems(self) -> list[str]:
        """The first one: later commands, and later rules of that one, build on what holds."""
        for position, command in enumerate(self.task.commands):
            broken = next((text for holds, text in _RULES[command.kind](self, command) if not holds), None)
            if broken:
                note = f" ({self.task.notes[position]})" if self.task.notes else ""
                return [f"task '{self.task.name}': command {position}, {command.kind.name}{note}: {broken}"]
        return []

    def place(self, c: Command, name: str, rows: int, columns: int) -> _Place:
        packed = getattr(c, f"{name}_packed", 0)
        pieces = -(-columns // self.config.lanes) * (1 if packed else 2)
        address, stride = (2 * getattr(c, f"{name}_{part}") for part in ("address", "stride"))
        line = 0 if name == "b" else c.line
        return _Place(name, address, rows, stride, pieces, line, 2 * getattr(c, f"{name}_outer") if line else 0)

    def streamed(self, c: Command) -> Iterator[_Place]:
        """Of a the parts of rows whose pieces are one behind the other."""
        whole, pieces = self.place(c, "a", c.rows, c.depth), c.pieces(self.config.inputs, self.config.lanes)
        size = 1 if c.a_packed else 2  # half chunks
        for part in np.split(pieces, np.flatnonzero(np.diff(pieces) != 1) + 1):
            yield replace(whole, first=whole.first + size * int(part[0]), pieces=size * len(part))

    def inside(self, at: _Place) -> tuple[bool, str]:
        last, size = at.last // 2, self.config.scratchpad_chunks
        return last < size, f"{at.name} reaches chunk {last} of a scratchpad of {size}"

    def readable(self, at: _Place, expert: int | None = None) -> Rules:
        yield self.inside(at)
        here = at.of(self.written)
        if expert is not None:
            here = here | (at.of(self.queued) == expert + 1)
        if not here.all():
            yield False, f"{at.name} reads chunk {at.chunk(~here)} that nothing has written"

    def overwrite(self, at: _Place, *, expert: int | None = None) -> None:
        """Maxima are of what was there. An expert's tokens fill no more rows than it has."""
        if self.maxima is not None:
            marks = np.zeros_like(self.written)
            at.of(marks)[:] = True
            scores = self.place(self.maxima, "o", self.maxima.rows, self.maxima.columns)
            if scores.whole.of(marks).any():
                self.maxima = None
        if expert is None:
            at.of(self.written)[:] = True
        at.of(self.queued)[:] = 0 if expert is None else expert + 1

    def count(self, what: tuple[object, ...]) -> int:
        """Experts that have done it, this one included."""
        self.scattered[what] += 1
        return self.scattered[what]

    def statistics(self, first: int, rows: int) -> tuple[bool, str]:
        size = self.config.statistics_rows
        return first + rows <= size, f"statistics reach row {first + rows - 1} of {size}"


def _none(walk: _Walk, c: Command) -> Rules:
    yield from ()


def _transfer(w: _Walk, c: Command) -> Rules:
    config, size = w.config, c.rows * w.config.lanes * 2
    load = c.kind == Kind.LOAD
    limits = {Space.PROGRAM: len(w.program.image), Space.INPUT: w.task.input_bytes, Space.OUTPUT: w.task.output_bytes}
    allowed = (Space.PROGRAM, Space.INPUT) if load else (Space.OUTPUT,)
    end = c.dma_address + size
    yield c.rows > 0, "has no chunks"
    yield c.dma_space in allowed, f"must not address {c.dma_space.name}"
    yield c.dma_address % config.beat_bytes == 0, f"byte {c.dma_address} is not at a bus beat"
    yield c.dma_beats * config.beat_bytes == size, f"{c.dma_beats} beats are not {size} bytes"
    words = not load or c.dma_beats % config.word_beats == 0
    yield words, f"{c.dma_beats} beats are not whole words of {config.word_beats}"
    yield end <= limits[c.dma_space], f"ends at byte {end} of {limits[c.dma_space]} of {c.dma_space.name}"
    at = _Place("a", 2 * c.a_address, 1, 0, 2 * c.rows)
    yield w.inside(at)
    if load:
        w.overwrite(at)
    else:  # the padding of the last word may be anything
        padding = max(config.word_width // (ELEMENT_WIDTH * config.lanes) - 1, 0)
        yield from w.readable(replace(at, pieces=max(2, at.pieces - 2 * padding)))


def _route(w: _Walk, c: Command) -> Rules:
    config = w.config
    yield 1 <= c.rows <= config.max_rows, f"must have 1 to {config.max_rows} rows, not {c.rows}"
    yield 2 <= c.columns <= config.max_experts, f"must have 2 to {config.max_experts} experts, not {c.columns}"
    most = min(c.columns, config.max_top_k)
    yield 1 <= c.top_k <= most, f"top_k must be 1 to {most}, not {c.top_k}"
    yield c.exp_shift <= SCORE_FRACTION, f"exp_shift must be at most {SCORE_FRACTION}, not {c.exp_shift}"
    yield not c.a_packed, "must not read packed logits"
    yield from w.readable(w.place(c, "a", c.rows, c.columns))
    w.experts, w.tokens = c.columns, c.rows
    w.scattered.clear()
    w.queued[:] = 0


def _table(w: _Walk, c: Command) -> Rules:
    config, end = w.config, c.dma_address + TABLE_BYTES
    yield c.rows == ENTRIES, f"must have {ENTRIES} entries, not {c.rows}"
    yield c.dma_space == Space.PROGRAM, f"must address PROGRAM, not {c.dma_space.name}"
    yield c.dma_address % config.beat_bytes == 0, f"byte {c.dma_address} is not at a bus beat"
    yield c.dma_beats * config.beat_bytes == TABLE_BYTES, f"{c.dma_beats} beats are not {TABLE_BYTES} bytes"
    yield end <= len(w.program.image), f"ends at byte {end} of an image of {len(w.program.image)}"
    w.table = w.program.table(c)
    following = w.table.entries["base"] + w.table.entries["slope"]
    fits = ENTRY["base"].low <= int(following.min()) <= int(following.max()) <= ENTRY["base"].high
    yield fits, f"has an entry that leads beyond the {ENTRY['base'].width} bits of a value"


def _activation(w: _Walk, c: Command) -> Rules:
    """A result has no more bits than the word: what the largest words find in the table makes them no larger."""
    if c.post not in WITH_TABLE:
        return
    yield w.table is not None, "uses a table that nothing has loaded"
    assert w.table is not None
    held = int(w.table(np.array([LAST]))[0])
    yield c.post == Post.ALONE or held >= 0, f"adds {-held}, its table's last value, to the largest words"


def _matmul(w: _Walk, c: Command) -> Rules:
    config = w.config
    for name, most in (("rows", config.max_rows), ("depth", FIELDS["depth"].high), ("columns", FIELDS["columns"].high)):
        value = getattr(c, name)
        yield 1 <= value <= most, f"must have 1 to {most} {name}, not {value}"
    yield not c.line or c.rows % c.line == 0, f"must have whole lines of {c.line} rows, not {c.rows}"
    for name, size, step in (("slices", c.depth, config.inputs), ("groups", c.columns, config.outputs)):
        most, count = FIELDS["a_stride"].high, -(-size // step)
        yield count <= most, f"must have at most {most} {name}, not {count}"
    yield not c.a_run or not (c.prologue or c.queue), "takes runs of slices of rows that it prepares or of a queue"
    yield from _queue(w, c)
    yield from _stationary(w, c)
    yield from _prologue(w, c)
    for at in w.streamed(c):
        yield from w.readable(at, c.expert if c.queue == Queue.SCATTER else None)
    yield from _output(w, c)
    yield from _accumulator(w, c)
    yield from _activation(w, c)


def _queue(w: _Walk, c: Command) -> Rules:
    if c.queue:
        yield w.experts > 0, "uses a queue before any ROUTE"
        yield c.expert < w.experts, f"uses the queue of expert {c.expert} of {w.experts}"
        yield c.rows == w.tokens, f"its queue can hold {w.tokens} tokens, it states {c.rows}"
    yield bool(c.queue) or c.row_scale != RowScale.GATE, "scales by a gate without a queue"
    yield bool(c.queue) or not c.expected, "expects tokens without a queue"
    yield not c.chains or c.queue == Queue.SCATTER, "chains a residual without scattering"
    yield not c.queue or not c.line, "takes rows of a queue in lines"


def _stationary(w: _Walk, c: Command) -> Rules:
    config = w.config
    most = bounds.digits(config, ELEMENT_WIDTH)
    yield 1 <= c.b_digits <= most, f"its stationary operand must have 1 to {most} digits, not {c.b_digits}"
    if c.b_source == Stationary.MEMORY:
        beats, end = (
            stream_beats(config, c.depth, c.columns, c.b_digits),
            c.dma_address + c.dma_beats * config.beat_bytes,
        )
        yield c.dma_space == Space.PROGRAM, f"weights must come from PROGRAM, not {c.dma_space.name}"
        yield c.dma_address % config.beat_bytes == 0, f"byte {c.dma_address} is not at a bus beat"
        yield c.dma_beats == beats, f"its weights take {beats} beats, not {c.dma_beats}"
        yield end <= len(w.program.image), f"weights end at byte {end} of an image of {len(w.program.image)}"
        return
    yield not c.expected, "expects weights that do not come from memory"
    if c.b_source == Stationary.COLUMNS:
        yield from w.readable(w.place(c, "b", c.columns, c.depth))
    else:
        yield from w.readable(w.place(c, "b", c.depth, c.columns))


def _prologue(w: _Walk, c: Command) -> Rules:
    if c.normalises:
        yield from _normalise(w, c)
    if c.prologue == Prologue.EXP:
        yield from _exponentials(w, c)
    yield c.row_scale != RowScale.SOFTMAX or c.prologue == Prologue.EXP, "divides by the sum of no exponentials"


def _normalise(w: _Walk, c: Command) -> Rules:
    rows = w.tokens if c.queue == Queue.GATHER else c.rows
    yield w.statistics(c.a_statistics, rows)
    known = bool((w.gathered[c.a_statistics : c.a_statistics + rows] == c.depth).all())
    yield known, f"normalises rows whose statistics from {c.a_statistics} are not known to be of {c.depth} columns"
    yield c.epsilon > 0, "normalises with no epsilon"
    yield c.depth <= NORMALISED_FEATURES, f"normalises {c.depth} features, at most {NORMALISED_FEATURES} can be"
    least = c.norm_shift + bounds.least_root_exponent(c.epsilon)
    yield least >= 0, f"norm_shift {c.norm_shift} would shift left by {-least} for a row of no variance"
    yield c.mean_shift <= MAX_SHIFT, f"mean_shift must be at most {MAX_SHIFT}, not {c.mean_shift}"
    mean = bounds.mean(c.depth, c.mean_multiplier, c.mean_shift)
    yield mean <= bounds.LARGEST_MEAN, f"a row's mean may reach {mean}, at most {bounds.LARGEST_MEAN} can be"


def _exponentials(w: _Walk, c: Command) -> Rules:
    yield not c.queue, "takes exponentials of the rows of a queue"
    yield not c.a_packed, "takes exponentials of packed scores"
    yield c.exp_shift <= SCORE_FRACTION, f"exp_shift must be at most {SCORE_FRACTION}, not {c.exp_shift}"
    scores = w.maxima
    there = scores and (scores.o_address, scores.o_stride, scores.line, scores.o_outer)
    gathered = there == (c.a_address, c.a_stride, c.line, c.a_outer)
    enough = scores is not None and c.rows <= scores.rows and c.depth <= scores.columns
    yield gathered and enough, f"takes exponentials of {c.rows} x {c.depth} scores whose rows' maxima are not known"
    total = bounds.row_sum(_largest(c), c.depth)
    yield total < 1 << SUM_WIDTH, f"its row sum needs {total.bit_length()} bits, not {SUM_WIDTH}"


def _output(w: _Walk, c: Command) -> Rules:
    yield not (c.o_packed and c.o_wide), "packs an output of 16 bits"
    yield not (c.o_packed and c.chains), "chains a residual in a packed output"
    yield c.residual != Residual.MULTIPLY or not c.row_scale, "multiplies by a tensor and by a row scale"
    out, others = w.place(c, "o", c.rows, c.columns), list(_operands(w, c))
    if c.residual not in (Residual.NONE, Residual.CHAIN_ZERO):
        added = w.place(c, "r", c.rows, c.columns)
        yield from w.readable(added)
        if not _in_place(c):
            others.append(added)
    yield w.inside(out)
    lines = f", {c.o_outer} from line to line" if c.line else ""
    yield not out.overlaps(w.written), f"its output's rows overlap: stride {c.o_stride}{lines}"
    ours = np.zeros_like(w.written)
    out.whole.of(ours)[:] = True
    for other in others:
        both = other.of(ours)
        if both.any():
            yield False, f"writes chunk {other.chunk(both)} that it reads as {other.name}"
    if c.queue == Queue.SCATTER:
        yield from _scatter(w, c, out)
    else:
        w.overwrite(out, expert=c.expert if c.queue else None)
    yield from _row_results(w, c, out)


def _scatter(w: _Walk, c: Command, out: _Place) -> Rules:
    """A token's first expert is its lowest: whoever comes later finds what that one wrote."""
    done = w.scattered["tokens", out]
    yield c.expert == done, f"scatters the tokens of expert {c.expert} where those of expert {done} are to come next"
    if w.count(("tokens", out)) == w.experts:  # every token has one
        w.overwrite(out)


def _operands(w: _Walk, c: Command) -> Iterator[_Place]:
    yield from w.streamed(c)
    if c.b_source == Stationary.COLUMNS:
        yield w.place(c, "b", c.columns, c.depth)
    elif c.b_source == Stationary.ROWS:
        yield w.place(c, "b", c.depth, c.columns)


def _row_results(w: _Walk, c: Command, out: _Place) -> Rules:
    """What is gathered of the output's rows."""
    if c.statistics:
        yield c.queue != Queue.GATHER, "gathers statistics of the rows of a queue"
        yield c.columns <= NORMALISED_FEATURES, f"gathers {c.columns} columns, at most {NORMALISED_FEATURES} can be"
        yield w.statistics(c.o_statistics, c.rows)
        whole = c.queue != Queue.SCATTER or w.count(("statistics", c.o_statistics, out)) == w.experts
        w.gathered[c.o_statistics : c.o_statistics + c.rows] = c.columns if whole else 0
        apart = max(c.a_statistics, c.o_statistics) - min(c.a_statistics, c.o_statistics) >= c.rows
        yield apart or not c.normalises, "gathers statistics over those it normalises by"
    if c.row_maximum:
        yield not c.queue, "gathers maxima of the rows of a queue"
        yield not c.o_packed, "gathers maxima of a packed output"
        w.maxima = c


def _in_place(c: Command) -> bool:
    """Each element is read, once, some cycles before its sum takes its place."""
    whole = c.residual in (Residual.ADD, Residual.MULTIPLY, Residual.MAXIMUM) and not c.o_packed
    return whole and (c.r_address, c.r_stride, c.r_outer) == (c.o_address, c.o_stride, c.o_outer)


def _largest(c: Command) -> int:
    """Magnitude that the streamed operand cannot exceed."""
    width = 16 if c.a_wide else 8
    return bounds.exponentials(width) if c.prologue == Prologue.EXP else bounds.streamed(width)


def _accumulator(w: _Walk, c: Command) -> Rules:
    if c.b_source == Stationary.MEMORY:
        weights = w.program.weights(c)
        shift, most = int(weights.shift.max()), Bits(SHIFT_WIDTH).high
        yield shift <= most, f"a channel's shift must be at most {most}, not {shift}"
        sums = bounds.sums(_largest(c), weights.matrix, weights.bias)
        bound, where = int(sums.max()), f"channel {int(sums.argmax())}"
    else:
        width = bounds.stationary_width(w.config, c.b_digits)
        bound, where = bounds.sums_on_chip(_largest(c), c.depth, width), "every channel"
    bits = bounds.signed_bits(bound)
    yield (
        bits <= w.config.accumulator_width,
        f"{where} may need {bits} accumulator bits, not {w.config.accumulator_width}",
    )


_RULES: dict[Kind, Callable[[_Walk, Command], Rules]] = {
    Kind.BEGIN: _none,
    Kind.END: _none,
    Kind.LOAD: _transfer,
    Kind.STORE: _transfer,
    Kind.MATMUL: _matmul,
    Kind.ROUTE: _route,
    Kind.TABLE: _table,
}
