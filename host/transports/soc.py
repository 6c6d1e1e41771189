"""A machine in a LiteX SoC, over a link: a home of `host.device.Device`."""

import json
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import MAGIC, REGISTERS
from patchloom.host.device import Device, Pages, Region, writable
from patchloom.host.transports.bus import Bus
from patchloom.host.transports.etherbone import PATIENCE, Etherbone
from patchloom.host.transports.levelling import Levelling, level
from patchloom.host.transports.stream import Datagrams, Stream
from patchloom.host.transports.uartbone import GIVES_UP, UartBone

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11; the driver runs on 3.10, too


@dataclass(frozen=True)
class Step:
    """A word to be written, and clock cycles to wait for afterwards."""

    address: int
    value: int
    cycles: int


@dataclass(frozen=True)
class SocMap:
    """What a driver must know of a SoC; whoever builds one writes it as JSON. Addresses and sizes are in bytes."""

    board: str
    clock_hz: int
    registers: int  # address of the machine's
    memory: Region  # as the machine and the link see it
    setup: tuple[Step, ...]  # initialises the memory's controller; the last word reads as it was written if it was run
    levelling: Levelling | None = None  # of the memory, before that last word
    baud: int = 0  # of its UART
    gives_up: float = GIVES_UP  # seconds from a command's first byte, after which UARTBone waits for another

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Self":
        try:
            return cls.parse(json.loads(path.read_text()))
        except OSError as error:
            raise InputError(f"{path} must be the map of a SoC, and cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} must be the map of a SoC as its build wrote it, and is not: {error}") from error

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "Self":
        memory, setup = Region(**data["memory"]), tuple(Step(**step) for step in data["setup"])
        levelling = data["levelling"] and Levelling(**data["levelling"])
        return cls(**{**data, "memory": memory, "setup": setup, "levelling": levelling})


class SocDevice(Device):
    """The machine of a SoC behind its link. Time is the link's.

    The memory is initialised if nobody has done it. The machine's interrupt does not reach the link: its register is
    asked for again and again, ever more seldom.
    """

    def __init__(self, soc: SocMap, bus: Bus) -> None:
        self.soc, self.bus, self.clock_hz, self._pages = soc, bus, soc.clock_hz, Pages(soc.memory)
        self._set_up()

    @classmethod
    def uart(cls, soc: SocMap, stream: Stream) -> "Self":
        """Over UARTBone."""
        return cls(soc, UartBone(stream, _witness(soc), soc.gives_up))

    @classmethod
    def etherbone(cls, soc: SocMap, packets: Datagrams, patience: float = PATIENCE) -> "Self":
        """Over Etherbone; `patience` is seconds for an answer."""
        return cls(soc, Etherbone(packets, _witness(soc), patience))

    def _set_up(self) -> None:
        steps = self.soc.setup
        if not steps or self.bus.read(steps[-1].address) == steps[-1].value:
            return
        for step in steps[:-1]:
            self._do(step)
        if self.soc.levelling:
            level(self.soc.levelling, self.bus)
        self._do(steps[-1])

    def _do(self, step: Step) -> None:
        self.bus.write(step.address, step.value)
        if step.cycles:
            self.sleep(step.cycles / self.soc.clock_hz)

    def read(self, register: str) -> int:
        return self.bus.read(self.soc.registers + REGISTERS[register].offset)

    def write(self, register: str, value: int) -> None:
        self.bus.write(self.soc.registers + writable(register), value & 0xFFFF_FFFF)

    def read_all(self) -> dict[str, int]:
        words = self.bus.fetch(self.soc.registers, len(REGISTERS))
        return dict(zip(REGISTERS, map(int, words), strict=True))

    def write_all(self, values: dict[str, int]) -> None:
        """In as few bursts as there are gaps, each read back."""
        offsets = {REGISTERS[name].offset: value for name, value in values.items()}
        for first in sorted(offset for offset in offsets if offset - 4 not in offsets):
            run = list(takewhile(offsets.__contains__, count(first, 4)))
            self.bus.store(self.soc.registers + first, np.array([offsets[offset] for offset in run], np.uint32))

    def put(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        whole = len(data) & ~3
        if whole != len(data):  # the last word keeps its other bytes
            rest = self.bus.fetch(address + whole, 1).astype("<u4").tobytes()
            data = data + rest[len(data) - whole :]
        self.bus.store(address, np.frombuffer(data, "<u4").astype(np.uint32))

    def get(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return self.bus.fetch(address, -(-size // 4)).astype("<u4").tobytes()[:size]

    def _check(self, address: int, size: int) -> None:
        memory = self.soc.memory
        if not memory.address <= address <= address + size <= memory.address + memory.size:
            rule = f"be of the {memory.size} bytes from {memory.address:#x} on"
            raise InputError(f"memory must {rule}, not {size} bytes at {address:#x}")

    def allocate(self, size: int) -> Region:
        """At a page boundary; never given back."""
        return self._pages.take(size)

    @property
    def doubts(self) -> int:
        return self.bus.doubts

    @property
    def lost(self) -> bool:
        return self.bus.lost

    def reopen(self) -> None:
        """Also the memory is initialised again if the board was without power."""
        self.bus.reopen()
        self._set_up()

    def now(self) -> float:
        return self.bus.link.now()

    def sleep(self, seconds: float) -> None:
        self.bus.link.sleep(seconds)

    def close(self) -> None:
        self.bus.link.close()


def _witness(soc: SocMap) -> tuple[int, int]:
    return soc.registers + REGISTERS["magic"].offset, MAGIC
