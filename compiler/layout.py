"""How stationary weights and epilogue parameters lie in memory: the order in which the machine reads them.

For each group of `Config.outputs` channels: their parameters (64 bits each: bias, multiplier, shift), then,
for each group of `Config.inputs` features and each weight digit (least significant first), one tile: a column
of `inputs` digits per channel, feature after feature. Parameters and tiles are padded to whole bus beats.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compiler.config import BIAS_WIDTH, Config
from compiler.fixed import Ints, split_digits


@dataclass(frozen=True, eq=False)
class Weights:
    """Integers of one stationary operand: `matrix` [depth, columns], the rest per column."""

    matrix: Ints = field(repr=False)
    bias: Ints = field(repr=False)  # at the accumulator's scale
    multiplier: Ints = field(repr=False)
    shift: Ints = field(repr=False)


def tiles(config: Config, depth: int, columns: int, digits: int) -> Iterator[tuple[int, int, int]]:
    """(first channel, first feature, digit) of every tile, in the order of use."""
    for column in range(0, columns, config.outputs):
        for feature in range(0, depth, config.inputs):
            for digit in range(digits):
                yield column, feature, digit


def stream_beats(config: Config, depth: int, columns: int, digits: int) -> int:
    """Bus beats of one stationary operand."""
    groups = -(-columns // config.outputs)
    return groups * (config.parameter_beats + -(-depth // config.inputs) * digits * config.tile_beats)


def _padded(config: Config, depth: int, columns: int) -> tuple[int, int]:
    return -(-depth // config.inputs) * config.inputs, -(-columns // config.outputs) * config.outputs


def _to_beats(config: Config, data: NDArray[np.uint8]) -> bytes:
    return data.tobytes() + bytes(-data.size % config.beat_bytes)


def pack(config: Config, weights: Weights, digits: int) -> bytes:
    depth, columns = weights.matrix.shape
    padded = np.zeros(_padded(config, depth, columns), np.int64)
    padded[:depth, :columns] = weights.matrix
    planes = split_digits(padded, config.weight_width, digits)
    words = np.zeros(padded.shape[1], np.uint64)
    words[:columns] = (
        (weights.bias & ((1 << BIAS_WIDTH) - 1)) | (weights.multiplier << BIAS_WIDTH) | (weights.shift << (BIAS_WIDTH + 16))
    ).astype(np.uint64)
    out = []
    for column, feature, digit in tiles(config, depth, columns, digits):
        if feature == digit == 0:
            out.append(_to_beats(config, words[column : column + config.outputs].view(np.uint8)))
        tile = planes[digit][feature : feature + config.inputs, column : column + config.outputs]
        out.append(_to_beats(config, tile.T.astype(f"<i{config.weight_width // 8}").reshape(-1).view(np.uint8)))
    return b"".join(out)


def unpack(config: Config, raw: bytes, depth: int, columns: int, digits: int) -> Weights:
    """Inverse of `pack`."""
    padded = _padded(config, depth, columns)
    matrix, words = np.zeros(padded, np.int64), np.zeros(padded[1], np.int64)
    element = f"<i{config.weight_width // 8}"
    position = 0
    for column, feature, digit in tiles(config, depth, columns, digits):
        if feature == digit == 0:
            words[column : column + config.outputs] = np.frombuffer(raw, "<i8", config.outputs, position)
            position += config.parameter_beats * config.beat_bytes
        tile = np.frombuffer(raw, element, config.inputs * config.outputs, position).astype(np.int64)
        rows, cols = slice(feature, feature + config.inputs), slice(column, column + config.outputs)
        matrix[rows, cols] += tile.reshape(config.outputs, config.inputs).T << (config.weight_width * digit)
        position += config.tile_beats * config.beat_bytes
    words = words[:columns]
    bias = (words << (64 - BIAS_WIDTH)) >> (64 - BIAS_WIDTH)
    return Weights(
        matrix[:depth, :columns], bias, (words >> BIAS_WIDTH) & 0xFFFF, (words >> (BIAS_WIDTH + 16)) & 0xFF
    )
