"""The command set: five commands on tensors, one encoding of 512 bits, read alike by every engine.

A tensor in the scratchpad is `address` (its first chunk) and `stride` (chunks from row to row); a row's
elements fill consecutive chunks of `Config.lanes`, 16 bits each; a packed tensor has two elements of 8 bits in
each of these, the first in the low bits. What each command does, exactly, is `sim/interpret.py`.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

from patchloom.compiler.machine.config import COMMAND_BITS

COMMAND_BYTES = COMMAND_BITS // 8


class Kind(IntEnum):
    END = 0  # raise done
    BEGIN = 1  # first of a task: rows = number of commands, epsilon = Config fingerprint
    LOAD = 2  # rows chunks from memory to the scratchpad
    STORE = 3  # rows chunks from the scratchpad to memory
    MATMUL = 4  # out[r] = epilogue(prologue(a[r]) @ b)
    ROUTE = 5  # top-k of each row of logits into expert queues


class Space(IntEnum):
    """Base address that a DMA address is relative to."""

    PROGRAM = 0
    INPUT = 1
    OUTPUT = 2


class Prologue(IntEnum):
    NONE = 0
    NORMALISE = 1  # subtract the row's mean, divide by its standard deviation
    EXP = 2  # exp2(score - row maximum), row sum accumulated


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
    NONE = 0
    ADD = 1  # the tensor at r_address
    CHAIN = 2  # r_address on the token's first expert, then the output itself
    CHAIN_ZERO = 3  # nothing on the token's first expert, then the output itself


class Post(IntEnum):
    NONE = 0
    RELU = 1
    GELU = 2


# name -> (bits, signed); the order is the encoding, least significant first.
FIELDS: dict[str, tuple[int, bool]] = {
    "kind": (4, False),
    "rows": (16, False),  # tokens (the queue's length when queue is set); chunks for LOAD and STORE
    "depth": (16, False),  # features of a that are multiplied
    "columns": (16, False),  # output features; experts for ROUTE
    "a_address": (24, False),
    "a_stride": (12, False),
    "a_wide": (1, False),  # streamed operand of 16 bits, not 8
    "a_packed": (1, False),  # stored with 8 bits
    "b_source": (2, False),
    "b_address": (24, False),
    "b_stride": (12, False),
    "b_digits": (3, False),  # digits of Config.weight_width bits of the stationary operand
    "dma_space": (2, False),
    "dma_address": (40, False),  # bytes
    "dma_beats": (28, False),
    "queue": (2, False),
    "expert": (8, False),
    "expected": (1, False),  # fetch an expert's weights before ROUTE has said that it has tokens
    "prologue": (2, False),
    "exp_shift": (4, False),  # left shift of a score difference to SCORE_FRACTION
    "mean_multiplier": (16, False),  # mean = sum * multiplier >> shift, MEAN_GUARD fractional bits
    "mean_shift": (6, False),
    "norm_scale": (17, False),  # features / 2**ceil(log2(features)), ROW_ONE = 1
    "norm_shift": (7, True),
    "epsilon": (48, False),  # added to features**2 * variance
    "a_statistics": (13, False),  # first row of a's statistics
    "multiplier": (16, False),  # requantise of all channels, when b is not from memory
    "shift": (6, False),
    "post": (2, False),
    "row_scale": (2, False),
    "post_shift": (5, False),  # right shift to the output's scale
    "residual": (2, False),
    "r_address": (24, False),
    "r_stride": (12, False),
    "o_address": (24, False),
    "o_stride": (12, False),
    "o_wide": (1, False),  # output of 16 bits, not 8
    "o_packed": (1, False),  # stored with 8 bits
    "statistics": (1, False),  # gather sum and sum of squares of the output's rows
    "o_statistics": (13, False),
    "row_maximum": (1, False),  # gather the maximum of the output's rows
    "top_k": (4, False),
    "score_all": (1, False),  # softmax over all experts, not over the selected ones
}
assert sum(bits for bits, _ in FIELDS.values()) <= COMMAND_BITS


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command; fields that a kind does not use are zero."""

    kind: Kind
    rows: int = 0
    depth: int = 0
    columns: int = 0
    a_address: int = 0
    a_stride: int = 0
    a_wide: int = 0
    a_packed: int = 0
    b_source: Stationary = Stationary.MEMORY
    b_address: int = 0
    b_stride: int = 0
    b_digits: int = 0
    dma_space: Space = Space.PROGRAM
    dma_address: int = 0
    dma_beats: int = 0
    queue: Queue = Queue.NONE
    expert: int = 0
    expected: int = 0
    prologue: Prologue = Prologue.NONE
    exp_shift: int = 0
    mean_multiplier: int = 0
    mean_shift: int = 0
    norm_scale: int = 0
    norm_shift: int = 0
    epsilon: int = 0
    a_statistics: int = 0
    multiplier: int = 0
    shift: int = 0
    post: Post = Post.NONE
    row_scale: RowScale = RowScale.NONE
    post_shift: int = 0
    residual: Residual = Residual.NONE
    r_address: int = 0
    r_stride: int = 0
    o_address: int = 0
    o_stride: int = 0
    o_wide: int = 0
    o_packed: int = 0
    statistics: int = 0
    o_statistics: int = 0
    row_maximum: int = 0
    top_k: int = 0
    score_all: int = 0

    def encode(self) -> bytes:
        word, position = 0, 0
        for name, (bits, signed) in FIELDS.items():
            value = int(getattr(self, name))
            low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
            if not low <= value <= high:
                raise ValueError(f"{self.kind.name} {name} must lie in {low} to {high}, not {value}")
            word |= (value & ((1 << bits) - 1)) << position
            position += bits
        return word.to_bytes(COMMAND_BYTES, "little")

    @staticmethod
    def decode(raw: bytes) -> "Command":
        """Inverse of `encode`; a field outside its enumeration raises `ValueError`."""
        word, values = int.from_bytes(raw, "little"), {}
        for name, (bits, signed) in FIELDS.items():
            value, word = word & ((1 << bits) - 1), word >> bits
            values[name] = value - (1 << bits) if signed and value >> (bits - 1) else value
        types: dict[str, Any] = {f.name: f.type for f in fields(Command)}
        return Command(**{name: types[name](value) for name, value in values.items()})
