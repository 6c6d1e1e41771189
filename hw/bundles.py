"""The interfaces between units, each from the side that asks or writes; the other side declares `In(...)`.

Unless its docstring says otherwise a bundle carries something every cycle and nothing stalls: what is written is
taken, what is asked for arrives a fixed number of cycles later.
"""

from amaranth.hdl import Module, ValueLike
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.commands import FIELDS, Space
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH, PARAMETER, PARAMETER_BITS, Config
from patchloom.compiler.machine.fixed import ROW_ONE, SHIFT_WIDTH
from patchloom.compiler.machine.registers import WINDOW_PAGE
from patchloom.compiler.machine.tables import ENTRIES, ENTRY_BITS
from patchloom.hw.axi import ADDRESS_WIDTH
from patchloom.hw.command import CommandLayout, beat_layout

BEATS_WIDTH = FIELDS["dma_beats"].width
FACTOR_WIDTH = ROW_ONE.bit_length()
MULTIPLIER_WIDTH = PARAMETER["multiplier"].width
SIZE_WIDTH = 32  # of a region
ROUTES_WIDTH = 8  # of the numbers of ROUTEs, which wrap


# --- What travels ---


class Request(data.Struct):
    """To a DMA engine: a beat-aligned byte address, and a number of beats."""

    address: ADDRESS_WIDTH
    beats: BEATS_WIDTH


def queue_entry(config: Config) -> data.StructLayout:
    """One token in an expert's queue."""
    return data.StructLayout({"token": range(config.max_rows), "score": FACTOR_WIDTH, "first": 1})


def lengths_width(config: Config) -> int:
    """Bits of the queues' lengths, side by side, the first expert's in the low bits."""
    return config.max_experts * config.max_rows.bit_length()


def chunk_width(config: Config) -> int:
    return config.lanes * ELEMENT_WIDTH


def columns_width(config: Config) -> int:
    """Bits of a tile that memory brings at once: a word, or one column if that is wider."""
    return max(config.word_width, config.inputs * config.weight_width)


def tile_word(config: Config) -> int:
    """Bits of a tile that are written at once: columns from memory, or a column or a row from the scratchpad."""
    return max(config.columns_at_once * config.inputs, config.outputs) * config.weight_width


def parameters_at_once(config: Config) -> int:
    """Channels whose parameters one word from memory brings, at least one."""
    return max(1, config.word_width // PARAMETER_BITS)


def parameters_width(config: Config) -> int:
    """Bits of these channels' parameters."""
    return parameters_at_once(config) * PARAMETER_BITS


# --- The stationary operand ---


class TileWrite(wiring.Signature):
    """Part of the tile that is not in use, in every cycle with `load`.

    Those of the `Config.columns_at_once` columns that `columns` marks, in the block of columns that holds `index`; or
    `by_row` row `index` of all columns.
    """

    def __init__(self, config: Config):
        super().__init__(
            {
                "load": Out(1),
                "by_row": Out(1),
                "index": Out(range(max(config.inputs, config.outputs))),
                "columns": Out(config.columns_at_once),
                "data": Out(tile_word(config)),
            }
        )


class ParameterWrite(wiring.Signature):
    """Parameters of `parameters_at_once` channels from `index` on, not in use yet, in every cycle with `load`."""

    def __init__(self, config: Config):
        super().__init__(
            {
                "load": Out(1),
                "index": Out(range(config.outputs)),
                "words": Out(parameters_width(config)),
            }
        )


class ParameterSet(wiring.Signature):
    """Epilogue parameters of the channels that are finished in one cycle, side by side; with all of a group in one
    they stand while the group passes.
    """

    def __init__(self, config: Config):
        n = config.channels_at_once
        super().__init__(
            {
                "bias": Out(n * BIAS_WIDTH),
                "multiplier": Out(n * MULTIPLIER_WIDTH),
                "shift": Out(n * SHIFT_WIDTH),
            }
        )


class TableWrite(wiring.Signature):
    """An entry of the epilogue's table, in every cycle with `load`, while no beat is on its way."""

    def __init__(self) -> None:
        super().__init__({"load": Out(1), "index": Out(range(ENTRIES)), "entry": Out(ENTRY_BITS)})


class Turn(wiring.Signature):
    """Of tiles, or of sets of parameters: who writes the next one waits until `free`, then pulses `done`.

    `free` falls a cycle after `done`, and rises a cycle after the first beat that uses what was written. Where several
    sets can be written ahead (`ParameterQueue`) it falls only with the last that there is room for.
    """

    def __init__(self) -> None:
        super().__init__({"free": In(1), "done": Out(1)})


# --- The scratchpad ---


class ScratchpadRead(wiring.Signature):
    """`chunks` consecutive chunks from `address` on, `Scratchpad.READ_LATENCY` cycles later; an address a cycle."""

    def __init__(self, config: Config, chunks: int = 1):
        super().__init__(
            {
                "address": Out(range(config.scratchpad_chunks)),
                "data": In(chunks * chunk_width(config)),
            }
        )


class StationaryRead(wiring.Signature):
    """The same for tiles, of as many chunks as there are banks. An address without `ready` is not looked at."""

    def __init__(self, config: Config):
        super().__init__({"ready": In(1)} | dict(ScratchpadRead(config, config.banks).members.items()))


class ScratchpadWrite(wiring.Signature):
    """`chunks` consecutive chunks, in every cycle with `valid`; they land `Scratchpad.WRITE_LATENCY` cycles later.

    A bit of `enable` is half a chunk; without `valid` none is set.
    """

    def __init__(self, config: Config, chunks: int = 1):
        super().__init__(
            {
                "valid": Out(1),
                "address": Out(range(config.scratchpad_chunks)),
                "data": Out(chunks * chunk_width(config)),
                "enable": Out(2 * chunks),
            }
        )


# --- The experts' queues ---


class QueueRead(wiring.Signature):
    """The entry at `row` of the queue that is looked at, one cycle later."""

    def __init__(self, config: Config):
        super().__init__({"row": Out(range(config.max_rows)), "entry": In(queue_entry(config))})


class QueuePush(wiring.Signature):
    """An entry to the end of an expert's queue, in every cycle with `valid`; the length grows with the next cycle."""

    def __init__(self, config: Config):
        super().__init__(
            {
                "valid": Out(1),
                "expert": Out(range(config.max_experts)),
                "entry": Out(queue_entry(config)),
            }
        )


# --- The sequencer's orders ---


class Execution(wiring.Signature):
    """`start` for one cycle begins `command`, which stands while `busy`; `busy` rises with the next cycle."""

    def __init__(self) -> None:
        super().__init__({"command": Out(CommandLayout), "start": Out(1), "busy": In(1)})


class Loading(wiring.Signature):
    """An `Execution` of the stationary side of a command, ahead of the datapath.

    With `drop` its weights, fetched for an expert that got no token, are thrown away. `allowed` says that the datapath
    has reached the command and nothing is on its way: what touches the scratchpad waits for it.
    """

    def __init__(self) -> None:
        super().__init__(dict(Execution().members.items()) | {"drop": Out(1), "allowed": Out(1)})


class Beats(wiring.Signature):
    """Beats of one MATMUL, a row's slice each, in every cycle with `beat.valid`.

    `command` stands until all has left the datapath (`Datapath.latency`). A row must not come back within
    `Datapath.PERIOD` cycles.
    """

    def __init__(self, config: Config):
        super().__init__({"command": Out(CommandLayout), "beat": Out(beat_layout(config))})


class Bases(wiring.Signature):
    """Byte addresses that a command's DMA is relative to, by its space."""

    def __init__(self) -> None:
        super().__init__({space.name.lower(): Out(ADDRESS_WIDTH) for space in Space})


class Sizes(wiring.Signature):
    """Bytes behind each of the `Bases`."""

    def __init__(self) -> None:
        super().__init__({space.name.lower(): Out(SIZE_WIDTH) for space in Space})


class Window(wiring.Signature):
    """Pages of memory that may be read and written, the first and the last."""

    def __init__(self) -> None:
        width = ADDRESS_WIDTH - exact_log2(WINDOW_PAGE)
        super().__init__({"first": Out(width), "last": Out(width)})


class Failure(wiring.Signature):
    """Why the machine cannot go on, while `valid`."""

    def __init__(self) -> None:
        super().__init__({"valid": Out(1), "code": Out(8), "detail": Out(32)})


def fail(m: Module, failure: wiring.PureInterface, code: int, detail: ValueLike) -> None:
    """From inside a state: say why, and stop for good."""
    m.d.comb += [failure.valid.eq(1), failure.code.eq(code), failure.detail.eq(detail)]
    m.next = "STOPPED"


# --- Within the sequencer ---


class CommandRead(wiring.Signature):
    """`ask` until `grant`; `command` is the one at `index` in the cycle after it.

    One a cycle is granted, to the first reader that asks.
    """

    def __init__(self, config: Config):
        super().__init__(
            {
                "ask": Out(1),
                "index": Out(range(config.command_depth)),
                "grant": In(1),
                "command": In(CommandLayout),
            }
        )


class CommandWrite(wiring.Signature):
    """A command at `index`, in every cycle with `valid`."""

    def __init__(self, config: Config):
        super().__init__(
            {
                "valid": Out(1),
                "index": Out(range(config.command_depth)),
                "command": Out(CommandLayout),
            }
        )


class Routes(wiring.Signature):
    """How many ROUTEs have begun and are done, as numbers that wrap."""

    def __init__(self) -> None:
        super().__init__({"begun": Out(ROUTES_WIDTH), "done": Out(ROUTES_WIDTH)})
