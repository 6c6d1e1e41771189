"""A Program on a machine: identified, uploaded once, run frame by frame."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from random import Random  # NumPy's takes 30 ms to import
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import COMMAND_BYTES, Kind
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import (
    Elements,
    Result,
    Tell,
    input_frames,
    input_region,
    result_of,
    run_frames,
    task_of,
    warn_of_clipping,
)
from patchloom.compiler.machine.program import Program, Task, command_table
from patchloom.compiler.machine.registers import DIGEST_BITS, MAGIC, VERSION, Control, Interrupt, Status, parts
from patchloom.host import probe
from patchloom.host.contents import ROUNDS, Contents
from patchloom.host.deadline import most_cycles, most_cycles_of_one
from patchloom.host.device import Device, Region, halves
from patchloom.host.errors import DeviceError, IdentityError, LinkError, StaleError

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11; the driver runs on 3.10, too

PATIENCE = 1.0  # seconds of a frame beside its cycles
Counted = tuple[Elements, int, int]  # output region, cycles, saturations
PROBED = 10  # deadlines, as the whole scratchpad is stored
BUFFERS = 2  # for inputs and for outputs: one frame computes, another one travels


@dataclass(frozen=True)
class Identity:
    """What the machine says it is."""

    version: tuple[int, int]  # of registers and command set: major, minor
    fingerprint: int  # of its Config
    digest: int  # of the build; 0 is unknown


@dataclass(frozen=True, eq=False)
class _Job:
    """A frame whose input lies in the device's memory, and the registers that say so."""

    task: Task
    target: Region
    registers: dict[str, int]
    poison: Elements  # the output region before start
    number: int = 0  # of the machine's frames
    doubts: int = 0  # of the device when it began
    begun: float = 0.0  # by the device's clock


@dataclass(frozen=True)
class _Ended:
    """A frame that the machine has done, whose output is still in its memory."""

    job: _Job
    cycles: int
    saturations: int


class Session:
    """A Program on a device. Its image is uploaded once; switching task moves none of it.

    `build` is the digest of the only build that will do; 0 is any of the Program's Config. `watchdog` is the number of
    cycles of one command after which the machine gives up, 0 is never; by default no command of the Program takes as
    many. The device stays the caller's. Sessions of several Programs may share it, one after the other.

    A result is believed only if the machine took this frame's task and regions as they were written, says that the
    frame of this number has ended well, has not been reset since, and everything that the task stores has replaced the
    random numbers that lay there before.
    """

    def __init__(self, device: Device, program: Program, *, build: int = 0, watchdog: int | None = None) -> None:
        self.device, self.program = device, program
        self.watchdog = _watchdog(program) if watchdog is None else watchdog
        self._build, self._contents = build, Contents.of(device)
        self._reopen()
        self._identify()
        if self._contents.epoch is None:
            self._contents.epoch = device.read("epoch")
        self._image = self._contents.image(program.image)
        self._deadlines = {
            task.name: PATIENCE + most_cycles(program.config, task.commands) / device.clock_hz for task in program.tasks
        }
        self._slots: list[tuple[Region, Region]] = []  # of the frames that are on their way at a time
        self._probed: Region | None = None  # where probes put the scratchpad
        self._random = Random()
        self._under_way: deque[_Job] = deque()  # that the machine works on, and that waits behind
        self._frames = 0  # that have been begun, by the machine's count
        self._seconds: dict[str, float] = {}  # by task: the least that a frame has taken

    def run(
        self, inputs: Any, *, task: str | None = None, deadline: float | None = None, progress: Tell | None = None
    ) -> Result:
        """One sample or a batch, as `patchloom.run` takes arrays.

        `deadline` is seconds of the device's clock a frame; by default as many as no frame of the task takes.
        Arrays of type uint8 go through the preprocessing that the Program keeps.
        """
        chosen = task_of(self.program, task)
        frames = input_frames(chosen, self._given(chosen, inputs))
        return run_frames(chosen, *frames, lambda regions: self.frames(regions, chosen.name, deadline), progress)

    def stream(self, samples: Iterable[tuple[Any, str | None]], *, deadline: float | None = None) -> Iterator[Result]:
        """Results one by one, of samples that come one by one, each with its task: as a camera gives them.

        The next sample is asked for while one computes: a result is there when the sample after it is, or no more come.
        """
        under_way: deque[tuple[Task, int]] = deque()

        def jobs() -> Iterator[tuple[Elements, str]]:
            for inputs, name in samples:
                task = task_of(self.program, name)
                (sample, *others), _ = input_frames(task, self._given(task, inputs))
                if others:
                    raise InputError(f"a stream must be of samples, one by one, not of batches of {1 + len(others)}")
                warn_of_clipping(task, [sample])
                region, clipped = input_region(task, sample)
                under_way.append((task, clipped))
                yield region, task.name

        for frame in self.jobs(jobs(), deadline):
            task, clipped = under_way.popleft()
            yield result_of(task, [frame], batched=False, clipped=clipped)

    def _given(self, task: Task, inputs: Any) -> Any:
        """What a user gives for the task's inputs, as arrays."""
        return inputs

    def frame(self, region: Elements, task: str | None = None, deadline: float | None = None) -> Counted:
        """One frame from input region to output region; also its cycles, and how many values saturated."""
        self.start(region, task)
        return self.finish(deadline)

    def frames(
        self, regions: Iterable[Elements], task: str | None = None, deadline: float | None = None
    ) -> Iterator[Counted]:
        """As `frame`, one after another: while one computes, the next one's input and the last one's output travel."""
        chosen = task_of(self.program, task)
        return self.jobs(((region, chosen.name) for region in regions), deadline)

    def jobs(self, jobs: Iterable[tuple[Elements, str | None]], deadline: float | None = None) -> Iterator[Counted]:
        """As `frames`, each with its task. A job is asked for while the one before computes."""
        self._halt()
        begun: deque[_Job] = deque()
        try:
            for slot, (region, task) in zip(cycle(range(BUFFERS)), jobs):
                begun.append(self._begin(self._put(region, task_of(self.program, task), slot)))
                if len(begun) == BUFFERS:
                    yield self._collect(self._end_of(begun.popleft(), deadline))
            while begun:
                yield self._collect(self._end_of(begun.popleft(), deadline))
        finally:
            if begun and self._is_next(begun[0]):  # nobody will ask for what was begun meanwhile
                self._under_way.clear()

    def _end_of(self, job: _Job, deadline: float | None) -> _Ended:
        if not self._is_next(job):
            raise StaleError("a frame was begun among others that overlap, and stopped one of them")
        return self._end(deadline)

    def _is_next(self, job: _Job) -> bool:
        return bool(self._under_way) and self._under_way[0] is job

    def start(self, region: Elements, task: str | None = None) -> Region:
        """Begin a frame; returns where its output will be. What was under way is stopped."""
        chosen = task_of(self.program, task)
        _check_region(chosen, region)
        self._halt()
        return self._begin(self._put(region, chosen, 0)).target

    def finish(self, deadline: float | None = None) -> Counted:
        """Wait for the frame that was started and read its result; after a `DeadlineError` it may be called again."""
        return self._collect(self._end(deadline))

    def probe(self, region: Elements, task: str | None, count: int, deadline: float | None = None) -> Elements:
        """The scratchpad, chunk by chunk, after the first `count` commands of a task: for debugging, not for speed.

        Meanwhile the task's commands in the device's memory are others: those, and what stores the scratchpad.
        """
        chosen, config = task_of(self.program, task), self.program.config
        probing, number = probe.probing(config, chosen, count), self.program.tasks.index(chosen)
        pitch = config.command_depth * COMMAND_BYTES
        at = self._image.address + number * pitch
        self._probed = self._probed or self.device.allocate(probing.output_bytes)
        self._halt()
        self._contents.settle()
        try:
            self.device.put(at, command_table(config, [probing.commands]))
            self._begin(self._put_at(region, probing, number, self._allocated(0)[0], self._probed))
            output, *_ = self.finish(PROBED * self._deadlines[chosen.name] if deadline is None else deadline)
            self.device.put(at, self.program.image[number * pitch : (number + 1) * pitch])
        except BaseException:
            self._contents.doubt()
            raise
        return output

    def _reopen(self) -> None:
        if self.device.lost:
            self.device.reopen()
            self._contents.doubt()

    def _identify(self) -> None:
        self.identity = identify(self.device)
        _check(self.identity, self.program, self._build)

    def _halt(self) -> None:
        """An idle machine, whatever was before: that which the Program is for, and the Program in its memory."""
        self._under_way.clear()
        lost = self.device.lost
        try:
            self._prepare()
        except LinkError:  # since the call before
            if lost:
                raise
            self._prepare()

    def _prepare(self) -> None:
        self._reopen()
        if self._contents.doubtful:
            self._identify()
        if self.device.read("epoch") != self._contents.epoch:
            self._contents.doubt()  # there was a reset, or another bitstream, or another driver
        # In this order: a frame may end between the two.
        if self.device.read("status") & ~Status.DONE or self.device.read("irq_status"):
            self.device.reset()
        self._contents.epoch = self._random.randrange(1, 1 << 32)
        self.device.write("epoch", self._contents.epoch)
        self._frames = self.device.read("frames")

    def _put(self, region: Elements, task: Task, slot: int) -> _Job:
        source, target = self._allocated(slot)
        return self._put_at(region, task, self.program.tasks.index(task), source, target)

    def _put_at(self, region: Elements, task: Task, number: int, source: Region, target: Region) -> _Job:
        _check_region(task, region)
        poison = _poisoned(self._random, self.program, task)
        self._contents.put(source.address, np.ascontiguousarray(region, "<i2").tobytes())
        self._contents.put(target.address, poison.tobytes())
        span = [self._image, *(region for slot in self._slots for region in slot), source, target]
        registers = {
            **halves("program_base", self._image.address),
            **halves("input_base", source.address),
            **halves("output_base", target.address),
            "program_bytes": self._image.size,
            "input_bytes": task.input_bytes,
            "output_bytes": task.output_bytes,
            "task": number,
            **halves("window_first", min(part.address for part in span)),
            **halves("window_last", max(part.address + part.size - 1 for part in span)),
            "watchdog": self.watchdog,
            "epoch": self._contents.epoch or 0,
        }
        return _Job(task, Region(target.address, task.output_bytes), registers, poison)

    def _begin(self, job: _Job) -> _Job:
        """The machine must be idle, or have one frame to do."""
        device = self.device
        if self._under_way and self._contents.doubtful:
            raise LinkError("the link changed what it carried to the machine while a frame ran")
        self._settle(job)
        self._contents.forget(job.target.address)
        self._frames = self._frames + 1 & 0xFFFF_FFFF
        job = replace(job, number=self._frames, doubts=device.doubts, begun=device.now())
        device.write("control", Control.START | Control.IRQ_ENABLE)
        self._check_taken(job, device.read_all())
        self._under_way.append(job)
        return job

    def _settle(self, job: _Job) -> None:
        """Memory and registers are as they should be; a proof of the one takes some of the other."""
        for _ in range(ROUNDS):
            self._contents.settle()
            self.device.write_all(job.registers)
            if not self._contents.doubtful:
                return
        raise LinkError(f"registers cannot be written: the link changed what it carried {ROUNDS} times in turn")

    def _check_taken(self, job: _Job, found: dict[str, int]) -> None:
        """What the machine was told it has kept, and it has begun or waits for the frame before."""
        wrong = [name for name, value in job.registers.items() if found[name] != value]
        if wrong:
            raise self._astray(f"what was written to register {', '.join(wrong)}")
        if self._under_way and found["frames"] != self._under_way[0].number:
            is_taken = bool(found["status"] & Status.QUEUED)  # which was read before that one had ended
        else:  # in this order: it may end between the two
            is_taken = bool(self.device.read("status") & Status.BUSY or self.device.read("irq_status"))
        if not is_taken:
            raise self._astray("the start of a frame")

    def _end(self, deadline: float | None) -> _Ended:
        """Wait for the first of what was begun; the next one runs by then."""
        if not self._under_way:
            raise StaleError("no frame was started whose result has not been read")
        job, device = self._under_way[0], self.device
        limit = self._deadlines[job.task.name] if deadline is None else deadline
        device.wait(limit, self._seconds.get(job.task.name, 0.0))
        self._under_way.popleft()
        found = device.read_all()
        with self._doubting():
            self._check_ended(job, found)
        device.write("irq_status", Interrupt.DONE)
        if device.read("irq_status") & Interrupt.DONE and device.read("frames") == job.number:  # not the next one's
            raise self._astray("the end of an interrupt")
        passed = device.now() - job.begun
        self._seconds[job.task.name] = min(passed, self._seconds.get(job.task.name, passed))
        return _Ended(job, found["cycles_lo"] | found["cycles_hi"] << 32, found["saturations"])

    def _collect(self, ended: _Ended) -> Counted:
        target = ended.job.target
        output = np.frombuffer(self.device.get(target.address, target.size), "<i2").astype(np.int16)
        if self.device.doubts != ended.job.doubts:
            raise LinkError("what the link changed on its way to the machine may have changed the result of this frame")
        with self._doubting():
            _refuse_poison(self.program, ended.job, output)
        return output, ended.cycles, ended.saturations

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Whatever is wrong here may be because something else lies in the device's memory than should."""
        try:
            yield
        except (DeviceError, StaleError):
            self._under_way.clear()
            self._contents.doubt()
            raise

    def _astray(self, what: str) -> LinkError:
        self._under_way.clear()
        self._contents.doubt()
        return LinkError(f"{what} is not what the machine has: the link lost or changed it, or somebody else wrote")

    def _check_ended(self, job: _Job, found: dict[str, int]) -> None:
        """That it is this frame that has ended, well, on a machine that nobody has reset."""
        before = job.number - 1 & 0xFFFF_FFFF
        if found["epoch"] != job.registers["epoch"]:
            raise StaleError("the machine was reset while the frame ran: its epoch is another")
        if found["status"] & Status.ERROR and found["frames"] == before:
            raise self._error(job.task, found)
        if found["frames"] != job.number:
            raise StaleError(
                f"the interrupt came, but the machine has done {found['frames']} frames, not {job.number}: "
                "somebody else began one, or took note of this one's end"
            )

    @staticmethod
    def _error(task: Task, found: dict[str, int]) -> DeviceError:
        command = found["command_index"]
        note = task.notes[command] if command < len(task.notes) else ""
        return DeviceError(found["error_code"], found["error_detail"], command, note)

    def _allocated(self, slot: int) -> tuple[Region, Region]:
        """Input and output of one of the frames that are on their way at a time, large enough for every task."""
        if not self._slots:
            pairs = [[self.device.allocate(size) for size in frame_bytes(self.program)] for _ in range(BUFFERS)]
            self._slots = [(source, target) for source, target in pairs]
        return self._slots[slot]

    def close(self) -> None:
        """Stop what is under way."""
        if self._under_way:
            self._under_way.clear()
            self.device.reset()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _watchdog(program: Program) -> int:
    """Cycles that no command takes."""
    most = max(most_cycles_of_one(program.config, task.commands) for task in program.tasks)
    return min(most, (1 << 32) - 1)


def frame_bytes(program: Program) -> tuple[int, int]:
    """Of the input and the output region that any task needs."""
    return max(task.input_bytes for task in program.tasks), max(task.output_bytes for task in program.tasks)


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


def _check_region(task: Task, region: Elements) -> None:
    if region.nbytes != task.input_bytes:
        raise InputError(f"the input region must have {task.input_bytes} bytes, not {region.nbytes}")


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


def _refuse_poison(program: Program, job: _Job, output: Elements) -> None:
    """A chunk has at least 64 bits: that a result equals its poison by chance is not to be expected."""
    pairs = zip(*(_stores(program, job.task, region) for region in (output, job.poison)), strict=True)
    stale = sum(int(np.count_nonzero((now == before).all(axis=1))) for now, before in pairs)
    if stale:
        size = program.config.lanes * 2
        raise StaleError(f"{stale} pieces of {size} bytes of the output were not written: the result is not whole")
