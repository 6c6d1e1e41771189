"""How long a frame and a command of it may take: bounds from the Program alone, since a driver has no cycle model."""

from collections.abc import Iterable
from math import ceil

from patchloom.compiler.machine.commands import COMMAND_BYTES, Command, Kind
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config

BEAT_CYCLES = 64  # of a beat from memory or to it, its latency included: no memory is as slow
COMMAND_CYCLES = 2000  # of a command beside its rows: pipelines, a tile, a burst


def most_cycles(config: Config, commands: Iterable[Command]) -> int:
    """More than any frame takes, several times over: all tokens may go to every expert."""
    return sum(_cycles(config, command) for command in commands)


def most_cycles_of_one(config: Config, commands: Iterable[Command]) -> int:
    """More than any of the commands takes; the first one takes the reading of all, and a long fetch goes before any."""
    listed = list(commands)
    fetched = len(listed) * COMMAND_BYTES // config.beat_bytes + max((c.dma_beats for c in listed), default=0)
    return fetched * BEAT_CYCLES + max((_cycles(config, command) for command in listed), default=0)


def _cycles(config: Config, c: Command) -> int:
    moved = c.dma_beats * BEAT_CYCLES + COMMAND_CYCLES
    if c.kind == Kind.ROUTE:
        return moved + c.rows * c.columns * config.max_top_k
    if c.kind != Kind.MATMUL:
        return moved
    slices, tiles = ceil(c.depth / config.inputs), ceil(c.columns / config.outputs)
    passes = c.b_digits * (ceil(ELEMENT_WIDTH / config.activation_width) if c.a_wide else 1)
    written = config.tile_beats + config.inputs * config.outputs  # a tile, an element a cycle at worst
    return moved + slices * tiles * passes * (c.rows + written) + tiles * c.rows * config.passes
