"""A Program on a machine: identified, uploaded once, run frame by frame."""

from dataclasses import dataclass
from random import Random  # NumPy's takes 30 ms to import
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Elements, Result, Tell, input_frames, run_frames, task_of
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.registers import DIGEST_BITS, MAGIC, VERSION, Control, Status, parts
from patchloom.host.device import Device, Region
from patchloom.host.errors import DeviceError, IdentityError, StaleError

WATCHDOG = 1 << 20  # cycles
DEADLINE = 60.0  # seconds of a frame


@dataclass(frozen=True)
class Identity:
    """What the machine says it is."""

    version: tuple[int, int]  # of registers and command set: major, minor
    fingerprint: int  # of its Config
    digest: int  # of the build; 0 is unknown


@dataclass(frozen=True)
class _Started:
    """A frame that the machine works on, and the registers that say so."""

    task: Task
    target: Region
    registers: dict[str, int]
    poison: Elements  # the output region before start


class Session:
    """A Program on a device. Its image is uploaded once; switching task moves none of it.

    `build` is the digest of the only build that will do; 0 is any of the Program's Config.
    `watchdog` is the number of cycles without progress after which the machine gives up; 0 is never. The device stays
    the caller's. Sessions of several Programs may share it, one frame at a time.

    A result is believed only if the machine says that it has ended well, its registers still name this frame's task
    and regions, and everything that the task stores has replaced the random numbers that lay there before.
    """

    def __init__(self, device: Device, program: Program, *, build: int = 0, watchdog: int = WATCHDOG) -> None:
        self.device, self.program, self.watchdog = device, program, watchdog
        self.identity = identify(device)
        _check(self.identity, program, build)
        self._image = device.allocate(len(program.image))
        device.put(self._image.address, program.image)
        self._regions: dict[str, tuple[Region, Region]] = {}
        self._random = Random(0)
        self._started: _Started | None = None

    def run(
        self, inputs: Any, *, task: str | None = None, deadline: float = DEADLINE, progress: Tell | None = None
    ) -> Result:
        """One sample or a batch, as `patchloom.run` takes arrays; `deadline` is seconds of the device's clock a frame.

        Arrays of type uint8 go through the preprocessing that the Program keeps.
        """
        chosen = task_of(self.program, task)
        frames = input_frames(chosen, inputs)
        return run_frames(chosen, *frames, lambda region: self.frame(region, chosen.name, deadline), progress)

    def frame(self, region: Elements, task: str | None = None, deadline: float = DEADLINE) -> tuple[Elements, int, int]:
        """One frame from input region to output region; also its cycles, and how many values saturated."""
        self.start(region, task)
        return self.finish(deadline)

    def start(self, region: Elements, task: str | None = None) -> Region:
        """Begin a frame; returns where its output will be. What was under way is stopped."""
        chosen, device = task_of(self.program, task), self.device
        if region.nbytes != chosen.input_bytes:
            raise InputError(f"the input region must have {chosen.input_bytes} bytes, not {region.nbytes}")
        if device.read("irq_status") or device.read("status") & ~Status.DONE:
            device.reset()
        source, target = self._allocated(chosen)
        poison = _poisoned(self._random, self.program, chosen)
        device.put(source.address, np.ascontiguousarray(region, "<i2").tobytes())
        device.put(target.address, poison.tobytes())
        registers = {
            **_halves("program_base", self._image.address),
            **_halves("input_base", source.address),
            **_halves("output_base", target.address),
            "task": self.program.tasks.index(chosen),
            "watchdog": self.watchdog,
        }
        for name, value in registers.items():
            device.write(name, value)
        device.write("control", Control.START | Control.IRQ_ENABLE)
        self._started = _Started(chosen, target, registers, poison)
        return target

    def finish(self, deadline: float = DEADLINE) -> tuple[Elements, int, int]:
        """Wait for the frame that was started and read its result; after a `DeadlineError` it may be called again."""
        if self._started is None:
            raise StaleError("no frame was started whose result has not been read")
        started, device = self._started, self.device
        device.wait(deadline)
        self._started = None
        device.write("irq_status", device.read("irq_status"))
        self._check_registers(started)
        output = np.frombuffer(device.get(started.target.address, started.target.size), "<i2").astype(np.int16)
        _refuse_poison(self.program, started, output)
        cycles = device.read("cycles_lo") | device.read("cycles_hi") << 32
        return output, cycles, device.read("saturations")

    def _check_registers(self, started: _Started) -> None:
        status = Status(self.device.read("status"))
        if status & Status.ERROR:
            raise self._error(started.task)
        if status != Status.DONE:
            raise StaleError(f"the interrupt came, but status is {status!r}, not {Status.DONE!r}")
        for name, value in started.registers.items():
            if (found := self.device.read(name)) != value:
                raise StaleError(f"register {name} must still be {value:#x}, not {found:#x}: somebody else wrote it")

    def _error(self, task: Task) -> DeviceError:
        code, detail, command = (self.device.read(name) for name in ("error_code", "error_detail", "command_index"))
        return DeviceError(code, detail, command, task.notes[command] if command < len(task.notes) else "")

    def _allocated(self, task: Task) -> tuple[Region, Region]:
        if task.name not in self._regions:
            sizes = task.input_bytes, task.output_bytes
            self._regions[task.name] = self.device.allocate(sizes[0]), self.device.allocate(sizes[1])
        return self._regions[task.name]

    def close(self) -> None:
        """Stop what is under way."""
        if self._started is not None:
            self._started = None
            self.device.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


# --- Which machine ---


def identify(device: Device) -> Identity:
    """Raises `IdentityError` if it is no machine, or none that this driver knows."""
    magic = device.read("magic")
    if magic != MAGIC:
        raise IdentityError(f"magic must be {MAGIC:#x}, not {magic:#x}: there is no Patchloom machine")
    wanted, found = divmod(VERSION, 1 << 16), divmod(device.read("version"), 1 << 16)
    if found[0] != wanted[0] or found[1] < wanted[1]:
        rule = f"be {wanted[0]}.{wanted[1]} or a later {wanted[0]}.x"
        raise IdentityError(f"the machine's version must {rule}, not {found[0]}.{found[1]}")
    words = [device.read(name) for name in parts("digest", DIGEST_BITS)]
    digest = sum(word << 32 * position for position, word in enumerate(words))
    return Identity(found, device.read("fingerprint"), digest)


def _check(identity: Identity, program: Program, build: int) -> None:
    wanted, found = program.config.fingerprint, identity.fingerprint
    if found != wanted:
        text = "the program was made for another Config than this machine's"
        raise IdentityError(f"{text}: fingerprint {wanted:08x}, not {found:08x}")
    if build not in (0, identity.digest):
        raise IdentityError(f"the machine must be of build {build:032x}, not {identity.digest:032x}")


# --- Whose result ---


def _stores(program: Program, task: Task, output: Elements) -> list[NDArray[np.int16]]:
    """What each STORE writes of an output region, chunk by chunk."""
    lanes = program.config.lanes
    return [
        output[c.dma_address // 2 :][: c.rows * lanes].reshape(-1, lanes) for c in task.commands if c.kind == Kind.STORE
    ]


def _poisoned(random: Random, program: Program, task: Task) -> Elements:
    """An output region of zeros, and random numbers where something will be stored."""
    region = np.zeros(task.output_bytes // 2, np.int16)
    for chunks in _stores(program, task, region):
        chunks[:] = np.frombuffer(random.randbytes(chunks.nbytes), np.int16).reshape(chunks.shape)
    return region


def _refuse_poison(program: Program, started: _Started, output: Elements) -> None:
    """A chunk has at least 64 bits: that a result equals its poison by chance is not to be expected."""
    pairs = zip(*(_stores(program, started.task, region) for region in (output, started.poison)), strict=True)
    stale = sum(int(np.count_nonzero((now == before).all(axis=1))) for now, before in pairs)
    if stale:
        size = program.config.lanes * 2
        raise StaleError(f"{stale} pieces of {size} bytes of the output were not written: the result is not whole")


def _halves(name: str, value: int) -> dict[str, int]:
    """Of a register of 64 bits."""
    low, high = parts(name, 64)
    return {low: value & 0xFFFF_FFFF, high: value >> 32}
