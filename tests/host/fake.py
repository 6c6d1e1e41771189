"""A machine that is a dictionary of registers, a piece of memory, and one thing that it can do: copy."""

import zlib

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import MAGIC, REGISTERS, VERSION, Access, Control, Status
from patchloom.host.device import Device, Region
from patchloom.host.errors import RegisterError

BASE = 0x4000_0000


class FakeDevice(Device):
    """Input region to output region. A test breaks it by what it puts into `registers`, `late` and `fate`.

    `fate(device)` takes the place of a frame, whose settings are `running`; `late` is how many seconds one takes.
    """

    clock_hz = 1e6

    def __init__(self, config: Config, size: int):
        self.memory, self.free, self.size, self.time, self.late = bytearray(1 << 16), 0, size, 0.0, 0.001
        self.registers = {name: register.reset or 0 for name, register in REGISTERS.items()}
        self.registers |= {"magic": MAGIC, "version": VERSION, "fingerprint": config.fingerprint}
        self.puts: list[tuple[int, int]] = []  # address, size
        self.resets = 0
        self.running: dict[str, int] = {}  # registers, as a start has taken them
        self.ends = 0.0
        self.fate = FakeDevice.copy

    def read(self, register):
        return self.registers[register]

    def write(self, register, value):
        if REGISTERS[register].access == Access.READ:
            raise RegisterError(f"{register} cannot be written")
        status = self.registers["status"]
        if register == "irq_status":
            self.registers[register] &= ~value
        elif register != "control":
            if not (status & Status.QUEUED and REGISTERS[register].access == Access.LATCHED):
                self.registers[register] = value
        elif value & Control.SOFT_RESET:
            self.resets += 1
            self.registers |= {"status": 0, "irq_status": 0, "epoch": 0}
        elif status & Status.ERROR:
            pass
        elif value & Control.START:
            if status & Status.BUSY:
                self.registers["status"] |= Status.QUEUED
            else:
                self._begin(self.time)
        elif value & Control.CHECKSUM and not status & Status.BUSY:
            at = self.registers["program_base_lo"] - BASE
            self.registers["checksum"] = zlib.crc32(self.memory[at : at + self.registers["program_bytes"]])

    def put(self, address, data):
        self.puts.append((address, len(data)))
        self.memory[address - BASE : address - BASE + len(data)] = data

    def get(self, address, size):
        return bytes(self.memory[address - BASE :][:size])

    def allocate(self, size):
        start, self.free = self.free, self.free + -(-size // 64) * 64
        return Region(BASE + start, size)

    def sleep(self, seconds):
        self.time += seconds

    def now(self):
        return self.time

    def wait(self, seconds, expected=0.0):
        if self.registers["status"] & Status.BUSY and self.ends <= self.time + seconds:
            self.time = max(self.time, self.ends)
            self.advance()
        if not self.registers["irq_status"]:
            self.time += seconds
            raise self.overdue(f"{seconds:g} s")

    def _begin(self, now):
        self.running, self.ends = dict(self.registers), now + self.late
        self.registers["status"] = Status.BUSY

    def advance(self):
        """End the frame whose time has come, if the end before is known."""
        status = self.registers["status"]
        if not status & Status.BUSY or self.ends > self.time or self.registers["irq_status"]:
            return
        self.registers |= {"status": Status.DONE, "irq_status": 1, "cycles_lo": 77, "cycles_hi": 3, "saturations": 3}
        self.registers["frames"] += 1
        self.fate(self)
        if self.registers["status"] & Status.ERROR:
            self.registers["frames"] -= 1
        elif status & Status.QUEUED:
            self._begin(self.ends)

    def close(self):
        self.memory = bytearray()

    def copy(self):
        source, target = (self.running[f"{name}_base_lo"] - BASE for name in ("input", "output"))
        self.memory[target : target + self.size] = self.memory[source : source + self.size]
