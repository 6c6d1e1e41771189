"""The memory image: weights and constants behind the command tables; equal contents are stored once."""

from collections import Counter
from hashlib import blake2b

import numpy as np

from patchloom.compiler.machine.bounds import digits
from patchloom.compiler.machine.commands import COMMAND_BYTES
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.layout import Weights, pack
from patchloom.compiler.machine.program import Segment
from patchloom.compiler.quantise.linear import Linear
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.columns import extent

ALIGNMENT = 64  # bytes: a whole beat of the widest bus


class Image:
    """Weight and constant segments behind the command tables; equal contents are stored once."""

    def __init__(self, config: Config, tasks: int) -> None:
        self.config = config
        self.base = self.end = aligned(tasks * config.command_depth * COMMAND_BYTES, ALIGNMENT)
        self.parts: list[bytes] = []
        self.segments: list[Segment] = []
        self.names: Counter[str] = Counter()
        self.known: dict[bytes, int] = {}
        self.packed: dict[object, tuple[Linear, int]] = {}

    def add(self, name: str, data: bytes) -> int:
        """Its address."""
        digest = blake2b(data).digest()
        if digest not in self.known:
            padded = data.ljust(aligned(len(data), ALIGNMENT), b"\0")
            self.known[digest] = self.end
            self.names[name] += 1
            label = name if self.names[name] == 1 else f"{name} #{self.names[name]}"  # another task's
            self.segments.append(Segment(label, self.end, len(padded)))
            self.parts.append(padded)
            self.end += len(padded)
        return self.known[digest]

    def linear(self, name: str, linear: Linear, rows: Ints, columns: Ints) -> int:
        """Address of a product's weights, whose features and channels lie at `rows` and `columns`."""
        key = id(linear), rows.tobytes(), columns.tobytes()
        if key not in self.packed:
            data = pack(self.config, _laid_out(linear, rows, columns), digits(self.config, linear.bits))
            self.packed[key] = linear, self.add(name, data)
        return self.packed[key][1]


def _laid_out(linear: Linear, rows: Ints, columns: Ints) -> Weights:
    """Zeros wherever the layout has no feature or channel."""
    matrix = np.zeros((extent(rows), extent(columns)), np.int64)
    matrix[np.ix_(rows, columns)] = linear.matrix
    channels = np.zeros((3, extent(columns)), np.int64)
    channels[:, columns] = linear.bias, linear.multiplier, linear.shift
    return Weights(matrix, *channels)
