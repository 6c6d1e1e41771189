"""The register map: one table for RTL, driver and documentation."""

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag

MAGIC = 0x4D4F4C50  # "PLOM" in memory
VERSION = 4 << 16  # of registers and command set: major, minor
DIGEST_BITS = 128
RESET_CYCLES = 8  # the least a soft reset lasts
RESET_LIMIT = 1 << 16  # cycles after which it ends, whatever the memory owes
WINDOW_PAGE = 4096  # bytes: what the memory window is made of


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
    BEYOND_REGION = 8  # index of the command whose transfer it is; nothing of the task has been executed
    READ_OUTSIDE = 9  # of the memory window; command index
    WRITE_OUTSIDE = 10  # of the memory window; command index
    UNREAD = 11  # the task has ended and something that was read for it is left; command index


class Control(IntFlag):
    START = 1  # begin the task, or queue it; reads as 0, ignored while one is queued, after an error, RESETTING, OWED
    SOFT_RESET = 2  # stop whatever runs and waits, clear status and epoch; reads as 0
    IRQ_ENABLE = 4
    CHECKSUM = 8  # begin the checksum of the program region; reads as 0, ignored while busy and where START is


class Status(IntFlag):
    BUSY = 1  # a task or a checksum runs, or a task's end waits for Interrupt.DONE to be cleared
    DONE = 2  # every task that was started has ended well; cleared by start and soft reset
    ERROR = 4  # the queue is dropped; cleared by soft reset
    RESETTING = 8  # a soft reset waits for the memory's answers
    QUEUED = 16  # a task waits for the end of the one that runs; its settings cannot be written
    OWED = 32  # the memory has not answered by the end of a soft reset: if it never does, the bus must be reset


class Interrupt(IntFlag):
    DONE = 1  # a task has ended well; the next one's end waits until this is cleared
    ERROR = 2


class Access(Enum):
    READ = "read"
    WRITE = "read/write"
    LATCHED = "read/write, latched"  # by START; refused while QUEUED
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
        for position, part in enumerate(parts(name, width)):
            begins = None if reset is None else reset >> 32 * position & 0xFFFF_FFFF
            registers[part] = Register(part, 4 * len(registers), access, min(width, 32), begins, meaning)
    return registers


REGISTERS = _map(
    ("magic", Access.READ, 32, MAGIC, "identifies the machine"),
    ("version", Access.READ, 32, VERSION, "of registers and command set: major in the upper half, minor in the lower"),
    ("fingerprint", Access.READ, 32, None, "Config.fingerprint; programs made for another one are refused"),
    ("control", Access.WRITE, 4, 0, "Control bits"),
    ("status", Access.READ, 6, 0, "Status bits"),
    ("irq_status", Access.CLEAR, 2, 0, "Interrupt bits; the interrupt line is high while one is set and enabled"),
    ("error_code", Access.READ, 8, 0, "ErrorCode of the first error"),
    ("error_detail", Access.READ, 32, 0, "depends on the error code"),
    ("task", Access.LATCHED, 8, 0, "number of the task that start begins"),
    ("watchdog", Access.WRITE, 32, 1 << 28, "cycles of one command until error WATCHDOG; 0 = never"),
    ("program_base", Access.LATCHED, 64, 0, "address of the program's image; a multiple of the bus beat, as all bases"),
    ("input_base", Access.LATCHED, 64, 0, "address of the input region"),
    ("output_base", Access.LATCHED, 64, 0, "address of the output region"),
    ("program_bytes", Access.LATCHED, 32, 0, "size of the program's image; a transfer beyond is error BEYOND_REGION"),
    ("input_bytes", Access.LATCHED, 32, 0, "size of the input region"),
    ("output_bytes", Access.LATCHED, 32, 0, "size of the output region"),
    ("window_first", Access.WRITE, 64, 0, "an address of the first page of 4 KiB that may be read or written"),
    ("window_last", Access.WRITE, 64, -1, "an address of the last one"),
    ("epoch", Access.WRITE, 32, 0, "whatever a driver writes, until a reset or a new bitstream"),
    ("frames", Access.READ, 32, 0, "tasks that have ended well since power-on"),
    ("checksum", Access.READ, 32, 0, "CRC-32, as of zlib, of the program region"),
    ("cycles", Access.READ, 64, 0, "cycles that the last task that ended well was busy"),
    ("stall_weights", Access.READ, 32, 0, "cycles of it in which the array waited for weights"),
    ("stall_writes", Access.READ, 32, 0, "cycles of it in which stores waited for the memory"),
    ("saturations", Access.READ, 32, 0, "values of it that were limited; stays at the highest number"),
    ("beats_read", Access.READ, 32, 0, "beats of the memory bus that came for it"),
    ("beats_written", Access.READ, 32, 0, "beats of the memory bus that it wrote"),
    ("command_index", Access.READ, 16, 0, "command in work"),
    ("clock_hz", Access.READ, 32, None, "the clock, as whoever built it states; 0 = unknown"),
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
