"""The command set: commands on tensors, one encoding of 512 bits, read alike by every engine.

A tensor in the scratchpad is `address` (its first chunk) and `stride` (chunks from row to row); a row's
elements fill consecutive chunks of `Config.lanes`, 16 bits each; a packed tensor has two elements of 8 bits in
each of these, the first in the low bits. The rows of a MATMUL may come in lines of `line` rows each: `outer` are the
chunks from line to line, `stride` those from row to row of one. So a rectangle of a map is one tensor: a window, every
second token of every second line, a map within the zeros around it; with a stride of 0 a row comes again and again.
A row of a that is multiplied may in turn be runs of `a_run` slices, of `Config.inputs` elements each: `a_jump` are the
chunks from run to run, `a_step` those from slice to slice of one: so the patch under a kernel is one row.
What each command does, exactly, is `sim/interpret.py`.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np

from patchloom.compiler.machine.encoding import Bits, joined, parted
from patchloom.compiler.machine.fixed import SHIFT_WIDTH, Ints

COMMAND_BITS = 512
COMMAND_BYTES = COMMAND_BITS // 8


class Kind(IntEnum):
    END = 0  # raise done
    BEGIN = 1  # first of a task: rows = number of commands, epsilon = Config fingerprint
    LOAD = 2  # rows chunks from memory to the scratchpad
    STORE = 3  # rows chunks from the scratchpad to memory
    MATMUL = 4  # out[r] = epilogue(prologue(a[r]) @ b)
    ROUTE = 5  # top-k of each row of logits into expert queues
    TABLE = 6  # rows entries from memory to the epilogue's table


class Space(IntEnum):
    """Base address that a DMA address is relative to."""

    PROGRAM = 0
    INPUT = 1
    OUTPUT = 2


class Prologue(IntEnum):
    NONE = 0
    NORMALISE = 1  # subtract the row's mean, divide by its standard deviation
    EXP = 2  # exp2(score - row maximum), row sum accumulated
    RMS = 3  # divide by the row's root mean square


class Stationary(IntEnum):
    """Where the stationary operand comes from."""

    MEMORY = 0  # weight tiles, streamed by DMA
    COLUMNS = 1  # scratchpad, row j of the tensor is column j of the tile (Q K^T)
    ROWS = 2  # scratchpad, row j of the tensor is row j of the tile (A V)


class Queue(IntEnum):
    NONE = 0
    GATHER = 1  # rows of a are the tokens of the expert's queue
    SCATTER = 2  # rows of the output are


class RowScale(IntEnum):
    NONE = 0
    SOFTMAX = 1  # one over the row sum
    GATE = 2  # the token's score for the expert


class Residual(IntEnum):
    """What meets a result on its way out: a second tensor, row by row."""

    NONE = 0
    ADD = 1  # the tensor at r_address is added
    CHAIN = 2  # it is on the token's first expert, then the output itself
    CHAIN_ZERO = 3  # nothing on the token's first expert, then the output itself
    MULTIPLY = 4  # the tensor at r_address is the factor, where a row scale would be
    MAXIMUM = 5  # the larger of the two


class Post(IntEnum):
    """What becomes of a requantised sum; see `tables.activate`."""

    NONE = 0
    RELU = 1
    EVEN = 2  # ReLU less the table's value of the magnitude
    SIDED = 3  # ReLU less the table's value
    ALONE = 4  # zero less the table's value


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command; fields that a kind does not use are zero.

    Their order is the encoding, least significant first.
    """

    kind: Annotated[Kind, Bits(4)]
    rows: Annotated[int, Bits(16)] = (
        0  # tokens (the queue's length when queue is set); chunks for LOAD and STORE, entries for TABLE
    )
    line: Annotated[int, Bits(9)] = 0  # rows of a line of a, r and o; 0: all are one line
    depth: Annotated[int, Bits(16)] = 0  # features of a that are multiplied
    columns: Annotated[int, Bits(16)] = 0  # output features; experts for ROUTE
    a_address: Annotated[int, Bits(20)] = 0
    a_stride: Annotated[int, Bits(12)] = 0
    a_outer: Annotated[int, Bits(14)] = 0
    a_run: Annotated[int, Bits(9)] = 0  # slices of a run; 0: all are one run, one behind the other
    a_step: Annotated[int, Bits(10)] = 0  # 0: one behind the other
    a_jump: Annotated[int, Bits(14)] = 0
    a_wide: Annotated[int, Bits(1)] = 0  # streamed operand of 16 bits, not 8
    a_packed: Annotated[int, Bits(1)] = 0  # stored with 8 bits
    b_source: Annotated[Stationary, Bits(2)] = Stationary.MEMORY
    b_address: Annotated[int, Bits(20)] = 0
    b_stride: Annotated[int, Bits(12)] = 0
    b_digits: Annotated[int, Bits(3)] = 0  # digits of Config.weight_width bits of the stationary operand
    dma_space: Annotated[Space, Bits(2)] = Space.PROGRAM
    dma_address: Annotated[int, Bits(32)] = 0  # bytes
    dma_beats: Annotated[int, Bits(26)] = 0
    queue: Annotated[Queue, Bits(2)] = Queue.NONE
    expert: Annotated[int, Bits(8)] = 0
    expected: Annotated[int, Bits(1)] = 0  # fetch an expert's weights before ROUTE has said that it has tokens
    prologue: Annotated[Prologue, Bits(2)] = Prologue.NONE
    exp_shift: Annotated[int, Bits(4)] = 0  # left shift of a score difference to SCORE_FRACTION
    mean_multiplier: Annotated[int, Bits(16)] = 0  # mean = sum * multiplier >> shift, MEAN_GUARD fractional bits
    mean_shift: Annotated[int, Bits(SHIFT_WIDTH)] = 0
    norm_scale: Annotated[int, Bits(17)] = 0  # features / 2**ceil(log2(features)), ROW_ONE = 1
    norm_shift: Annotated[int, Bits(7, signed=True)] = 0
    epsilon: Annotated[int, Bits(48)] = 0  # added to features**2 * variance
    a_statistics: Annotated[int, Bits(13)] = 0  # first row of a's statistics
    multiplier: Annotated[int, Bits(16)] = 0  # requantise of all channels, when b is not from memory
    shift: Annotated[int, Bits(SHIFT_WIDTH)] = 0
    post: Annotated[Post, Bits(3)] = Post.NONE
    row_scale: Annotated[RowScale, Bits(2)] = RowScale.NONE
    post_shift: Annotated[int, Bits(5)] = 0  # right shift to the output's scale
    residual: Annotated[Residual, Bits(3)] = Residual.NONE
    r_address: Annotated[int, Bits(20)] = 0
    r_stride: Annotated[int, Bits(12)] = 0
    r_outer: Annotated[int, Bits(14)] = 0
    o_address: Annotated[int, Bits(20)] = 0
    o_stride: Annotated[int, Bits(12)] = 0
    o_outer: Annotated[int, Bits(14)] = 0
    o_wide: Annotated[int, Bits(1)] = 0  # output of 16 bits, not 8
    o_packed: Annotated[int, Bits(1)] = 0  # stored with 8 bits
    statistics: Annotated[int, Bits(1)] = 0  # gather sum and sum of squares of the output's rows
    o_statistics: Annotated[int, Bits(13)] = 0
    row_maximum: Annotated[int, Bits(1)] = 0  # gather the maximum of the output's rows
    top_k: Annotated[int, Bits(4)] = 0
    score_all: Annotated[int, Bits(1)] = 0  # softmax over all experts, not over the selected ones

    @property
    def normalises(self) -> bool:
        """Whether rows are prepared by their statistics."""
        return self.prologue in (Prologue.NORMALISE, Prologue.RMS)

    @property
    def chains(self) -> bool:
        """Whether results of several experts come together in the output."""
        return self.residual in (Residual.CHAIN, Residual.CHAIN_ZERO)

    def places(self, operand: str, rows: Ints) -> Ints:
        """The first chunk of each row of operand "a", "b", "r" or "o"."""
        address, stride = (getattr(self, f"{operand}_{part}") for part in ("address", "stride"))
        if not self.line or operand == "b":
            return np.asarray(address + rows * stride)
        line, place = np.divmod(rows, self.line)
        return np.asarray(address + line * getattr(self, f"{operand}_outer") + place * stride)

    def pieces(self, inputs: int, lanes: int) -> Ints:
        """Where the pieces of a row of a lie, from its first one on: its chunks, or its half chunks if it is packed."""
        count = inputs // lanes  # of a slice
        number, behind = np.arange(-(-self.depth // inputs)), np.arange(count)
        if not self.a_run:
            starts = number * count
        else:
            run, place = np.divmod(number, self.a_run)
            starts = run * (self.a_jump << self.a_packed) + place * ((self.a_step << self.a_packed) or count)
        return np.asarray(starts[:, None] + behind).reshape(-1)[: -(-self.depth // lanes)]

    def encode(self) -> bytes:
        values = {name: int(getattr(self, name)) for name in FIELDS}
        for name, bits in FIELDS.items():
            if not bits.low <= values[name] <= bits.high:
                raise ValueError(f"{self.kind.name} {name} must lie in {bits.low} to {bits.high}, not {values[name]}")
        return joined(FIELDS, values).to_bytes(COMMAND_BYTES, "little")

    @staticmethod
    def decode(raw: bytes) -> "Command":
        """Inverse of `encode`; a field outside its enumeration raises `ValueError`."""
        values = parted(FIELDS, int.from_bytes(raw, "little"))
        return Command(**{name: _TYPES[name](value) for name, value in values.items()})


_HINTS = get_type_hints(Command, include_extras=True)
_TYPES: dict[str, Any] = {f.name: get_args(_HINTS[f.name])[0] for f in fields(Command)}
FIELDS: dict[str, Bits] = {f.name: get_args(_HINTS[f.name])[1] for f in fields(Command)}
assert sum(bits.width for bits in FIELDS.values()) <= COMMAND_BITS
