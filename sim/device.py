"""The machine simulated in this process, cycle by cycle in C++, and driven as a board is."""

import ctypes
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.registers import MAGIC, REGISTERS, Control, ErrorCode, Status
from patchloom.hw import cache
from patchloom.hw.axi import Response
from patchloom.hw.verilog import ResetRegister, emit_cached
from patchloom.sim import toolchain

NATIVE = Path(__file__).parent / "native"
BASE = 1 << 32  # addresses of more than 32 bits, so that no upper half is forgotten
SLICE = 1 << 17  # cycles between looks at the keyboard
REGISTER_CYCLES = 10_000  # deadline of one register access
PAGE = 4096

Bytes = NDArray[np.uint8]


class DeviceError(Error, RuntimeError):
    """The machine stopped with an error; the next run begins with a soft reset."""

    def __init__(self, code: int, detail: int, command_index: int, note: str = "") -> None:
        self.code = ErrorCode(code) if code in list(ErrorCode) else code
        self.detail, self.command_index = detail, command_index
        name = self.code.name if isinstance(self.code, ErrorCode) else f"error {code}"
        where = f"command {command_index}" + (f" ({note})" if note else "")
        super().__init__(f"{name} at {where}, detail {detail:#x}")


class RegisterError(Error, RuntimeError):
    """An access to a register was refused or not answered."""


class DeadlineError(Error, TimeoutError):
    """No interrupt came in time."""


class ProtocolError(AssertionError):
    """The machine broke a rule of AXI."""


class _Settings(ctypes.Structure):
    """As in native/memory.hpp."""

    _fields_ = [
        (name, ctypes.c_uint32) for name in ("latency", "jitter", "cycles_per_beat", "outstanding", "stall_parts")
    ]


@dataclass(frozen=True, eq=False)
class Buffer:
    """A piece of the device's memory: its address there, and its bytes here."""

    address: int
    data: Bytes


@dataclass(frozen=True)
class Traffic:
    """What went over the memory bus since the beginning."""

    read_beats: int
    read_bursts: int
    write_beats: int
    write_bursts: int


Trace = Literal["", "vcd", "fst"]


SOURCE = NATIVE / "device.cpp"
VERILATE = (
    *("--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "--timescale", "1ns/1ns"),
    *(*toolchain.QUIET, *toolchain.QUICK),
)
# -O3 takes half as long again for nothing; the slow files run once.
MAKE = ("-f", "Vtop.mk", *toolchain.MAKE_VARIABLES, "OPT_FAST=-O2", "OPT_SLOW=-O0")


def build(verilog: str, trace: Trace = "") -> Path:
    """The shared library of a top level with ports clk, rst, m_axi_*, s_axil_* and irq; built once per content."""
    verilate = [*VERILATE, *([f"--trace-{trace}"] if trace else [])]
    libraries = ["-pthread", *(["-llz4", "-lz"] if trace == "fst" else [])]

    def make(directory: Path) -> None:
        objects = toolchain.runtime(["verilated", "verilated_threads", *([f"verilated_{trace}_c"] if trace else [])])
        _compile_model(directory, verilog, verilate)
        include = toolchain.verilator_root() / "include"
        kinds = [f"-DVM_TRACE={int(bool(trace))}", f"-DVM_TRACE_FST={int(trace == 'fst')}"]
        compile_ = ["g++", "-O3", "-Wall", "-Wextra", *toolchain.SHARED, *kinds, "-I.", "-isystem", include]
        link = ["-shared", "-Wl,-Bsymbolic", "-o", "device.so", SOURCE, "Vtop__ALL.a", *objects, *libraries]
        toolchain.call([str(word) for word in (*compile_, *link)], directory)
        toolchain.drop_intermediates(directory)

    key = cache.digest(verilog, toolchain.version(), *verilate, *toolchain.SHARED, *MAKE, *cache.sources(NATIVE))
    return cache.entry("native", key, make) / "device.so"


def _compile_model(directory: Path, verilog: str, verilate: list[str]) -> None:
    (directory / "top.v").write_text(verilog)
    names = ["--prefix", "Vtop", "--top-module", "top", "-Mdir", "."]  # a path could hold spaces
    toolchain.call([toolchain.verilator(), *verilate, *names, "top.v"], directory)
    flags = f"CXXFLAGS={' '.join(toolchain.SHARED)}"
    toolchain.call(["make", "-j", str(toolchain.JOBS), *MAKE, flags, "Vtop__ALL.a"], directory)


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    device, u64, u32, i32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "new": (device, [u64, u64, u64]),
        "delete": (None, [device]),
        "memory": (ctypes.c_void_p, [device]),
        "cycles": (u64, [device]),
        "problem": (ctypes.c_char_p, [device]),
        "settings": (None, [device, ctypes.POINTER(_Settings)]),
        "trace": (None, [device, ctypes.c_char_p]),
        "end_trace": (None, [device]),
        "run": (i32, [device, u64]),
        "step": (None, [device, u64]),
        "read": (i32, [device, u32, ctypes.POINTER(u32), u64]),
        "write": (i32, [device, u32, u32, u64]),
        "fault": (None, [device, u64, u64, i32, i32, i32]),
        "no_faults": (None, [device]),
        "traffic": (None, [device, ctypes.POINTER(u64)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"device_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class _Owner:
    """Frees the native device when neither the device nor a view of its memory is left."""

    def __init__(self, library: ctypes.CDLL, handle: int | None) -> None:
        self._library, self.handle = library, handle

    def __del__(self) -> None:
        if self.handle is not None:
            self._library.device_delete(self.handle)

    def view(self, size: int) -> Bytes:
        raw = (ctypes.c_uint8 * size).from_address(self._library.device_memory(self.handle))
        raw.owner = self  # type: ignore[attr-defined]  # numpy keeps `raw`
        return np.frombuffer(memoryview(raw), np.uint8)


def _default_top(config: Config) -> Any:
    from patchloom.hw.top import Top  # noqa: PLC0415 - only where no other machine is given

    return Top(config)


class SimulatedDevice:
    """A machine, its memory and its bus.

    `top` makes another machine than `hw.top.Top` of a Config. `latency` and `jitter` are cycles to the first beat of a
    burst, `cycles_per_beat` limits the bandwidth, `outstanding` the bursts under way in each direction, `stalls` is
    the fraction of cycles in which the bus holds back (0 to 0.95), at random from `seed`. `trace` names a .vcd or .fst
    file (the latter needs the headers of lz4 and zlib).

    `memory` shows `memory_bytes` from `base` on; only pages that are touched take space.
    """

    def __init__(
        self,
        config: Config,
        *,
        top: Callable[[Config], Any] = _default_top,
        latency: int = 40,
        jitter: int = 0,
        cycles_per_beat: int = 1,
        outstanding: int = 32,
        stalls: float = 0.0,
        seed: int = 0,
        memory_bytes: int = 1 << 32,
        trace: str | Path | None = None,
    ) -> None:
        if not 0 <= stalls <= 0.95:
            raise ValueError(f"stalls must be a fraction from 0 to 0.95, not {stalls!r}")
        self.config, self.base = config, BASE
        self._library = _library(build(self._verilog(config, top), _trace_kind(trace)))
        self._owner: _Owner | None = _Owner(self._library, self._library.device_new(self.base, memory_bytes, seed))
        if self._handle is None:
            raise MemoryError(f"no address space for a memory of {memory_bytes} bytes")
        settings = _Settings(latency, jitter, cycles_per_beat, outstanding, round(stalls * 65536))
        self._library.device_settings(self._handle, ctypes.byref(settings))
        if trace is not None:
            self._library.device_trace(self._handle, str(trace).encode())
        self.memory: Bytes = self._owner.view(memory_bytes)
        self._free = 0
        self._images: WeakKeyDictionary[Program, Buffer] = WeakKeyDictionary()
        self._regions: WeakKeyDictionary[Task, tuple[Buffer, Buffer]] = WeakKeyDictionary()

    @staticmethod
    def _verilog(config: Config, top: Callable[[Config], Any]) -> str:
        source = inspect.getsourcefile(top)
        name = re.sub(r" at 0x[0-9a-f]+", "", f"{top.__module__}.{top.__qualname__}")
        return emit_cached(
            lambda: ResetRegister(top(config)), name, repr(config), sources=(Path(source),) if source else ()
        )

    @property
    def _handle(self) -> int | None:
        if self._owner is None:
            raise ValueError("the device is closed")
        return self._owner.handle

    def close(self) -> None:
        """Ends the simulation and its trace; the memory goes with the last view of it."""
        if self._owner is not None:
            self._library.device_end_trace(self._handle)
        self._owner = None
        self.memory = self.memory[:0].copy()
        self._images.clear()
        self._regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def cycles(self) -> int:
        """Clock cycles since power-on."""
        return int(self._library.device_cycles(self._handle))

    @property
    def traffic(self) -> Traffic:
        counts = (ctypes.c_uint64 * 4)()
        self._library.device_traffic(self._handle, counts)
        return Traffic(*counts)

    def allocate(self, size: int) -> Buffer:
        """A buffer at a page boundary, zero at first; never given back."""
        if self._free + size > len(self.memory):
            raise MemoryError(f"the device's memory has {len(self.memory) - self._free} bytes left, not {size}")
        start, self._free = self._free, -(-(self._free + size) // PAGE) * PAGE
        return Buffer(self.base + start, self.memory[start : start + size])

    def inject(self, address: int, size: int, response: Response, *, reads: bool = True, writes: bool = True) -> None:
        """Answer accesses to these bytes with an error; writes to them are lost."""
        self._library.device_fault(self._handle, address, address + size, response, reads, writes)

    def clear_faults(self) -> None:
        self._library.device_no_faults(self._handle)

    def read_register(self, offset: int) -> int:
        value = ctypes.c_uint32()
        response = self._library.device_read(self._handle, offset, ctypes.byref(value), REGISTER_CYCLES)
        self._check(response, f"read of register {offset:#x}")
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        response = self._library.device_write(self._handle, offset, value & 0xFFFF_FFFF, REGISTER_CYCLES)
        self._check(response, f"write of register {offset:#x}")

    def step(self, cycles: int) -> None:
        self._library.device_step(self._handle, cycles)
        self._check(0, "step")

    def wait(self, deadline_cycles: int) -> None:
        """Until the interrupt."""
        left = deadline_cycles
        while left > 0:
            ended = self._library.device_run(self._handle, min(left, SLICE))
            self._check(0, "wait")
            if ended == 1:
                return
            left -= SLICE
        status, index = Status(self._get("status")), self._get("command_index")
        raise DeadlineError(f"no interrupt within {deadline_cycles} cycles; status {status!r}, command {index}")

    def _check(self, response: int, what: str) -> None:
        problem = self._library.device_problem(self._handle).decode()
        if problem:
            raise ProtocolError(problem)
        if response:
            answer = Response(response).name if response > 0 else f"nothing in {REGISTER_CYCLES} cycles"
            raise RegisterError(f"{what} was answered with {answer}")

    # The driver ------------------------------------------------------------------------------------------------------

    def _get(self, name: str) -> int:
        return self.read_register(REGISTERS[name].offset)

    def _set(self, name: str, value: int) -> None:
        """A register of 64 bits is two."""
        if name in REGISTERS:
            self.write_register(REGISTERS[name].offset, value)
        else:
            self._set(f"{name}_lo", value & 0xFFFF_FFFF)
            self._set(f"{name}_hi", value >> 32)

    def _identify(self, program: Program) -> None:
        if self._get("magic") != MAGIC:
            raise RegisterError(f"magic must be {MAGIC:#x}, not {self._get('magic'):#x}")
        if self._get("fingerprint") != program.config.fingerprint:
            raise ValueError("the program was made for another Config than this machine's")

    def soft_reset(self, deadline_cycles: int = 1_000_000) -> None:
        """Whatever the machine does, it is idle afterwards."""
        limit = self.cycles + deadline_cycles
        self._set("control", Control.SOFT_RESET)
        while self._get("status") & Status.RESETTING:
            if self.cycles > limit:
                raise DeadlineError(f"the soft reset took more than {deadline_cycles} cycles")

    def start(
        self, program: Program, inputs: NDArray[np.int16], task: str | None = None, *, watchdog: int = 0
    ) -> Buffer:
        """Begin a task; returns where its output will be. The image is written at its first use only."""
        chosen = program.task(task)
        if inputs.nbytes != chosen.input_bytes:
            raise ValueError(f"the input region must have {chosen.input_bytes} bytes, not {inputs.nbytes}")
        if program not in self._images:
            self._identify(program)
            self._images[program] = image = self.allocate(len(program.image))
            image.data[:] = np.frombuffer(program.image, np.uint8)
        if chosen not in self._regions:
            self._regions[chosen] = self.allocate(chosen.input_bytes), self.allocate(chosen.output_bytes)
        source, target = self._regions[chosen]
        source.data[:] = np.ascontiguousarray(inputs, "<i2").view(np.uint8).reshape(-1)
        if self._get("status") & Status.ERROR:
            self.soft_reset()
        self._set("program_base", self._images[program].address)
        self._set("input_base", source.address)
        self._set("output_base", target.address)
        self._set("task", program.tasks.index(chosen))
        self._set("watchdog", watchdog)
        self._set("control", Control.START | Control.IRQ_ENABLE)
        return target

    def run(
        self,
        program: Program,
        inputs: NDArray[np.int16],
        task: str | None = None,
        *,
        deadline_cycles: int = 1 << 34,
        watchdog: int = 1 << 20,
    ) -> tuple[NDArray[np.int16], int, int]:
        """One frame: the input region's elements to the output region's, the cycles it took, and the saturations.

        `watchdog` is the number of cycles without progress after which the machine gives up; 0 is never.
        """
        target = self.start(program, inputs, task, watchdog=watchdog)
        self.wait(deadline_cycles)
        self._set("irq_status", self._get("irq_status"))
        if self._get("status") & Status.ERROR:
            code, detail, index = (self._get(name) for name in ("error_code", "error_detail", "command_index"))
            notes = program.task(task).notes
            raise DeviceError(code, detail, index, notes[index] if index < len(notes) else "")
        cycles = self._get("cycles_lo") | self._get("cycles_hi") << 32
        return target.data.view("<i2").astype(np.int16), cycles, self._get("saturations")


def _trace_kind(trace: str | Path | None) -> Trace:
    suffix = "" if trace is None else Path(trace).suffix
    if suffix == ".vcd":
        return "vcd"
    if suffix == ".fst":
        return "fst"
    if trace is not None:
        raise ValueError(f"trace must name a .vcd or .fst file, not {str(trace)!r}")
    return ""
