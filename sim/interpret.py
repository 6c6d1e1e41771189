"""The reference interpreter: what every command means. All other engines are right when they agree with it.

First the pieces of the datapath, pure functions of a command's fields and arrays, in the order in which a MATMUL
meets them; then ROUTE; then what a machine remembers, and how commands change it.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import (
    Command,
    Kind,
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
    operand_limits,
    reciprocal,
    rsqrt,
    saturate,
    shift_round,
)
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.tables import Table, activate

Bools = NDArray[np.bool_]
Elements = NDArray[np.int16] | NDArray[np.int8]
Observer = Callable[[int, Command, "State"], None]


# --- The streamed operand ---


class Normalisation(NamedTuple):
    """What each row is normalised by: (element - mean) * scale >> shift."""

    mean: Ints  # MEAN_GUARD fractional bits
    scale: Ints
    shift: Ints


def normalisation(c: Command, total: Ints, squares: Ints) -> Normalisation:
    """(x - mean) / sqrt(variance + eps) from each row's exact integer sum and sum of squares; RMS takes 0 for a sum."""
    total = np.zeros_like(total) if c.prologue == Prologue.RMS else total
    mantissa, exponent = rsqrt(c.depth * squares - total * total + c.epsilon)
    return Normalisation(
        shift_round(total * c.mean_multiplier, c.mean_shift),
        shift_round(mantissa * c.norm_scale, 16),
        np.clip(c.norm_shift + exponent, 0, MAX_SHIFT),
    )


def normalise(a: Ints, by: Normalisation) -> Ints:
    mean, scale, shift = (x[:, None] for x in by)
    return shift_round(((a << MEAN_GUARD) - mean) * scale, shift)


def prologue(
    c: Command, a: Ints, by: Normalisation | None = None, maximum: Ints | None = None
) -> tuple[Ints, Bools]:  # fmt: skip
    """The streamed operand [rows, depth] of stored elements, and which of them saturated.

    NORMALISE and RMS need `by`, EXP each row's `maximum`.
    """
    width = 16 if c.a_wide else 8
    if c.normalises:
        assert by is not None
        a = normalise(a, by)
    elif c.prologue == Prologue.EXP:
        assert maximum is not None
        a = exp2_negative((maximum[:, None] - a) << c.exp_shift, width)
    operand = np.clip(a, *operand_limits(width))
    return operand, operand != a


# --- The array ---


def stationary(config: Config, c: Command, rows: Ints) -> Ints:
    """The stationary operand [depth, columns] of a tensor's rows, limited to what its digits hold."""
    limited = np.clip(rows, *operand_limits(bounds.stationary_width(config, c.b_digits)))
    return limited.T if c.b_source == Stationary.COLUMNS else limited


def multiply(config: Config, c: Command, a: Ints, b: Ints) -> Ints:
    """Exact: the float type holds every partial sum; the compiler has bounded them by the accumulator."""
    bits = (16 if c.a_wide else 8) + config.weight_width * c.b_digits
    float_type = np.float32 if c.depth << (bits - 2) <= 1 << 24 else np.float64
    product: Ints = (a.astype(float_type) @ b.astype(float_type)).astype(np.int64)
    return product


# --- The epilogue ---


class Channels(NamedTuple):
    """Parameters of each channel, or the command's for all."""

    bias: Ints  # at the accumulator's scale
    multiplier: Ints
    shift: Ints


class Factor(NamedTuple):
    """What a row is multiplied by: mantissa / ROW_ONE / 2**exponent."""

    mantissa: Ints
    exponent: Ints


def channels(program: Program, c: Command) -> Channels:
    if c.b_source != Stationary.MEMORY:
        return Channels(*(np.array(value, np.int64) for value in (0, c.multiplier, c.shift)))
    weights = program.weights(c)
    return Channels(weights.bias, weights.multiplier, weights.shift)


def row_factor(c: Command, row_sum: Ints, score: Ints | None = None) -> Factor:
    """SOFTMAX divides by the row's sum of exponentials, GATE multiplies by the token's score."""
    if c.row_scale == RowScale.SOFTMAX:
        return Factor(*reciprocal(row_sum))
    if c.row_scale == RowScale.GATE:
        assert score is not None
        return Factor(score, np.zeros_like(score))
    return Factor(np.full_like(row_sum, ROW_ONE), np.zeros_like(row_sum))


def residual(c: Command, added: Ints, before: Ints, first: Bools | None = None) -> Ints:
    """What meets a result: `added` is the tensor at r_address, `before` the output as it was.

    A chain begins on a token's `first` expert and goes on upon what the ones before have left.
    """
    if not c.chains:
        return added if c.residual else np.zeros_like(added)
    assert first is not None
    return np.where(first[:, None], added if c.residual == Residual.CHAIN else 0, before)


def epilogue(
    c: Command, total: Ints, by: Channels, row: Factor, second: Ints | int = 0, table: Table | None = None
) -> tuple[Ints, Ints]:  # fmt: skip
    """Results [rows, columns] of the accumulators' totals, and how often each saturated on its way: 0, 1 or 2.

    `second` is each result's residual, its factor, or what it must not be less than.
    """
    shift = np.minimum(by.shift + row.exponent[:, None], MAX_SHIFT)
    full = shift_round((total + by.bias) * by.multiplier, shift)
    word = saturate(full, EPILOGUE_WIDTH)
    factor = second if c.residual == Residual.MULTIPLY else row.mantissa[:, None]
    y = shift_round(activate(c.post, word, table) * factor, 16 + c.post_shift)
    if c.residual == Residual.MAXIMUM:
        y = np.maximum(y, second)
    elif c.residual != Residual.MULTIPLY:
        y = y + second
    out = saturate(y, 16 if c.o_wide else 8)
    return out, (word != full).astype(np.int64) + (out != y)


# --- ROUTE ---


@dataclass
class Entry:
    """One expert's queue: tokens in ascending order, their scores, and whether no earlier expert has them."""

    token: Ints
    score: Ints
    first: Bools
    push: Ints  # when it came: the machine sends each token in turn to its experts, the highest logit first


def route(c: Command, logits: Ints) -> list[Entry]:
    """Queues of logits [tokens, experts]. Of equal ones the lower expert wins; the lowest chosen is a token's first."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : c.top_k]
    top = np.take_along_axis(logits, chosen[:, :1], axis=1)
    exp = exp2_negative((top - logits) << c.exp_shift, 16)
    push = np.full(logits.shape, -1)
    np.put_along_axis(push, chosen, np.arange(chosen.size).reshape(chosen.shape), axis=1)
    mantissa, exponent = reciprocal(np.where((push >= 0) | bool(c.score_all), exp, 0).sum(axis=1))
    score = shift_round(exp * mantissa[:, None], exponent[:, None])
    first = chosen.min(axis=1)
    tokens = [np.flatnonzero(sent >= 0) for sent in push.T]
    return [Entry(t, score[t, expert], first[t] == expert, push[t, expert]) for expert, t in enumerate(tokens)]


# --- The machine ---


@dataclass
class State:
    """All that a machine remembers between commands."""

    config: Config
    memory: dict[Space, NDArray[np.int16]]  # 16-bit elements
    scratchpad: NDArray[np.int16] = field(init=False)  # [chunks, lanes]
    total: Ints = field(init=False)  # row statistics
    squares: Ints = field(init=False)
    maximum: Ints = field(init=False)  # per row of the last command that gathered it
    queues: Sequence[Entry] = ()
    activation: Table | None = None  # the epilogue's
    saturations: int = 0

    def __post_init__(self) -> None:
        c = self.config
        self.scratchpad = np.zeros((c.scratchpad_chunks, c.lanes), np.int16)
        self.total, self.squares = np.zeros((2, c.statistics_rows), np.int64)
        self.maximum = np.zeros(c.max_rows, np.int64)

    def pieces(self, packed: int) -> Elements:
        """View of the scratchpad by `lanes` elements: a chunk, or half a one if packed."""
        lanes = self.config.lanes
        return self.scratchpad.view(np.int8).reshape(-1, lanes) if packed else self.scratchpad

    def where(self, places: Ints, columns: int, packed: int) -> Ints:
        """[rows, pieces] of a tensor whose rows begin at chunks `places`."""
        return (places << packed)[:, None] + np.arange(-(-columns // self.config.lanes))

    def read(self, places: Ints, columns: int, packed: int = 0) -> Ints:
        """[rows, columns] of a tensor whose rows begin at chunks `places`."""
        return self.gathered(self.where(places, columns, packed), columns, packed)

    def gathered(self, where: Ints, columns: int, packed: int) -> Ints:
        """[rows, columns] of the pieces `where`."""
        return self.pieces(packed)[where].reshape(len(where), -1)[:, :columns].astype(np.int64)

    def write(self, places: Ints, value: Ints, packed: int = 0) -> None:
        """Elements of the last piece beyond the tensor's columns become zero."""
        where = self.where(places, value.shape[1], packed)
        padded = np.pad(value, ((0, 0), (0, where.shape[1] * self.config.lanes - value.shape[1])))
        self.pieces(packed)[where] = padded.reshape(*where.shape, -1)


def _streamed(s: State, c: Command, rows: Ints) -> Ints:
    places = c.places("a", rows) << c.a_packed
    a = s.gathered(places[:, None] + c.pieces(s.config.inputs, s.config.lanes), c.depth, c.a_packed)
    by = maximum = None
    if c.normalises:
        by = normalisation(c, s.total[c.a_statistics + rows], s.squares[c.a_statistics + rows])
    elif c.prologue == Prologue.EXP:
        maximum = s.maximum[: len(rows)]
    operand, saturated = prologue(c, a, by, maximum)
    s.saturations += int(np.count_nonzero(saturated))
    return operand


def _stationary(s: State, program: Program, c: Command) -> Ints:
    if c.b_source == Stationary.MEMORY:
        return program.weights(c).matrix
    rows, along = (c.columns, c.depth) if c.b_source == Stationary.COLUMNS else (c.depth, c.columns)
    return stationary(s.config, c, s.read(c.places("b", np.arange(rows)), along))


def _added(s: State, c: Command, rows: Ints, entry: Entry | None) -> Ints | int:
    if not c.residual:
        return 0
    before = s.read(c.places("o", rows), c.columns) if entry else np.zeros((len(rows), c.columns), np.int64)
    # Nothing but a residual that is added says where one lies: verify admits any r of CHAIN_ZERO.
    added = before if c.residual == Residual.CHAIN_ZERO else s.read(c.places("r", rows), c.columns)
    return residual(c, added, before, entry.first if entry else None)


def _matmul(s: State, program: Program, c: Command) -> None:
    entry = s.queues[c.expert] if c.queue else None
    count = np.arange(c.rows if entry is None else len(entry.token))
    if not len(count):
        return
    a = _streamed(s, c, entry.token if entry and c.queue == Queue.GATHER else count)
    rows = entry.token if entry and c.queue == Queue.SCATTER else count
    total = multiply(s.config, c, a, _stationary(s, program, c))
    factor = row_factor(c, a.sum(axis=1), entry.score if entry else None)
    y, saturated = epilogue(c, total, channels(program, c), factor, _added(s, c, rows, entry), s.activation)
    s.saturations += int(saturated.sum())
    s.write(c.places("o", rows), y, c.o_packed)
    if c.statistics:
        s.total[c.o_statistics + rows] = y.sum(axis=1)
        s.squares[c.o_statistics + rows] = (y * y).sum(axis=1)
    if c.row_maximum:
        s.maximum[count] = y.max(axis=1)


def _route(s: State, program: Program, c: Command) -> None:
    s.queues = route(c, s.read(c.places("a", np.arange(c.rows)), c.columns))


def _table(s: State, program: Program, c: Command) -> None:
    s.activation = program.table(c)


def _load(s: State, program: Program, c: Command) -> None:
    chunks, memory = _transferred(s, c)
    chunks[:] = memory


def _store(s: State, program: Program, c: Command) -> None:
    chunks, memory = _transferred(s, c)
    memory[:] = chunks


def _transferred(s: State, c: Command) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Views of the scratchpad and of memory."""
    count, first, at = c.rows * s.config.lanes, c.dma_address // 2, c.a_address * s.config.lanes
    return s.scratchpad.reshape(-1)[at : at + count], s.memory[c.dma_space][first : first + count]


def _nothing(s: State, program: Program, c: Command) -> None:
    pass


COMMANDS: dict[Kind, Callable[[State, Program, Command], None]] = {
    Kind.BEGIN: _nothing,
    Kind.END: _nothing,
    Kind.LOAD: _load,
    Kind.STORE: _store,
    Kind.MATMUL: _matmul,
    Kind.ROUTE: _route,
    Kind.TABLE: _table,
}


def execute(
    program: Program, task: str | None, inputs: NDArray[np.int16], observe: Observer | None = None
) -> tuple[NDArray[np.int16], int]:
    """Run one frame: the input region's elements to the output region's and the number of saturations.

    `observe(position, command, state)` is called after each command.
    """
    chosen = program.task(task)
    output = np.zeros(chosen.output_bytes * 8 // ELEMENT_WIDTH, np.int16)
    image = np.frombuffer(program.image, "<i2")
    state = State(program.config, {Space.PROGRAM: image, Space.INPUT: inputs, Space.OUTPUT: output})
    with _one_thread():
        _run(state, program, chosen, observe)
    return output, state.saturations


def _one_thread() -> AbstractContextManager[object]:
    """Of NumPy's: the products are small, and many threads wait for each other. The driver's wheel goes without."""
    blas = _blas()
    return blas.limit(limits=1) if blas else nullcontext()


@functools.cache
def _blas() -> Any:
    """NumPy's threads; nothing where threadpoolctl is missing."""
    try:
        from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - not everywhere
    except ModuleNotFoundError:
        return None
    return ThreadpoolController()


def _run(state: State, program: Program, task: Task, observe: Observer | None) -> None:
    for position, command in enumerate(task.commands):
        COMMANDS[command.kind](state, program, command)
        if observe:
            observe(position, command, state)
