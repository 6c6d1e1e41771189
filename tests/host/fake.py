"""A machine that is a dictionary of registers, a piece of memory, and one thing that it can do: copy."""

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import MAGIC, REGISTERS, VERSION, Access, Control, Status
from patchloom.host.device import Device, Region
from patchloom.host.errors import RegisterError

BASE = 0x4000_0000


class FakeDevice(Device):
    """Input region to output region. A test breaks it by what it puts into `registers`, `late` and `fate`.

    `fate(device)` takes the place of a frame; `late` is how many seconds one takes.
    """

    clock_hz = 1e6

    def __init__(self, config: Config, size: int):
        self.memory, self.free, self.size, self.time, self.late = bytearray(1 << 16), 0, size, 0.0, 0.001
        self.registers = {name: register.reset or 0 for name, register in REGISTERS.items()}
        self.registers |= {"magic": MAGIC, "version": VERSION, "fingerprint": config.fingerprint}
        self.puts: list[tuple[int, int]] = []  # address, size
        self.resets = 0
        self.fate = FakeDevice.copy

    def read(self, register):
        return self.registers[register]

    def write(self, register, value):
        if REGISTERS[register].access == Access.READ:
            raise RegisterError(f"{register} cannot be written")
        if register == "irq_status":
            self.registers[register] &= ~value
        elif register != "control":
            self.registers[register] = value
        elif value & Control.SOFT_RESET:
            self.resets += 1
            self.registers |= {"status": 0, "irq_status": 0}
        elif value & Control.START:
            self.registers["status"] = Status.BUSY
            self.ends = self.time + self.late

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
        if self.registers["irq_status"]:
            return
        if not self.registers["status"] & Status.BUSY or self.ends > self.time + seconds:
            self.time += seconds
            raise self.overdue(f"{seconds:g} s")
        self.time = max(self.time, self.ends)
        self.registers |= {"status": Status.DONE, "irq_status": 1, "cycles_lo": 77, "cycles_hi": 3, "saturations": 3}
        self.fate(self)

    def close(self):
        self.memory = bytearray()

    def copy(self):
        source, target = (self.registers[f"{name}_base_lo"] - BASE for name in ("input", "output"))
        self.memory[target : target + self.size] = self.memory[source : source + self.size]
