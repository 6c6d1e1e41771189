"""What the compiler makes and every engine runs: commands, memory image, formats, descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import COMMAND_BYTES, Command
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.layout import Weights, unpack
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.tables import ENTRY_BITS, Table


class ProgramError(Error, ValueError):
    """A Program that no machine should run, or a directory that holds none: every reason, one per line."""


ELEMENT_BYTES = ELEMENT_WIDTH // 8
NAME_RULE = "a name of 1 to 100 printable characters that is no path upwards or from the root"


def is_name(name: str) -> bool:
    """Names of tasks and ports are free text that files, tables and terminals can hold."""
    parts = name.replace("\\", "/").split("/")
    return 1 <= len(name) <= 100 and name.isprintable() and {"", ".", ".."}.isdisjoint(parts)


@dataclass(frozen=True, eq=False)
class Port:
    """One user tensor and where its elements lie in the input or output region, 16 bits an element, 8 if packed.

    Inputs: region element i is user element `index[i]`, -1 is zero. Outputs: user element i is region
    element `index[i]`. An element's value is `integer * 2**-fraction`.
    """

    name: str
    shape: tuple[int, ...]  # of the user's tensor, one sample
    offset: int  # bytes from the region's base, a multiple of the bus beat
    elements: int  # of the region, padding included
    fraction: int
    width: int  # bits, 8 or 16: saturation limits
    index: Ints = field(repr=False)
    preprocessing: Preprocessing | None = None  # of an input that takes pictures
    packed: bool = False  # an input of 8 bits whose elements are bytes

    @property
    def element_bytes(self) -> int:
        return 1 if self.packed else ELEMENT_BYTES

    @property
    def end(self) -> int:
        """Bytes from the region's base."""
        return self.offset + self.element_bytes * self.elements

    def part(self, region: NDArray[np.int16]) -> NDArray[np.signedinteger]:
        """Its elements in a region, as they lie there: what is written into them is written there."""
        octets = region.view(np.int8)[self.offset : self.end]
        return octets if self.packed else octets.view(np.int16)


@dataclass(frozen=True)
class Buffer:
    """Where a tensor is while commands `first` to `last` run; for people and debuggers."""

    name: str
    address: int  # first chunk
    chunks: int
    first: int
    last: int


@dataclass(frozen=True)
class Piece:
    """Rows of a layer's result, whole once a command has run; `columns` are runs: (first, count, place in the row)."""

    command: int
    row: int  # of the result
    rows: int
    address: int  # chunk
    stride: int  # chunks
    packed: bool
    columns: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Layer:
    """A tensor of the model and what became of it, value = integer * scale; for people and reports."""

    name: str  # as in the model
    kind: str
    where: str  # file:line of the user's, if there is one
    shape: tuple[int, int]  # rows, columns
    width: int  # bits of an integer
    scale: float
    low: float  # of its values in calibration
    high: float
    precision: str  # of its product, such as w8a16; empty if it has none
    macs: int
    commands: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()  # none of what is loaded or stored


@dataclass(frozen=True, eq=False)
class Golden:
    """One frame as the reference interpreter ran it: what every machine must give."""

    input: NDArray[np.int16] = field(repr=False)  # the input region's elements
    output: NDArray[np.int16] = field(repr=False)
    saturations: int


@dataclass(frozen=True, eq=False)
class Task:
    """Commands and ports of one task; switching task is starting another of these."""

    name: str
    commands: tuple[Command, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_bytes: int  # size of the input region
    output_bytes: int
    macs: int  # multiply-accumulates of one frame: the model's, without padding or digit passes
    notes: tuple[str, ...] = ()  # one per command: what it computes, in the model's names
    buffers: tuple[Buffer, ...] = ()
    experts: tuple[tuple[int, ...], ...] = ()  # per ROUTE, the model's number of each queue's expert
    golden: Golden | None = None
    layers: tuple[Layer, ...] = ()  # each after those that it reads; of Programs of before there are none


@dataclass(frozen=True)
class Segment:
    """A named part of the memory image."""

    name: str
    offset: int  # bytes
    length: int


@dataclass(frozen=True, eq=False)
class Program:
    """A scheduled model. `image` begins with `command_depth` commands per task, weights follow."""

    config: Config
    precision: str
    tasks: tuple[Task, ...]
    image: bytes = field(repr=False)
    segments: tuple[Segment, ...] = ()  # of the image, in order
    board: str = ""  # its name, if the Config was made for one

    def task(self, name: str | None) -> Task:
        """The named task; None means the only one. Raises `KeyError` naming those there are."""
        if name is None and len(self.tasks) == 1:
            return self.tasks[0]
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"task must be one of {', '.join(t.name for t in self.tasks)}, not {name!r}")

    @cached_property
    def _stationary(self) -> dict[tuple[int, ...], Weights]:
        return {}

    def weights(self, command: Command) -> Weights:
        """The stationary operand of a MATMUL from memory, unpacked from the image once."""
        key = command.dma_address, command.depth, command.columns, command.b_digits
        if key not in self._stationary:
            end = command.dma_address + command.dma_beats * self.config.beat_bytes
            raw = self.image[command.dma_address : end]
            self._stationary[key] = unpack(self.config, raw, command.depth, command.columns, command.b_digits)
        return self._stationary[key]

    def table(self, command: Command) -> Table:
        """What a TABLE loads."""
        return Table("", self.image[command.dma_address :][: command.rows * ENTRY_BITS // 8])


def command_table(config: Config, tasks: list[tuple[Command, ...]]) -> bytes:
    """The head of an image: the machine starts task t at byte `t * command_depth * COMMAND_BYTES`."""
    pitch = config.command_depth * COMMAND_BYTES
    return b"".join(b"".join(c.encode() for c in commands).ljust(pitch, b"\0") for commands in tasks)


def one_input(ports: Sequence[Port]) -> Port:
    """Several layouts of one user input, all packed or none, as one port: from the first one's beginning to the end."""
    first, size = min(port.offset for port in ports), ports[0].element_bytes
    index = np.full((max(port.end for port in ports) - first) // size, -1, np.int64)
    for port in ports:
        index[(port.offset - first) // size :][: port.elements] = port.index
    return replace(ports[0], offset=first, elements=len(index), index=index)


def to_region(port: Port, value: NDArray[np.floating]) -> tuple[NDArray[np.int16], int]:
    """Quantise one user tensor into its region. Returns (elements, how many saturated)."""
    limit = 1 << (port.width - 1)
    flat = np.append(np.floor(np.asarray(value, np.float64).reshape(-1) * 2.0**port.fraction + 0.5), 0)
    clipped = np.clip(flat, -limit, limit - 1)
    return clipped[port.index].astype(np.int16), int(np.count_nonzero((flat != clipped)[port.index]))


def from_region(port: Port, region: NDArray[np.int16]) -> NDArray[np.int16]:
    """One user tensor's integers from the output region."""
    return port.part(region)[port.index].astype(np.int16).reshape(port.shape)
