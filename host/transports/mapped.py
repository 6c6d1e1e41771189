"""A machine mapped into this process: boards whose processing system runs the driver itself (Zynq).

Two homes: PYNQ's own classes; and without PYNQ what Linux has, UIO (linux/drivers/uio) for registers and interrupt and
u-dma-buf (github.com/ikwzm/udmabuf) for memory that the machine reaches. **No one has run either on silicon**: PYNQ's
classes ran on a double of its device with the RTL behind it.
"""

import mmap
import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import REGISTERS
from patchloom.host.device import PAGE, Device, Pages, Region, writable
from patchloom.host.errors import CapacityError, LinkError
from patchloom.host.transports.lock import NAME, lock_file, try_lock

SLOWEST_HZ = 25e6  # of a machine of which nobody says more


class Words(Protocol):
    """The machine's registers, 32 bits each, at byte offsets."""

    def read(self, offset: int) -> int: ...
    def write(self, offset: int, value: int) -> None: ...


class Memory(Protocol):
    """A piece of memory, contiguous as the machine sees it. `put` and `get` keep caches out of the way."""

    @property
    def region(self) -> Region: ...
    def put(self, offset: int, data: bytes) -> None: ...
    def get(self, offset: int, size: int) -> bytes: ...


class MappedDevice(Device):
    """Registers and memory that are mapped; `sleep` may end with the interrupt, `close` gives all back."""

    def __init__(
        self,
        registers: Words,
        allocate: Callable[[int], Memory],
        *,
        clock_hz: float = SLOWEST_HZ,
        sleep: Callable[[float], None] = time.sleep,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._registers, self._allocate, self._sleep, self._close = registers, allocate, sleep, close
        self.clock_hz = clock_hz
        self._pieces: list[Memory] = []

    def read(self, register: str) -> int:
        return self._registers.read(REGISTERS[register].offset)

    def write(self, register: str, value: int) -> None:
        self._registers.write(writable(register), int(value) & 0xFFFF_FFFF)  # PYNQ takes no subclass

    def put(self, address: int, data: bytes) -> None:
        piece, offset = self._place(address, len(data))
        piece.put(offset, data)

    def get(self, address: int, size: int) -> bytes:
        piece, offset = self._place(address, size)
        return piece.get(offset, size)

    def _place(self, address: int, size: int) -> tuple[Memory, int]:
        for piece in self._pieces:
            begin, end = piece.region.address, piece.region.address + piece.region.size
            if begin <= address <= address + size <= end:
                return piece, address - begin
        raise InputError(f"memory must be of a piece that was allocated, not {size} bytes at {address:#x}")

    def allocate(self, size: int) -> Region:
        """Given back when the device is closed."""
        piece = self._allocate(size)
        self._pieces.append(piece)
        return Region(piece.region.address, size)

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self._sleep(seconds)

    def close(self) -> None:
        self._pieces.clear()
        self._close()


# --- PYNQ ---


class _PynqMemory:
    """A buffer of `pynq.allocate`."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.region = Region(int(buffer.device_address), int(buffer.nbytes))

    def put(self, offset: int, data: bytes) -> None:
        part = self.buffer[offset : offset + len(data)]
        part[:] = np.frombuffer(data, np.uint8)
        part.flush()

    def get(self, offset: int, size: int) -> bytes:
        part = self.buffer[offset : offset + size]
        part.invalidate()
        return bytes(part.tobytes())


def pynq_device(bitstream: Path, registers: int, clock_hz: float, target: Any = None) -> MappedDevice:
    """Load a bitstream by PYNQ, and open its machine, whose registers are at an address.

    `target` is PYNQ's device, its active one by default. PYNQ needs no .hwh for this. Raises `LinkError` if another
    process has the machine.
    """
    import pynq  # noqa: PLC0415 - only where it is installed

    with ExitStack() as opened:
        opened.callback(os.close, lock_file(f"pynq-{registers:x}"))
        pynq.Bitstream(str(bitstream), device=target).download()
        words = pynq.MMIO(registers, PAGE, device=target)

        def allocate(size: int) -> _PynqMemory:
            try:
                return _PynqMemory(pynq.allocate((size,), dtype="u1", target=target))
            except (MemoryError, RuntimeError) as error:
                raise CapacityError(f"PYNQ has no {size} bytes of contiguous memory left: {error}") from error

        return MappedDevice(words, allocate, clock_hz=clock_hz, close=opened.pop_all().close)


# --- UIO and u-dma-buf ---


class _Mapping:
    """A device file, mapped for the length that sysfs states; uncached."""

    def __init__(self, file: Path, size: int) -> None:
        self.path = file
        try:
            self.file = os.open(file, os.O_RDWR | os.O_SYNC)
            self.map = mmap.mmap(self.file, size)
        except (OSError, ValueError) as error:
            raise LinkError(f"{file} must be a device of {size} bytes to map, and is not: {error}") from error

    def close(self) -> None:
        os.close(self.file)  # the mapping ends when nobody holds a view of it


class _Uio:
    """Registers and interrupt of a UIO device."""

    def __init__(self, mapping: _Mapping) -> None:
        self.mapping = mapping
        self.words = np.frombuffer(mapping.map, np.uint32)  # one access of 32 bits each

    def read(self, offset: int) -> int:
        return int(self.words[offset // 4])

    def write(self, offset: int, value: int) -> None:
        self.words[offset // 4] = value

    def sleep(self, seconds: float) -> None:
        """Until the interrupt at most; the kernel masks it when it comes, and is asked for it again here."""
        try:
            os.write(self.mapping.file, (1).to_bytes(4, "little"))
        except OSError:  # a device without an interrupt
            time.sleep(seconds)
            return
        if select.select([self.mapping.file], [], [], seconds)[0]:
            os.read(self.mapping.file, 4)


class _DmaBuffer:
    """A piece of a u-dma-buf."""

    def __init__(self, mapping: _Mapping, at: int, region: Region) -> None:
        self.bytes = np.frombuffer(mapping.map, np.uint8)[at : at + region.size]
        self.region = region

    def put(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def get(self, offset: int, size: int) -> bytes:
        return self.bytes[offset : offset + size].tobytes()


def uio_device(name: str = NAME, root: Path = Path("/")) -> MappedDevice:
    """The machine of the UIO device of this name, with the first u-dma-buf for its memory.

    Raises `LinkError` where one of them is missing, or another process has the machine.
    """
    found = _class_entry(root, "uio", lambda entry: (entry / "name").read_text().strip() == name, f"is named {name}")
    memory = _class_entry(root, "u-dma-buf", lambda entry: True, "is there: load its kernel module with a size")
    base, size = int((memory / "phys_addr").read_text(), 0), int((memory / "size").read_text())
    with ExitStack() as opened:
        registers = _Mapping(root / "dev" / found.name, int((found / "maps/map0/size").read_text(), 16))
        opened.callback(registers.close)
        if holder := try_lock(registers.file):
            raise LinkError(f"{registers.path} must be nobody else's: {holder} has it")
        buffer = _Mapping(root / "dev" / memory.name, size)
        opened.callback(buffer.close)

        pages, uio = Pages(Region(base, size), str(buffer.path)), _Uio(registers)

        def allocate(wanted: int) -> _DmaBuffer:
            region = pages.take(wanted)
            return _DmaBuffer(buffer, region.address - base, region)

        return MappedDevice(uio, allocate, sleep=uio.sleep, close=opened.pop_all().close)


def _class_entry(root: Path, kind: str, fits: Callable[[Path], bool], rule: str) -> Path:
    """A device that Linux knows."""
    places = sorted((root / "sys/class" / kind).glob("*"))
    for entry in places:
        if fits(entry):
            return entry
    known = f"; there are {', '.join(entry.name for entry in places)}" if places else ""
    raise LinkError(f"no {kind} device {rule}{known}")
