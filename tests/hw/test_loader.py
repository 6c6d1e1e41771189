# amaranth: UnusedElaboratable=no
# ruff: noqa: ERA001
"""Gearbox and Loader: what `compiler.machine.layout` packs arrives as the tiles and parameters it was made of."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Command, Kind, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import Ints, operand_limits, split_digits
from patchloom.compiler.machine.layout import Weights, pack, parameter_words
from patchloom.compiler.machine.tables import ENTRIES
from patchloom.hw.gearbox import Gearbox
from patchloom.hw.loader import Loader
from patchloom.sim.bench import receive, run, send, stalls
from patchloom.sim.cosim import simulate
from patchloom.sim.interpret import stationary
from tests.hw.pipelines import as_case

# --- Gearbox ---


def gearbox_rtl(bus: int, width: int, beats: list[int], count: int, seed: int) -> list[int]:
    box = Gearbox(bus, width)
    taken = []

    async def source(ctx) -> None:
        await send(ctx, box.beats, beats, stalls(seed, 0.4))

    async def sink(ctx) -> None:
        taken.extend(await receive(ctx, box.items, count, stalls(seed + 1, 0.4)))

    run(box, source, sink, deadline=60 * max(len(beats), count))
    return taken


def gearbox_reference(bus: int, width: int, beats: list[int], count: int) -> list[int]:
    whole = sum(beat << (bus * i) for i, beat in enumerate(beats))
    return [(whole >> (width * i)) & ((1 << width) - 1) for i in range(count)]


RATIOS = [(bus, width) for bus in (32, 64, 128, 512) for width in (32, 64, 96, 128, 512)]


@pytest.mark.parametrize(("bus", "width"), [r for r in RATIOS if max(r) % min(r) == 0])
def test_gearbox(bus, width):
    rng = random.Random(bus + width)
    count = 40 * max(bus // width, 1)
    beats = [rng.getrandbits(bus) for _ in range(count * width // bus)]
    assert gearbox_rtl(bus, width, beats, count, seed=bus) == gearbox_reference(bus, width, beats, count)


def test_gearbox_needs_a_whole_ratio():
    with pytest.raises(ValueError, match="item width must be a multiple or a divisor of the bus's 64 bits, not 96"):
        Gearbox(64, 96)


def test_gearbox_clear():
    """After `clear` an item begins a new beat, and a beat of which nothing was taken stays."""
    box = Gearbox(64, 16)
    beats, got = [0x0003_0002_0001_0000, 0x0007_0006_0005_0004, 0x000B_000A_0009_0008], []

    async def source(ctx) -> None:
        await send(ctx, box.beats, beats)

    async def sink(ctx) -> None:
        for count in (2, 4, 1):  # the second ends with its beat: clear finds nothing to drop
            got.append(await receive(ctx, box.items, count))
            ctx.set(box.clear, 1)
            await ctx.tick()
            ctx.set(box.clear, 0)

    run(box, source, sink, deadline=100)
    assert got == [[0, 1], [4, 5, 6, 7], [8]]


# --- Loader ---

CONFIGS = {
    "a column is a beat": Config(inputs=8, outputs=4, lanes=4, bus_width=64, scratchpad_chunks=256),
    "4 beats a column": Config(inputs=8, outputs=16, lanes=8, bus_width=32, weight_width=16, scratchpad_chunks=256),
    "several columns a word": Config(
        inputs=16, outputs=12, lanes=4, bus_width=64, word_beats=8, scratchpad_chunks=1024
    ),
    "padded tiles": Config(inputs=8, outputs=12, lanes=4, bus_width=512, scratchpad_chunks=256),
}


@dataclass
class Case:
    """Commands in random order, with the stream each needs; depths and columns that do and do not fill tiles."""

    config: Config
    seed: int
    steps: list[tuple[Command, Weights | Ints | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        c = self.config
        self.scratchpad = rng.integers(-(1 << 15), 1 << 15, (c.scratchpad_chunks, c.lanes)).astype(np.int16)
        self.scratchpad[::7] = (1 << 15) - 1
        shapes = [(1, 1), (c.inputs, c.outputs), (c.inputs + 1, c.outputs + 1), (3 * c.inputs - 2, 2 * c.outputs - 1)]
        digits = ELEMENT_WIDTH // c.weight_width
        for depth, columns in shapes:
            for count in {1, digits}:
                self.steps.append(self._stored(rng, depth, columns, count))
            for source in (Stationary.COLUMNS, Stationary.ROWS):
                along = depth if source == Stationary.COLUMNS else columns
                stride = -(-along // c.lanes) + int(rng.integers(2))
                fields = {"b_address": int(rng.integers(100)), "b_stride": stride, "b_digits": digits}
                command = Command(kind=Kind.MATMUL, depth=depth, columns=columns, b_source=source, **fields)
                self.steps.append((command, None))
        for rows in (c.word_width // (c.lanes * ELEMENT_WIDTH) or 1, 32):
            chunks = rng.integers(-(1 << 15), 1 << 15, (rows, c.lanes)).astype(np.int16)
            at = int(rng.integers(c.scratchpad_chunks - rows))
            self.steps.append((Command(kind=Kind.LOAD, rows=rows, a_address=at), chunks))
        for _ in range(2):
            self.steps.append((Command(kind=Kind.TABLE, rows=ENTRIES), rng.integers(0, 1 << 32, ENTRIES, np.uint32)))
        self.steps = [self.steps[i] for i in rng.permutation(len(self.steps))]

    def _stored(self, rng: np.random.Generator, depth: int, columns: int, digits: int) -> tuple[Command, Weights]:
        low, high = operand_limits(digits * self.config.weight_width)
        weights = Weights(
            rng.integers(low, high + 1, (depth, columns)),
            rng.integers(-(1 << 39), 1 << 39, columns),
            rng.integers(0, 1 << 16, columns),
            rng.integers(0, 63, columns),
        )
        return Command(kind=Kind.MATMUL, depth=depth, columns=columns, b_digits=digits), weights

    def stream(self, step: tuple[Command, Weights | Ints | None]) -> bytes:
        command, data = step
        if isinstance(data, Weights):
            return pack(self.config, data, command.b_digits)
        return b"" if data is None else data.tobytes()


Result = tuple[list[int], list[list[int]], list[list[int]], list[list[int]], list[int]]


def rtl(case: Case) -> Result:
    """(0 for parameters, 1 for a tile) as they were done; tiles; parameter words; the scratchpad; the table."""
    streams = [case.stream(step) for step in case.steps]
    given = {
        "seed": case.seed,
        "scratchpad": case.scratchpad,
        "commands": np.frombuffer(b"".join(command.encode() for command, _ in case.steps), np.uint8),
        "lengths": np.array([len(stream) for stream in streams], np.int64),
        "stream": np.frombuffer(b"".join(streams), np.uint8),
    }
    bench = Path(__file__).with_name("bench_loader.py")
    got = simulate(Loader(case.config), bench, case=given | as_case(case.config))
    masks = [mask for command, _ in case.steps for mask in masks_of(case.config, command)]
    seen = [np.where(mask, tile, 0) for mask, tile in zip(masks, got["tiles"], strict=True)]
    words, scratchpad, table = (got[name].tolist() for name in ("words", "scratchpad", "table"))
    return got["order"].tolist(), [t.tolist() for t in seen], words, scratchpad, table


def tiles(config: Config, command: Command) -> Iterator[tuple[int, int, int]]:
    """(first channel, first feature, digit) of every tile, in the order of use."""
    for channel in range(0, command.columns, config.outputs):
        for feature in range(0, command.depth, config.inputs):
            for digit in range(command.b_digits):
                yield channel, feature, digit


def masks_of(config: Config, command: Command) -> list[Ints]:
    """Which digits of each tile count: beyond a tensor in the scratchpad they may be anything."""
    if command.kind != Kind.MATMUL:
        return []
    everywhere = command.b_source == Stationary.MEMORY
    return [
        ((feature + np.arange(config.inputs) < command.depth) | everywhere)
        & ((channel + np.arange(config.outputs) < command.columns) | everywhere)[:, None]
        for channel, feature, _ in tiles(config, command)
    ]


def reference(case: Case) -> Result:
    config = case.config
    order, seen, words, memory, table = [], [], [], case.scratchpad.copy(), []
    for command, data in case.steps:
        if command.kind == Kind.LOAD:
            memory[command.a_address :][: command.rows] = data
            continue
        if command.kind == Kind.TABLE:
            table += data.tolist()
            continue
        matrix = data.matrix if isinstance(data, Weights) else from_scratchpad(config, command, memory)
        padded = np.zeros((matrix.shape[0] + config.inputs, matrix.shape[1] + config.outputs), np.int64)
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
        planes = split_digits(padded, config.weight_width, command.b_digits)
        for channel, feature, digit in tiles(config, command):
            if isinstance(data, Weights) and feature == digit == 0:
                order.append(0)
                words.append(words_of(data, channel, config.outputs))
            order.append(1)
            tile = planes[digit][feature : feature + config.inputs, channel : channel + config.outputs]
            seen.append(tile.T)
    masks = [mask for command, _ in case.steps for mask in masks_of(config, command)]
    tiles_seen = [np.where(mask, tile, 0).tolist() for mask, tile in zip(masks, seen, strict=True)]
    return order, tiles_seen, words, memory.tolist(), table


def from_scratchpad(config: Config, c: Command, memory: Ints) -> Ints:
    """[depth, columns]."""
    rows, along = (c.columns, c.depth) if c.b_source == Stationary.COLUMNS else (c.depth, c.columns)
    at = c.b_address + np.arange(rows)[:, None] * c.b_stride + np.arange(-(-along // config.lanes))
    tensor = memory[at].reshape(rows, -1)[:, :along].astype(np.int64)
    return stationary(config, c, tensor)


def words_of(weights: Weights, channel: int, count: int) -> list[int]:
    words = parameter_words(weights)[channel : channel + count]
    return [*words.tolist(), *[0] * (count - len(words))]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loader(config):
    case = Case(config, seed=1)
    assert rtl(case) == reference(case)
