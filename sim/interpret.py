"""The reference interpreter: what every command means. All other engines are right when they agree with it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import (
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
from patchloom.compiler.machine.fixed import (
    EPILOGUE_WIDTH,
    MAX_SHIFT,
    MEAN_GUARD,
    ROW_ONE,
    Ints,
    exp2_negative,
    gelu,
    operand_limits,
    reciprocal,
    rsqrt,
    shift_round,
)
from patchloom.compiler.machine.program import Program

Elements = NDArray[np.int16] | NDArray[np.int8]
Observer = Callable[[int, Command, "State"], None]


@dataclass
class Entry:
    """One expert's queue: tokens in ascending order, their scores, and whether no earlier expert has them."""

    token: Ints
    score: Ints
    first: NDArray[np.bool_]


@dataclass
class State:
    """All that a machine remembers between commands."""

    config: Config
    memory: dict[Space, NDArray[np.int16]]  # 16-bit elements
    scratchpad: NDArray[np.int16] = field(init=False)  # [chunks, lanes]
    total: Ints = field(init=False)  # row statistics
    squares: Ints = field(init=False)
    maximum: Ints = field(init=False)  # per row of the last command that gathered it
    queues: list[Entry] = field(init=False)
    saturations: int = 0

    def __post_init__(self) -> None:
        c = self.config
        self.scratchpad = np.zeros((c.scratchpad_chunks, c.lanes), np.int16)
        self.total, self.squares = np.zeros((2, c.statistics_rows), np.int64)
        self.maximum = np.zeros(c.max_rows, np.int64)
        self.queues = []

    def table(self, address: int, stride: int, rows: Ints, columns: int, packed: int) -> Elements:
        """View of a tensor up to the last of the ascending `rows`, and of whole pieces.

        A piece is `lanes` elements: a chunk, or half a one if packed.
        """
        dtype, piece = np.dtype(np.int8 if packed else np.int16), self.config.lanes << (not packed)  # bytes
        shape = int(rows[-1]) + 1, -(-columns // self.config.lanes) * self.config.lanes
        offset, pitch = ((x << packed) * piece for x in (address, stride))
        return np.ndarray(shape, dtype, self.scratchpad.data, offset, (pitch, dtype.itemsize))

    def read(self, address: int, stride: int, rows: Ints, columns: int, packed: int = 0) -> Ints:
        """[len(rows), columns] of a tensor."""
        return self.table(address, stride, rows, columns, packed)[rows, :columns].astype(np.int64)

    def write(self, address: int, stride: int, rows: Ints, value: Ints, packed: int = 0) -> None:
        """Elements of the last piece beyond the tensor's columns become zero."""
        columns = value.shape[1]
        table = self.table(address, stride, rows, columns, packed)
        table[rows, :columns] = value
        table[rows, columns:] = 0

    def clip(self, value: Ints, low: int, high: int) -> Ints:
        clipped = np.clip(value, low, high)
        self.saturations += int(np.count_nonzero(clipped != value))
        return clipped


def _normalise(s: State, c: Command, a: Ints, rows: Ints) -> Ints:
    """(x - mean) / sqrt(variance + eps) from the exact integer sum and sum of squares."""
    total, squares = s.total[c.a_statistics + rows], s.squares[c.a_statistics + rows]
    mean = shift_round(total * c.mean_multiplier, c.mean_shift)
    mantissa, exponent = rsqrt(c.depth * squares - total * total + c.epsilon)
    scale = shift_round(mantissa * c.norm_scale, 16)
    shift = np.clip(c.norm_shift + exponent, 0, MAX_SHIFT)
    return shift_round(((a << MEAN_GUARD) - mean[:, None]) * scale[:, None], shift[:, None])


def _stream(s: State, c: Command, rows: Ints) -> tuple[Ints, Ints]:
    """The streamed operand [rows, depth] behind the prologue, and its row sums."""
    width = 16 if c.a_wide else 8
    a = s.read(c.a_address, c.a_stride, rows, c.depth, c.a_packed)
    if c.prologue == Prologue.NORMALISE:
        a = _normalise(s, c, a, rows)
    elif c.prologue == Prologue.EXP:
        a = exp2_negative((s.maximum[np.arange(len(rows)), None] - a) << c.exp_shift, width)
    a = s.clip(a, *operand_limits(width))
    return a, a.sum(axis=1)


def _multiply(s: State, c: Command, a: Ints, b: Ints) -> Ints:
    """Exact: the float type holds every partial sum; the compiler has bounded them by the accumulator."""
    bits = (16 if c.a_wide else 8) + s.config.weight_width * c.b_digits
    float_type = np.float32 if c.depth << (bits - 2) <= 1 << 24 else np.float64
    product: Ints = (a.astype(float_type) @ b.astype(float_type)).astype(np.int64)
    return product


def _stationary(s: State, c: Command) -> Ints:
    """The stationary operand [depth, columns] from the scratchpad, limited to what its digits hold."""
    low, high = operand_limits(min(ELEMENT_WIDTH, c.b_digits * s.config.weight_width))
    if c.b_source == Stationary.COLUMNS:
        return np.clip(s.read(c.b_address, c.b_stride, np.arange(c.columns), c.depth), low, high).T
    return np.clip(s.read(c.b_address, c.b_stride, np.arange(c.depth), c.columns), low, high)


def _matmul(s: State, program: Program, c: Command) -> None:
    entry = s.queues[c.expert] if c.queue else None
    count = np.arange(c.rows if entry is None else len(entry.token))
    if not len(count):
        return
    a, row_sum = _stream(s, c, entry.token if entry and c.queue == Queue.GATHER else count)
    rows = entry.token if entry and c.queue == Queue.SCATTER else count

    bias, multiplier, shift = (np.array(value, np.int64) for value in (0, c.multiplier, c.shift))
    if c.b_source == Stationary.MEMORY:
        w = program.weights(c)
        total, bias, multiplier, shift = _multiply(s, c, a, w.matrix), w.bias, w.multiplier, w.shift
    else:
        total = _multiply(s, c, a, _stationary(s, c))

    factor, extra = np.full(len(count), ROW_ONE, np.int64), np.zeros(len(count), np.int64)
    if c.row_scale == RowScale.SOFTMAX:
        factor, extra = reciprocal(row_sum)
    elif c.row_scale == RowScale.GATE:
        assert entry is not None
        factor = entry.score
    limit = 1 << (EPILOGUE_WIDTH - 1)
    y = s.clip(
        shift_round((total + bias) * multiplier, np.minimum(shift + extra[:, None], MAX_SHIFT)), -limit, limit - 1
    )
    if c.post == Post.GELU:
        y = gelu(y)
    elif c.post == Post.RELU:
        y = np.maximum(y, 0)
    y = shift_round(y * factor[:, None], 16 + c.post_shift)
    if c.residual:
        before = s.read(c.r_address, c.r_stride, rows, c.columns)
        if c.residual != Residual.ADD:
            assert entry is not None
            before = before if c.residual == Residual.CHAIN else before * 0
            before = np.where(entry.first[:, None], before, s.read(c.o_address, c.o_stride, rows, c.columns))
        y = y + before
    limit = 1 << (15 if c.o_wide else 7)
    y = s.clip(y, -limit, limit - 1)
    s.write(c.o_address, c.o_stride, rows, y, c.o_packed)
    if c.statistics:
        s.total[c.o_statistics + rows] = y.sum(axis=1)
        s.squares[c.o_statistics + rows] = (y * y).sum(axis=1)
    if c.row_maximum:
        s.maximum[count] = y.max(axis=1)


def _route(s: State, c: Command) -> None:
    """Ties go to the lower expert; a token's first expert is its lowest-numbered one."""
    logits = s.read(c.a_address, c.a_stride, np.arange(c.rows), c.columns)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : c.top_k]
    top = np.take_along_axis(logits, chosen[:, :1], axis=1)
    exp = exp2_negative((top - logits) << c.exp_shift, 16)
    selected = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(selected, chosen, True, axis=1)
    mantissa, exponent = reciprocal(np.where(selected | bool(c.score_all), exp, 0).sum(axis=1))
    score = shift_round(exp * mantissa[:, None], exponent[:, None])
    first = chosen.min(axis=1)
    s.queues = []
    for expert in range(c.columns):
        token = np.flatnonzero(selected[:, expert])
        s.queues.append(Entry(token, score[token, expert], first[token] == expert))


def _transfer(s: State, c: Command) -> None:
    flat = s.scratchpad.reshape(-1)
    count, first, at = c.rows * s.config.lanes, c.dma_address // 2, c.a_address * s.config.lanes
    memory = s.memory[c.dma_space]
    if c.kind == Kind.LOAD:
        flat[at : at + count] = memory[first : first + count]
    else:
        memory[first : first + count] = flat[at : at + count]


def execute(
    program: Program, task: str | None, inputs: NDArray[np.int16], observe: Observer | None = None
) -> tuple[NDArray[np.int16], int]:
    """Run one frame: the input region's elements to the output region's and the number of saturations.

    `observe(position, command, state)` is called after each command.
    """
    chosen = program.task(task)
    image = np.frombuffer(program.image, "<i2")
    state = State(
        program.config,
        {
            Space.PROGRAM: image,
            Space.INPUT: inputs,
            Space.OUTPUT: np.zeros(chosen.output_bytes * 8 // ELEMENT_WIDTH, np.int16),
        },
    )
    for position, command in enumerate(chosen.commands):
        if command.kind in (Kind.LOAD, Kind.STORE):
            _transfer(state, command)
        elif command.kind == Kind.MATMUL:
            _matmul(state, program, command)
        elif command.kind == Kind.ROUTE:
            _route(state, command)
        if observe:
            observe(position, command, state)
    return state.memory[Space.OUTPUT], state.saturations
