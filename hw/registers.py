"""The register map, one table for RTL, driver and documentation, and the AXI4-Lite slave made of it."""

from enum import IntEnum

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.config import Config
from hw import axi


class ErrorCode(IntEnum):
    """Why the machine stopped; the detail register is in the comment."""

    NONE = 0
    READ_SLVERR = 1  # command index
    READ_DECERR = 2  # command index
    WRITE_SLVERR = 3  # command index
    WRITE_DECERR = 4  # command index
    BAD_COMMAND = 5  # kind
    WRONG_CONFIG = 6  # fingerprint the program was made for
    WATCHDOG = 7  # limit
    BAD_TASK = 8  # task


class Registers(wiring.Component):
    """AXI4-Lite slave with the machine's registers. Core-side ports:

    `start` pulses for one cycle; `task`, the bases and `watchdog_limit` are stable from then on while the driver
    leaves them alone. Ignored (no pulse) while `busy`, after an error, and during a soft reset.

    `soft_reset` is a level: the core holds `flush` of the DMA engines and the reset of everything else while it is
    high. It rises when the driver asks and falls once `reset_done` is high, but not before 8 cycles. `reset_done`
    is the core's "all DMA engines idle"; it is looked at only then. A soft reset clears status and error.

    `done` pulses for one cycle when a task has ended well. `error_valid` (a pulse or a level) takes `error_code` and
    `error_detail`: the first error is kept. The core should then fall silent (`busy` low) until the soft reset.

    `cycles` counts while `busy`; `stall_weights` and `stall_writes` are counted while high; `saturation_increment`
    is added in every cycle. All are cleared by `start`.
    """

    def __init__(self, config: Config, *, saturation_width: int = 16):
        self.config = config
        super().__init__(
            {
                "control": In(axi.Lite()),
                "irq": Out(1),
                "start": Out(1),
                "soft_reset": Out(1),
                "reset_done": In(1),
                "task": Out(8),
                "program_base": Out(axi.ADDRESS_WIDTH),
                "input_base": Out(axi.ADDRESS_WIDTH),
                "output_base": Out(axi.ADDRESS_WIDTH),
                "watchdog_limit": Out(32),  # cycles without progress; 0 = off
                "busy": In(1),
                "done": In(1),
                "error_valid": In(1),
                "error_code": In(8),
                "error_detail": In(32),
                "stall_weights": In(1),
                "stall_writes": In(1),
                "saturation_increment": In(saturation_width),
                "command_index": In(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        return m
