"""A LiteX SoC's UARTBone bridge as a byte stream without one: the protocol, memory, and a machine of `fake`."""

from collections.abc import Callable
from random import Random
from typing import Any

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import MAGIC, REGISTERS
from patchloom.host.device import Device, Region
from patchloom.host.errors import LinkError
from patchloom.host.transports.soc import SocMap, Step
from patchloom.host.transports.stream import Stream
from tests.host.fake import BASE, FakeDevice

REGISTERS_AT = 0x9000_0000
CONTROLLER = 0xF000_0000  # of the memory
NOTHING = 0xFFFF_FFFF  # what an unmapped address reads as
NAMES = {REGISTERS_AT + register.offset: name for name, register in REGISTERS.items()}
SETUP = tuple(
    Step(CONTROLLER + offset, value, cycles) for offset, value, cycles in ((0, 14, 1000), (4, 7, 0), (0, 1, 0))
)
MAP = SocMap("fake", 1_000_000, REGISTERS_AT, Region(BASE, 1 << 16), SETUP)


class Bridge:
    """The state machine of litex/soc/cores/uart.py, byte by byte. `now` is in seconds."""

    def __init__(self, machine: FakeDevice) -> None:
        self.machine, self.buffer, self.begun, self.address = machine, bytearray(), 0.0, 0
        self.controller: dict[int, int] = {}
        self.stores: list[int] = []  # addresses of memory

    def take(self, byte: int, now: float) -> bytes:
        """The answer to it."""
        if self.buffer and now - self.begun > 0.1:
            self.buffer.clear()
        if not self.buffer:
            self.begun = now
        self.buffer.append(byte)
        if len(self.buffer) < 6:
            return b""
        command, count, at = self.buffer[0], self.buffer[1], int.from_bytes(self.buffer[2:6], "big") * 4
        if command == 2:
            self.buffer.clear()
            return b"".join(self.load(at + 4 * i).to_bytes(4, "big") for i in range(count))
        if command != 1:
            self.buffer.clear()
        elif len(self.buffer) > 6 and (len(self.buffer) - 6) % 4 == 0:
            words = (len(self.buffer) - 6) // 4
            self.store(at + 4 * (words - 1), int.from_bytes(self.buffer[-4:], "big"))
            if words == count:
                self.buffer.clear()
        return b""

    def load(self, address: int) -> int:
        if address in NAMES:
            self.machine.advance()
            return self.machine.read(NAMES[address])
        if address in self.controller:
            return self.controller[address]
        at = address - BASE
        memory = self.machine.memory
        return int.from_bytes(memory[at : at + 4], "little") if 0 <= at < len(memory) else NOTHING

    def store(self, address: int, value: int) -> None:
        at = address - BASE
        if 0 <= at < len(self.machine.memory):
            self.stores.append(address)
            self.machine.memory[at : at + 4] = value.to_bytes(4, "little")
        elif address in NAMES and REGISTERS[NAMES[address]].access.value != "read":
            self.machine.write(NAMES[address], value)
        elif CONTROLLER <= address < CONTROLLER + 64:
            self.controller[address] = value


class FakeLink:
    """A way to a bridge, in simulated time. `gone` cuts it."""

    cut = "the line was cut"

    def __init__(self, config: Config, size: int) -> None:
        self.machine, self.gone = FakeDevice(config, size), False
        self.bridge = Bridge(self.machine)

    def reopen(self):
        self.check()

    def now(self):
        return self.machine.time

    def sleep(self, seconds):
        self.machine.time += seconds

    def close(self):
        self.gone = True

    def check(self):
        if self.gone:
            raise LinkError(self.cut)


def check_faults(link: FakeLink, device: Device, direction: str, fault: Callable[[], Any], size: int) -> None:
    """Memory is written and read, and a register read, though a new `fault` strikes each of them."""
    data = Random(0).randbytes(size)
    setattr(link, direction, fault())
    device.put(BASE, data)
    assert link.machine.memory[:size] == data
    setattr(link, direction, fault())
    assert device.get(BASE, size) == data
    setattr(link, direction, fault())
    assert device.read("magic") == MAGIC


class FakeStream(FakeLink, Stream):
    """A line to a bridge, in simulated time.

    `spoil(bytes)` is what becomes of what is sent, and `garble(bytes)` of what is answered. Bytes that come while an
    answer leaves are lost, as they are on a board.
    """

    def __init__(self, config: Config, size: int, rate: float = 300_000) -> None:
        super().__init__(config, size)
        self.rate, self.delay, self.sent = rate, 1.0, 0
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.garble: Callable[[bytes], bytes] = lambda data: data
        self.answer, self.late = bytearray(), 0

    def send(self, data, seconds):
        self.check()
        self.sent += len(data)
        answering = 0
        for byte in self.spoil(data):
            self.machine.time += 1 / self.rate
            if answering:
                answering -= 1
                continue
            if answer := self.bridge.take(byte, self.machine.time):
                answering = len(answer)
                self.answer += self.garble(answer)

    def receive(self, size, seconds):
        self.check()
        data = bytes(self.answer[:size])
        del self.answer[:size]
        self.machine.time += len(data) / self.rate
        if len(data) < size:
            self.machine.time += seconds
        return data

    def discard(self):
        self.check()
        self.answer.clear()
