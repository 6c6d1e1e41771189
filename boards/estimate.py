"""What a machine takes of a device, without Yosys: within some percent of `boards.area.measure`, in microseconds.

Multipliers and block RAMs are counted, as the RTL has them and Yosys maps them. Look-up tables and flip-flops of a unit
are proportional to a few of its sizes; `area_model.json` holds the factors, which `python -m benchmarks.area_model`
fits to measured machines.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from patchloom.boards.description import Board, Family
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, SUM_WIDTH
from patchloom.compiler.machine.tables import ENTRIES, ENTRY_BITS
from patchloom.hw.array import Accumulators
from patchloom.hw.bundles import columns_width, lengths_width, parameters_width, queue_entry, tile_word
from patchloom.hw.command import STEPS_WIDTH, CommandLayout, beat_layout
from patchloom.hw.datapath import Datapath
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.serialiser import Serialiser
from patchloom.hw.statistics import SQUARES_WIDTH, TOTAL_WIDTH

Factors = dict[str, dict[str, dict[str, list[float]]]]  # by family, "lut" or "ff", unit
FACTORS = Path(__file__).parent / "area_model.json"


@dataclass(frozen=True)
class Area:
    """`bram` counts BRAM36 on Xilinx devices and DP16KD on ECP5; `lut` LUT6 or LUT4, `dsp` as the device has them."""

    dsp: int
    bram: float
    lut: int
    ff: int

    def __add__(self, other: "Area") -> "Area":
        return Area(self.dsp + other.dsp, self.bram + other.bram, self.lut + other.lut, self.ff + other.ff)


def estimate(config: Config, family: Family, factors: Factors | None = None) -> Area:
    """Of the machine alone; `factors` in the place of those of `area_model.json`."""
    chosen = (factors or _factors())[family]
    sizes = features(config, family)
    lut, ff = (sum(np.dot(sizes[unit], weights) for unit, weights in chosen[kind].items()) for kind in ("lut", "ff"))
    return Area(multipliers(config), block_rams(config, family), round(lut), round(ff))


@cache
def _factors() -> Factors:
    return dict(json.loads(FACTORS.read_text())["families"])


# --- What a board has ---

SOC = Path(__file__).parent / "soc_area.json"
# Shares that stay free: routers need room, and the model errs by some percent. Multipliers are counted exactly; with
# 98 % of them in use no ECP5 was routed, with 94 % it was.
MARGIN = {"dsp": 0.06, "bram": 0.03, "lut": 0.2, "ff": 0.2}


def device_area(board: Board) -> Area:
    """All that the device has."""
    device = board.device
    return Area(device.dsps, device.brams, device.luts, device.ffs)


def soc_area(board: Board) -> Area:
    """What is built around the machine, by Yosys where it is built by LiteX."""
    found = json.loads(SOC.read_text())["boards"][board.name]
    return Area(**{kind: found[kind] for kind in MARGIN})


def usable(board: Board) -> Area:
    """What a machine may take at the most: the device less the SoC and the margin."""
    all_, soc = asdict(device_area(board)), asdict(soc_area(board))
    return Area(**{kind: int(all_[kind] * (1 - margin) - soc[kind]) for kind, margin in MARGIN.items()})


def exceeds(area: Area, room: Area) -> dict[str, float]:
    """Each kind there is too much of, and how much is wanted."""
    return {kind: want for kind, want in asdict(area).items() if want > getattr(room, kind)}


# --- Multipliers ---


def multipliers(config: Config) -> int:
    """That every family maps alike: DSP48 and MULT18X18D, a product each, or two if packed."""
    limb = config.limb_width
    array = config.inputs * config.outputs // (2 if config.multipliers_packed else 1)
    # Of a channel: the sum and its bias, the activated word by the row's factor, a table's slope.
    channel = -(-(BIAS_WIDTH + 1) // limb) + -(-EPILOGUE_WIDTH // limb) + 1
    at_once = config.channels_at_once  # and as many squares
    # Mean, features by squares, sum squared, norm; addresses of a row and its residual, of an operand, of a tile; the
    # router's score; two reciprocals and the root interpolate.
    rows = -(-TOTAL_WIDTH // limb) + -(-SQUARES_WIDTH // limb) + 3 + 1 + 2 + 1 + 1 + 1 + 3
    tasks = int(config.command_depth & (config.command_depth - 1) != 0)  # a task's first command
    # Places of slices and groups: three products each with a size that is no power of two.
    places = sum(3 for size in (config.inputs, config.outputs) if size & (size - 1) != 0)
    return int(array + at_once * (channel + 1) + config.inputs + rows + tasks + places)


# --- Block RAMs ---

# Words and bits of a block RAM; those that only one reader and one writer can have come last.
SHAPES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "ecp5": ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36)),
    "xilinx 18": ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36)),
    "xilinx 36": ((32768, 1), (16384, 2), (8192, 4), (4096, 9), (2048, 18), (1024, 36), (512, 72)),
}
# A memory is made of look-up tables if that takes fewer than so many small memories for each block RAM (of 18 kbit):
# words and bits of one, and how many.
SMALL: Mapping[Family, tuple[int, int, int]] = {"ecp5": (16, 4, 20), "xc7": (64, 1, 42), "xcup": (64, 1, 55)}


def block_rams(config: Config, family: Family) -> float:
    listed = memories(config)
    total = sum(_blocks(*memory, family) for memory in listed)
    if family != "ecp5":
        return total
    # Tables that are look-up tables elsewhere; delays that are; and as no hierarchy is kept, a queue that is read for
    # its tokens alone has no blocks for the rest.
    reciprocals, token = 3, (config.max_rows - 1).bit_length()
    queues, entry, *_ = listed[QUEUES]
    rest = _blocks(queues, entry, 1, False, family) - _blocks(queues, entry, 1, False, family, used=token)
    return total + reciprocals - rest + sum(_blocks(*ring, 1, False, family) for ring in _rings(config))


def _rings(config: Config) -> list[tuple[int, int]]:
    """(cycles, bits) of the longest delays of the datapath: of a beat, and of the parameters that meet its sums."""
    beat = beat_layout(config)
    flags = sum(field.width == 1 for _, field in beat)
    sums = Datapath.sums_latency(config)
    rings = [(sums - Accumulators.LATENCY, beat.size - flags)]
    if not config.epilogue_lanes:
        rings.append((sums - 1, (config.outputs - 1).bit_length() + parameters_width(config)))
    return rings


QUEUES = 3  # their place among the memories


def memories(config: Config) -> list[tuple[int, int, int, bool]]:
    """(words, bits, how many alike, whether a port reads and writes) of every memory that is read by address."""
    c = config
    depth = c.scratchpad_chunks // c.banks
    blocks = [min(Scratchpad.BLOCK, depth - first) for first in range(0, depth, Scratchpad.BLOCK)]
    shared = Scratchpad.shares_port(c)
    halves = 2 * c.banks * c.scratchpad_copies  # a write takes half a chunk
    queues = c.max_experts << (c.max_rows - 1).bit_length()
    entry = int(queue_entry(c).size)
    row = (c.max_rows - 1).bit_length() + STEPS_WIDTH + 1 + SUM_WIDTH + c.outputs * c.accumulator_width
    queue = [(Serialiser.depth(c), row, 1, False)] if c.epilogue_lanes else []
    return [
        (c.max_rows, c.outputs * c.accumulator_width + SUM_WIDTH, 1, False),
        (c.statistics_rows, TOTAL_WIDTH + SQUARES_WIDTH, 2, False),
        (c.max_rows, ELEMENT_WIDTH, 2, False),  # maxima
        (queues, entry, 2, False),
        (c.command_depth, CommandLayout.size, 1, False),
        (c.fifo_beats // c.word_beats, c.bus_width, c.word_beats, False),
        (ENTRIES, ENTRY_BITS, c.channels_at_once, False),  # the activation's table
        *queue,
        *((words, c.lanes * ELEMENT_WIDTH // 2, halves, shared) for words in blocks),
    ]


def _blocks(words: int, bits: int, alike: int, shared: bool, family: Family, used: int | None = None) -> float:
    """Of `alike` memories, each of so many words and bits; `used` of the latter, if it is not all."""
    sizes = {"ecp5": 1.0} if family == "ecp5" else {"xilinx 18": 0.5, "xilinx 36": 1.0}
    blocks, size, depth, width = min(
        (size * -(-words // depth) * -(-bits // width), size, depth, width)
        for shape, size in sizes.items()
        for depth, width in SHAPES[shape][: -1 if shared else None]
    )
    small_words, small_bits, worth = SMALL[family]
    if -(-words // small_words) * -(-bits // small_bits) < worth * blocks / min(sizes.values()):
        return 0.0
    return alike * size * -(-words // depth) * -(-(used or bits) // width)


# --- Look-up tables and flip-flops ---

UNITS = (
    "operand", "multipliers", "tile", "accumulators", "statistics", "parameters", "epilogue", "scratchpad", "datapath",
    "loader", "reader", "storer", "router", "queues", "rest",
)  # fmt: skip


def features(config: Config, family: Family) -> dict[str, tuple[float, ...]]:
    """Of each unit, the sizes that its look-up tables and flip-flops grow with."""
    c = config
    array = c.inputs * c.outputs
    product = c.weight_width + c.activation_width
    # Bits of the adders behind one channel's products.
    levels = range(1, (c.inputs - 1).bit_length() + 1)
    tree = sum(-(-c.inputs // (1 << level)) * (product + level) for level in levels)
    width, ports = c.lanes * ELEMENT_WIDTH, c.input_chunks + c.banks
    turns = c.banks - 1  # of what a chunk's place is chosen from
    blocks = -(-c.scratchpad_chunks // c.banks // Scratchpad.BLOCK)
    # Registers behind the block RAMs; a chain of them with nothing to choose between is a shift register on Xilinx.
    chain = family != "ecp5" and c.banks == blocks == 1
    registers = width if chain else width * (2 * c.banks * (blocks + 1) + ports + c.banks)
    shallow = int(_blocks(*memories(c)[0], family) == 0)  # the accumulators
    expert = (c.max_experts - 1).bit_length()
    # Rows that wait for few lanes cost as much as their accumulators.
    waiting = 2 if c.epilogue_lanes else 1
    return {
        "operand": (c.inputs, c.inputs * (c.input_chunks % 2), 1),
        "multipliers": (c.outputs * tree, array * c.multipliers_packed),
        "tile": (array * c.weight_width,),
        "accumulators": (waiting * c.outputs * c.accumulator_width, shallow * c.outputs * c.accumulator_width, 1),
        "statistics": (c.channels_at_once, 1),
        "parameters": (c.outputs,),
        "epilogue": (c.channels_at_once, c.channels_at_once * c.multipliers_packed, 1),
        "scratchpad": (width * ports * turns, width * c.banks * (blocks - 1), registers, 1),
        "datapath": (tile_word(c) + parameters_width(c), 1),
        "loader": (max(c.inputs, c.outputs), columns_width(c), 1),
        "reader": (c.bus_width, 1),
        "storer": (width, c.bus_width, 1),
        "router": (c.max_top_k * (ELEMENT_WIDTH + expert), width, 1),
        "queues": (lengths_width(c), 1),
        "rest": (c.word_width, lengths_width(c), 1),
    }  # fmt: skip
