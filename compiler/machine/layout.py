"""How stationary weights and epilogue parameters lie in memory: the order in which the machine reads them.

For each group of `Config.outputs` channels: their parameters (`config.PARAMETER`), then,
for each group of `Config.inputs` features and each weight digit (least significant first), one tile: a column
of `inputs` digits per channel, feature after feature. Parameters and tiles are padded to whole words of
`Config.word_beats` bus beats.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import PARAMETER, PARAMETER_BITS, Config
from patchloom.compiler.machine.encoding import joined, parted
from patchloom.compiler.machine.fixed import Ints, split_digits


@dataclass(frozen=True, eq=False)
class Weights:
    """Integers of one stationary operand: `matrix` [depth, columns], the rest per column."""

    matrix: Ints = field(repr=False)
    bias: Ints = field(repr=False)  # at the accumulator's scale
    multiplier: Ints = field(repr=False)
    shift: Ints = field(repr=False)


def stream_beats(config: Config, depth: int, columns: int, digits: int) -> int:
    """Bus beats of one stationary operand."""
    groups = -(-columns // config.outputs)
    return groups * (config.parameter_beats + -(-depth // config.inputs) * digits * config.tile_beats)


def parameter_words(weights: Weights) -> Ints:
    return joined(PARAMETER, {name: getattr(weights, name) for name in PARAMETER})


def _groups(config: Config, depth: int, columns: int) -> tuple[int, int]:
    """Groups of channels and of features."""
    return -(-columns // config.outputs), -(-depth // config.inputs)


def _whole(raw: NDArray[np.uint8], beats: int, config: Config) -> NDArray[np.uint8]:
    """The last axis padded to `beats`."""
    padding = beats * config.beat_bytes - raw.shape[-1]
    return np.pad(raw, [(0, 0)] * (raw.ndim - 1) + [(0, padding)])


def pack(config: Config, weights: Weights, digits: int) -> bytes:
    depth, columns = weights.matrix.shape
    groups, slices = _groups(config, depth, columns)
    words = np.zeros((groups, config.outputs), "<i8")
    words.reshape(-1)[:columns] = parameter_words(weights)
    padded = np.zeros((slices * config.inputs, groups * config.outputs), np.int64)
    padded[:depth, :columns] = weights.matrix
    planes = np.stack(split_digits(padded, config.weight_width, digits)).astype(f"<i{config.weight_width // 8}")
    shape = digits, slices, config.inputs, groups, config.outputs
    tiles = planes.reshape(shape).transpose(3, 1, 0, 4, 2).reshape(groups, slices * digits, -1)
    parts = (
        _whole(words.view(np.uint8), config.parameter_beats, config),
        _whole(np.ascontiguousarray(tiles).view(np.uint8), config.tile_beats, config).reshape(groups, -1),
    )
    return np.concatenate(parts, axis=1).tobytes()


def unpack(config: Config, raw: bytes, depth: int, columns: int, digits: int) -> Weights:
    """Inverse of `pack`."""
    groups, slices = _groups(config, depth, columns)
    data = np.frombuffer(raw, np.uint8).reshape(groups, -1)
    first = config.parameter_beats * config.beat_bytes
    words = np.ascontiguousarray(data[:, : PARAMETER_BITS // 8 * config.outputs]).view("<i8").reshape(-1)[:columns]
    tiles = data[:, first:].reshape(groups, slices * digits, -1)
    used = np.ascontiguousarray(tiles[..., : config.inputs * config.outputs * config.weight_width // 8])
    planes = used.view(f"<i{config.weight_width // 8}")
    planes = planes.reshape(groups, slices, digits, config.outputs, config.inputs).transpose(2, 1, 4, 0, 3)
    matrix = np.zeros((slices * config.inputs, groups * config.outputs), np.int64)
    for digit, plane in enumerate(planes):
        matrix += plane.reshape(matrix.shape).astype(np.int64) << (config.weight_width * digit)
    return Weights(matrix[:depth, :columns], **parted(PARAMETER, words))
