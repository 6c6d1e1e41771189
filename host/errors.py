"""What can go wrong between a Program and a machine."""

from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.registers import ErrorCode


class DeviceError(Error, RuntimeError):
    """The machine stopped with an error; the next frame begins with a soft reset."""

    def __init__(self, code: int, detail: int, command_index: int, note: str = "") -> None:
        self.code = ErrorCode(code) if code in list(ErrorCode) else code
        self.detail, self.command_index, self.note = detail, command_index, note
        name = self.code.name if isinstance(self.code, ErrorCode) else f"error {code}"
        where = f"command {command_index}" + (f" ({note})" if note else "")
        super().__init__(f"{name} at {where}, detail {detail:#x}")


class RegisterError(Error, RuntimeError):
    """An access to a register was refused or not answered."""


class DeadlineError(Error, TimeoutError):
    """The machine did not do something in time."""


class LinkError(Error, ConnectionError):
    """The link to the machine is gone, or carried something else than what was sent; another try may succeed."""


class NoAnswerError(LinkError):
    """An answer did not come, or not all of it."""


class IdentityError(Error, ValueError):
    """The machine is not one that the Program, or this driver, was made for."""


class StaleError(Error, RuntimeError):
    """What lies in the output region is not, or not all, the result of the frame that was started."""


class CapacityError(Error, MemoryError):
    """The device's memory is full."""


class MemoryLevelError(Error, RuntimeError):
    """The delays of the board's memory could not be set so that it reads what was written."""
