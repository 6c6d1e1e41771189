"""What a driver needs of a machine, wherever it is: registers, memory, an interrupt."""

import zlib
from abc import abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from patchloom.compiler.machine.registers import REGISTERS, RESET_LIMIT, Access, Control, Status, parts
from patchloom.host.errors import CapacityError, DeadlineError, LinkError, RegisterError

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11; the driver runs on 3.10, too

PAGE = 4096
RESET_SECONDS = 0.01  # the memory's answers to what is under way
CHECKSUM_CYCLES = 16  # of a byte that the machine sums, whatever the memory;
CHECKSUM_SECONDS = 5.0  # beside: what answers may be a simulation
PATIENCE = 1 / 16  # a wait looks again after this share of its distance to when the interrupt is expected,
LONGEST_PAUSE = 0.02  # and after this at the latest, in seconds
SHORTEST_PAUSE = 0.0002


@dataclass(frozen=True)
class Region:
    """A piece of the device's memory, in bytes."""

    address: int
    size: int


def halves(name: str, value: int) -> dict[str, int]:
    """Values of a register of 64 bits, by its two parts."""
    low, high = parts(name, 64)
    return {low: value & 0xFFFF_FFFF, high: value >> 32}


class Pages:
    """Memory that is given out from its beginning on, at page boundaries, and never taken back."""

    def __init__(self, memory: Region, name: str = "the device's memory") -> None:
        self.memory, self.name, self._taken = memory, name, 0

    def take(self, size: int) -> Region:
        """Raises `CapacityError`."""
        if self._taken + size > self.memory.size:
            raise CapacityError(f"{self.name} has {self.memory.size - self._taken} bytes left, not {size}")
        start, self._taken = self._taken, -(-(self._taken + size) // PAGE) * PAGE
        return Region(self.memory.address + start, size)


def writable(register: str) -> int:
    """Its offset; raises `RegisterError`, as a bus that carries no answer cannot."""
    if REGISTERS[register].access == Access.READ:
        raise RegisterError(f"register {register} cannot be written")
    return REGISTERS[register].offset


class Device(Protocol):
    """A machine and its memory. A home (a simulation, a link, a mapped bus) is a subclass.

    Memory is copied in and out, never shown: a link could not. Once `put` has returned, the machine reads what was
    put; `get` gives what the machine wrote before its interrupt.
    """

    clock_hz: float  # of the machine, by the clock of `now`

    @abstractmethod
    def read(self, register: str) -> int:
        """One of `compiler.machine.registers`; raises `RegisterError`."""

    @abstractmethod
    def write(self, register: str, value: int) -> None:
        """Raises `RegisterError`."""

    @abstractmethod
    def put(self, address: int, data: bytes) -> None: ...

    @abstractmethod
    def get(self, address: int, size: int) -> bytes: ...

    @abstractmethod
    def allocate(self, size: int) -> Region:
        """Memory that nobody else uses, aligned for every bus, until `close`; raises `CapacityError`."""

    @abstractmethod
    def now(self) -> float:
        """Seconds of the clock that deadlines are measured by."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """By the clock of `now`; an interrupt may end it."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def doubts(self) -> int:
        """How often something was written that may have gone elsewhere; only a link can do that."""
        return 0

    @property
    def lost(self) -> bool:
        """Whether the link failed, and must be opened again."""
        return False

    def reopen(self) -> None:
        """Raises `LinkError`. Afterwards it may be another machine, with anything in its memory."""
        if self.lost:
            raise LinkError("the link to the machine was lost, and cannot be opened again")

    def crc(self, region: Region) -> int:
        """CRC32 of memory, as zlib's: by the machine where it is idle, else of what is moved here.

        Raises `DeadlineError`, or `LinkError` if the machine did not do as it was told.
        """
        if region.address % PAGE or self.read("status") & ~Status.DONE:
            return zlib.crc32(self.get(region.address, region.size))
        if self._checksum(Region(region.address, 0)):  # so that the next one's is not an earlier one's
            raise LinkError("the machine did not begin a checksum: the link lost or changed what it was told")
        return self._checksum(region)

    def _checksum(self, region: Region) -> int:
        """By an idle machine."""
        settings = {**halves("program_base", region.address), "program_bytes": region.size}
        self.write_all(settings)
        self.write("control", Control.CHECKSUM)
        limit = self.now() + CHECKSUM_SECONDS + region.size * CHECKSUM_CYCLES / self.clock_hz
        while Status(found := self.read("status")) & Status.BUSY:
            if self.now() > limit:
                raise self.overdue("the time that a checksum takes")
        if found & ~Status.DONE or any(self.read(name) != value for name, value in settings.items()):
            raise LinkError(
                f"the checksum of {region.size} bytes at {region.address:#x} failed, status {Status(found)!r}"
            )
        return self.read("checksum")

    def wait(self, seconds: float, expected: float = 0.0) -> None:
        """Until the interrupt, looking again and again; raises `DeadlineError`.

        It is hardly to be expected before `expected` seconds.
        """
        begun = self.now()
        while not self.read("irq_status"):
            passed = self.now() - begun
            if passed >= seconds:
                raise self.overdue(f"{seconds:g} s")
            pause = max(SHORTEST_PAUSE, abs(passed - expected) * PATIENCE)
            self.sleep(min(pause, LONGEST_PAUSE, seconds - passed))

    def read_all(self) -> dict[str, int]:
        """All registers of an idle machine."""
        return {name: self.read(name) for name in REGISTERS}

    def write_all(self, values: dict[str, int]) -> None:
        """Registers that keep what is written, in any order."""
        for name, value in values.items():
            self.write(name, value)

    def reset(self, seconds: float = RESET_SECONDS) -> None:
        """Soft reset: whatever the machine did, it is idle afterwards. Raises `DeadlineError`.

        The machine waits for the memory's answers to what was under way, and gives up after `RESET_LIMIT` cycles.
        """
        limit = self.now() + seconds + RESET_LIMIT / self.clock_hz
        self.write("control", Control.SOFT_RESET)
        while (status := self.read("status")) & (Status.RESETTING | Status.OWED):
            if self.now() > limit:
                raise DeadlineError(
                    f"the soft reset has not made the machine idle, status {Status(status)!r}: the memory owes "
                    "answers. Reset its bus, load the bitstream again, or switch the board off and on"
                )

    def overdue(self, limit: str) -> DeadlineError:
        """The error of a `wait`: how far the machine is."""
        status, command = Status(self.read("status")), self.read("command_index")
        return DeadlineError(f"no interrupt within {limit}; status {status!r}, command {command}")

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
