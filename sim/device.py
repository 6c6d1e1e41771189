"""The machine simulated in this process, cycle by cycle in C++: a home of `host.device.Device`."""

import ctypes
import functools
import inspect
import math
import re
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import REGISTERS
from patchloom.host.device import Device, Pages, Region
from patchloom.host.errors import CapacityError, RegisterError
from patchloom.hw import cache
from patchloom.hw.axi import Response
from patchloom.hw.verilog import ResetRegister, digest, emit_cached
from patchloom.sim import toolchain

NATIVE = Path(__file__).parent / "native"
BASE = 1 << 32  # addresses of more than 32 bits, so that no upper half is forgotten
SLICE = 1 << 17  # cycles between looks at the keyboard
REGISTER_CYCLES = 10_000  # deadline of one register access
CLOCK_HZ = 100e6  # of the seconds that a driver counts


class ProtocolError(AssertionError):
    """The machine broke a rule of AXI."""


class _Settings(ctypes.Structure):
    """As in native/memory.hpp."""

    _fields_ = [
        ("latency", ctypes.c_uint32), ("jitter", ctypes.c_uint32), ("cycles_per_beat", ctypes.c_uint32),
        ("refresh_period", ctypes.c_uint32), ("refresh_cycles", ctypes.c_uint32), ("outstanding", ctypes.c_uint32),
        ("stall_parts", ctypes.c_uint32),
    ]  # fmt: skip


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
# -O2 takes twice as long as -O1 and is no faster; the slow files run once.
MAKE = ("-f", "Vtop.mk", *toolchain.MAKE_VARIABLES, "OPT_FAST=-O1", "OPT_SLOW=-O0")


def build(verilog: str, trace: Trace = "") -> Path:
    """The shared library of a top level with ports clk, rst, m_axi_*, s_axil_*, irq, and digest and clock_hz or not.

    Built once per content.
    """
    verilate = [*VERILATE, *([f"--trace-{trace}"] if trace else [])]
    libraries = ["-pthread", *(["-llz4", "-lz"] if trace == "fst" else [])]

    def make(directory: Path) -> None:
        objects = toolchain.runtime(["verilated", "verilated_threads", *([f"verilated_{trace}_c"] if trace else [])])
        compile_model(directory, verilog, verilate)
        include = toolchain.verilator_root() / "include"
        kinds = [f"-DVM_TRACE={int(bool(trace))}", f"-DVM_TRACE_FST={int(trace == 'fst')}"]
        compile_ = ["g++", "-O3", "-Wall", "-Wextra", *toolchain.SHARED, *kinds, "-I.", "-isystem", include]
        link = ["-shared", "-Wl,-Bsymbolic", "-o", "device.so", SOURCE, "Vtop__ALL.a", *objects, *libraries]
        toolchain.call([str(word) for word in (*compile_, *link)], directory)
        toolchain.drop_intermediates(directory)

    key = cache.digest(verilog, toolchain.version(), *verilate, *toolchain.SHARED, *MAKE, *cache.sources(NATIVE))
    return cache.entry("native", key, make) / "device.so"


def compile_model(directory: Path, verilog: str, verilate: Sequence[str]) -> None:
    """The archive Vtop__ALL.a of a module `top`."""
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
        "build": (None, [device, ctypes.POINTER(u32), u32]),
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


LEAST = {
    "latency": 0, "jitter": 0, "cycles_per_beat": 1, "refresh_period": 0, "refresh_cycles": 0, "outstanding": 1,
}  # fmt: skip


def check_memory(**settings: int) -> dict[str, int]:
    """The settings; raises `InputError` naming every one that no memory can have."""
    wrong = [
        f"{name} must be a whole number from {LEAST[name]} to {2**31 - 1}, not {value!r}"
        for name, value in settings.items()
        if type(value) is not int or not LEAST[name] <= value < 1 << 31
    ]
    if wrong:
        raise InputError("\n".join(wrong))
    period, refresh = settings.get("refresh_period", 0), settings.get("refresh_cycles", 0)
    if refresh >= max(period, 1):
        raise InputError(f"refresh_cycles must be fewer than refresh_period, {period}, not {refresh}")
    return settings


def _default_top(config: Config) -> Any:
    from patchloom.hw.top import Top  # noqa: PLC0415 - only where no other machine is given

    return Top(config)


class SimulatedDevice(Device):
    """A machine, its memory and its bus.

    `top` makes another machine than `hw.top.Top` of a Config. `latency` and `jitter` are cycles to the first beat of a
    burst, `cycles_per_beat` limits the bandwidth, as does a refresh of `refresh_cycles` in every `refresh_period` (0:
    none), `outstanding` the bursts under way in each direction, `stalls` is the fraction of cycles in which the bus
    holds back (0 to 0.95), at random from `seed`. `trace` names a .vcd or .fst file (the latter needs the headers of
    lz4 and zlib).

    Time stands still but for accesses to registers, `wait` and `step`. Its seconds are cycles of
    `CLOCK_HZ`, so that a deadline is met or missed alike on any computer.

    The memory has `memory_bytes` from `base` on, zero at first; only pages that are touched take space.
    """

    clock_hz = CLOCK_HZ

    def __init__(  # noqa: PLR0913 - all that a memory and its bus may do, by name
        self,
        config: Config,
        *,
        top: Callable[[Config], Any] = _default_top,
        latency: int = 40,
        jitter: int = 0,
        cycles_per_beat: int = 1,
        refresh_period: int = 0,
        refresh_cycles: int = 0,
        outstanding: int = 32,
        stalls: float = 0.0,
        seed: int = 0,
        memory_bytes: int = 1 << 32,
        trace: str | Path | None = None,
    ) -> None:
        self._timing = check_memory(
            latency=latency, jitter=jitter, cycles_per_beat=cycles_per_beat, refresh_period=refresh_period,
            refresh_cycles=refresh_cycles, outstanding=outstanding,
        ) | {"stall_parts": round(stalls * 65536)}  # fmt: skip
        if not 0 <= stalls <= 0.95:
            raise InputError(f"stalls must be a fraction from 0 to 0.95, not {stalls!r}")
        self.config, self.base, self._size = config, BASE, memory_bytes
        self._pages = Pages(Region(self.base, memory_bytes))
        text = self._verilog(config, top)
        self.digest = digest(text)
        self._library = _library(build(text, _trace_kind(trace)))
        self._native: int | None = self._library.device_new(self.base, memory_bytes, seed)
        if self._native is None:
            raise CapacityError(f"no address space for a memory of {memory_bytes} bytes")
        self._delete = weakref.finalize(self, self._library.device_delete, self._native)
        self.set_memory()
        if trace is not None:
            self._library.device_trace(self._handle, str(trace).encode())
        words = [self.digest >> 32 * i & 0xFFFF_FFFF for i in range(4)]
        self._library.device_build(self._handle, (ctypes.c_uint32 * 4)(*words), int(CLOCK_HZ))

    @staticmethod
    def _verilog(config: Config, top: Callable[[Config], Any]) -> str:
        source = inspect.getsourcefile(top)
        name = re.sub(r" at 0x[0-9a-f]+", "", f"{top.__module__}.{top.__qualname__}")
        return emit_cached(
            lambda: ResetRegister(top(config)), name, repr(config), sources=(Path(source),) if source else ()
        )

    @property
    def _handle(self) -> int:
        if self._native is None:
            raise ValueError("the device is closed")
        return self._native

    def close(self) -> None:
        """Ends the simulation and its trace."""
        self._native = None
        self._delete()

    # --- Registers and the interrupt ---

    def read(self, register: str) -> int:
        return self.read_register(REGISTERS[register].offset)

    def write(self, register: str, value: int) -> None:
        self.write_register(REGISTERS[register].offset, value)

    def read_register(self, offset: int) -> int:
        value = ctypes.c_uint32()
        response = self._library.device_read(self._handle, offset, ctypes.byref(value), REGISTER_CYCLES)
        self._check(response, f"read of register {offset:#x}")
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        response = self._library.device_write(self._handle, offset, value & 0xFFFF_FFFF, REGISTER_CYCLES)
        self._check(response, f"write of register {offset:#x}")

    def wait(self, seconds: float, expected: float = 0.0) -> None:
        self.wait_cycles(math.ceil(seconds * CLOCK_HZ))

    def wait_cycles(self, deadline: int) -> None:
        """As `wait`."""
        left = deadline
        while left > 0:
            ended = self._library.device_run(self._handle, min(left, SLICE))
            self._check(0, "wait")
            if ended == 1:
                return
            left -= SLICE
        raise self.overdue(f"{deadline} cycles")

    def _check(self, response: int, what: str) -> None:
        problem = self._library.device_problem(self._handle).decode()
        if problem:
            raise ProtocolError(problem)
        if response:
            answer = Response(response).name if response > 0 else f"nothing in {REGISTER_CYCLES} cycles"
            raise RegisterError(f"{what} was answered with {answer}")

    # --- Memory ---

    def allocate(self, size: int) -> Region:
        """At a page boundary; never given back."""
        return self._pages.take(size)

    def put(self, address: int, data: bytes) -> None:
        ctypes.memmove(self._at(address, len(data)), data, len(data))

    def get(self, address: int, size: int) -> bytes:
        return ctypes.string_at(self._at(address, size), size)

    def crc(self, region: Region) -> int:
        """At once: what the machine would take a second of this computer for."""
        return zlib.crc32(self.get(region.address, region.size))

    def _at(self, address: int, size: int) -> int:
        """Where bytes of the device's memory are in this process."""
        if not self.base <= address <= address + size <= self.base + self._size:
            raise ValueError(f"memory must be of {self.base:#x} and {self._size} bytes on, not {size} at {address:#x}")
        return int(self._library.device_memory(self._handle)) + address - self.base

    # --- What only a simulation can ---

    @property
    def cycles(self) -> int:
        """Clock cycles since power-on."""
        return int(self._library.device_cycles(self._handle))

    def now(self) -> float:
        return self.cycles / CLOCK_HZ

    def sleep(self, seconds: float) -> None:
        self.step(math.ceil(seconds * CLOCK_HZ))

    def step(self, cycles: int) -> None:
        self._library.device_step(self._handle, cycles)
        self._check(0, "step")

    @property
    def traffic(self) -> Traffic:
        counts = (ctypes.c_uint64 * 4)()
        self._library.device_traffic(self._handle, counts)
        return Traffic(*counts)

    def set_memory(self, **timing: int) -> None:
        """Of what the memory was made with, something else from now on."""
        self._timing |= check_memory(**timing)
        self._library.device_settings(self._handle, ctypes.byref(_Settings(**self._timing)))

    def inject(self, address: int, size: int, response: Response, *, reads: bool = True, writes: bool = True) -> None:
        """Answer accesses to these bytes with an error; writes to them are lost."""
        self._library.device_fault(self._handle, address, address + size, response, reads, writes)

    def clear_faults(self) -> None:
        self._library.device_no_faults(self._handle)


def _trace_kind(trace: str | Path | None) -> Trace:
    suffix = "" if trace is None else Path(trace).suffix
    if suffix == ".vcd":
        return "vcd"
    if suffix == ".fst":
        return "fst"
    if trace is not None:
        raise ValueError(f"trace must name a .vcd or .fst file, not {str(trace)!r}")
    return ""
