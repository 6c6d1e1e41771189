"""The register map: one table for RTL, driver and documentation."""

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag

MAGIC = 0x4D4F4C50  # "PLOM" in memory
VERSION = 1 << 16 | 1  # of registers and command set: major, minor
DIGEST_BITS = 128
RESET_CYCLES = 8  # the least a soft reset lasts


class ErrorCode(IntEnum):
    """Why the machine stopped; the comment tells what the detail register holds."""

    NONE = 0
    READ_SLVERR = 1  # command index
    READ_DECERR = 2  # command index
    WRITE_SLVERR = 3  # command index
    WRITE_DECERR = 4  # command index
    BAD_COMMAND = 5  # kind
    WRONG_CONFIG = 6  # fingerprint the program was made for
    WATCHDOG = 7  # limit
    BAD_TASK = 8  # task


class Control(IntFlag):
    START = 1  # begin the task; reads as 0, ignored while busy, after an error and during a soft reset
    SOFT_RESET = 2  # stop whatever runs, clear status; reads as 0
    IRQ_ENABLE = 4


class Status(IntFlag):
    BUSY = 1
    DONE = 2  # the last task ended well; cleared by start and soft reset
    ERROR = 4  # cleared by soft reset
    RESETTING = 8  # a soft reset waits for the memory's answers


class Interrupt(IntFlag):
    DONE = 1
    ERROR = 2


class Access(Enum):
    READ = "read"
    WRITE = "read/write"
    CLEAR = "read, write 1 to clear"


@dataclass(frozen=True)
class Register:
    name: str
    offset: int  # bytes
    access: Access
    width: int
    reset: int | None  # None: see meaning
    meaning: str


# Of a value's parts by how many there are, lowest first.
SUFFIXES = {1: ("",), 2: ("_lo", "_hi"), 4: ("_0", "_1", "_2", "_3")}


def parts(name: str, width: int) -> list[str]:
    """The registers of a value."""
    return [name + suffix for suffix in SUFFIXES[-(-width // 32)]]


def _map(*rows: tuple[str, Access, int, int | None, str]) -> dict[str, Register]:
    """Registers one after another, 32 bits each; a wider one has several."""
    registers: dict[str, Register] = {}
    for name, access, width, reset, meaning in rows:
        for part in parts(name, width):
            registers[part] = Register(part, 4 * len(registers), access, min(width, 32), reset, meaning)
    return registers


REGISTERS = _map(
    ("magic", Access.READ, 32, MAGIC, "identifies the machine"),
    ("version", Access.READ, 32, VERSION, "of registers and command set: major in the upper half, minor in the lower"),
    ("fingerprint", Access.READ, 32, None, "Config.fingerprint; programs made for another one are refused"),
    ("control", Access.WRITE, 3, 0, "Control bits"),
    ("status", Access.READ, 4, 0, "Status bits"),
    ("irq_status", Access.CLEAR, 2, 0, "Interrupt bits; the interrupt line is high while one is set and enabled"),
    ("error_code", Access.READ, 8, 0, "ErrorCode of the first error"),
    ("error_detail", Access.READ, 32, 0, "depends on the error code"),
    ("task", Access.WRITE, 8, 0, "number of the task that start begins"),
    ("watchdog", Access.WRITE, 32, 0, "cycles without progress until error WATCHDOG; 0 = never"),
    ("program_base", Access.WRITE, 64, 0, "address of the program's image; a multiple of the bus beat, as all bases"),
    ("input_base", Access.WRITE, 64, 0, "address of the input region"),
    ("output_base", Access.WRITE, 64, 0, "address of the output region"),
    ("cycles", Access.READ, 64, 0, "cycles busy since start; reading the lower half holds the upper one for its read"),
    ("stall_weights", Access.READ, 32, 0, "cycles since start in which the array waited for weights"),
    ("stall_writes", Access.READ, 32, 0, "cycles since start in which stores waited for the memory"),
    ("saturations", Access.READ, 32, 0, "values limited since start; stays at the highest number"),
    ("command_index", Access.READ, 16, 0, "command in work"),
    ("digest", Access.READ, DIGEST_BITS, None, "of the build, as whoever built it states; 0 = unknown"),
)


def markdown() -> str:
    """The map as a table for the documentation."""
    rows = ["| offset | register | access | bits | reset | meaning |", "|---|---|---|---|---|---|"]
    for r in REGISTERS.values():
        reset = "-" if r.reset is None else f"{r.reset:#x}"
        rows.append(f"| {r.offset:#04x} | {r.name} | {r.access.value} | {r.width} | {reset} | {r.meaning} |")
    for flags in (Control, Status, Interrupt):
        rows += ["", f"{flags.__name__}: " + ", ".join(f"{f.name} = {f.value}" for f in flags)]
    rows += ["", "ErrorCode: " + ", ".join(f"{e.name} = {e.value}" for e in ErrorCode)]
    return "\n".join(rows) + "\n"
