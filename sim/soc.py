"""A whole SoC simulated in this process: machine, memory controller, model of the memory, and the link to the host.

    with simulate("ulx3s_85f", config) as soc, Session(soc.device(), program) as session: ...

The Verilog is that of `boards.simulated.simulate`. The host's side is the one for a board; the bytes go
straight into the SoC, or come out of a pseudo-terminal:

    with soc.terminal() as path, SocDevice.uart(soc.map, Tty(path, 3_000_000)) as device: ...
"""

import ctypes
import functools
import math
import os
import re
import threading
import tty
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import InputError
from patchloom.host.errors import LinkError
from patchloom.host.transports.soc import SocDevice, SocMap
from patchloom.host.transports.stream import Stream
from patchloom.hw import cache
from patchloom.sim import toolchain
from patchloom.sim.device import MAKE, VERILATE, compile_model

NATIVE = Path(__file__).parent / "native" / "soc"
SOURCE = NATIVE / "soc.cpp"
SLICE = 1 << 14  # cycles between looks at the keyboard, or at whether to go on
CYCLES_PER_BYTE = 16  # of the link, about
_EVER = (1 << 64) - 1  # more bytes than will come

# The reset a cycle late: as an input it would make a simulator evaluate all logic twice a cycle.
TOP = """
module top(input clk, input rst,
    input [7:0] sink_data, input sink_valid, output sink_ready,
    output [7:0] source_data, output source_valid, input source_ready);
  reg reset;
  always @(posedge clk) reset <= rst;
  soc soc(.sys_clk(clk), .sys_rst(reset),
    .serial_sink_data(sink_data), .serial_sink_valid(sink_valid), .serial_sink_ready(sink_ready),
    .serial_source_data(source_data), .serial_source_valid(source_valid), .serial_source_ready(source_ready));
endmodule
"""
BANK = re.compile(r"^reg \[(?P<last>\d+):0\] (?P<name>mem(_\d+)?)\[0:(?P<deepest>\d+)\];$", re.MULTILINE)


@dataclass(frozen=True)
class Banks:
    """LiteDRAM's model of a memory: the Verilog's arrays, a bank each.

    Words of the controller's width follow one another in a row, rows of the banks in turn. The model of a DDR memory
    has `spacing` words for each.
    """

    names: tuple[str, ...]
    depth: int  # of one, in words
    word_bytes: int
    row_words: int  # that the memory has
    spacing: int

    @classmethod
    def of(cls, verilog: str, row_bytes: int, memory_bytes: int) -> Self:
        found = list(BANK.finditer(verilog))
        names = tuple(bank["name"] for bank in found)
        sizes = {(int(bank["deepest"]) + 1, (int(bank["last"]) + 1) // 8) for bank in found}
        if len(sizes) != 1:
            raise InputError(f"a simulated SoC must have banks of one size, not of {sorted(sizes)}")
        ((depth, word_bytes),) = sizes
        spacing = depth * len(names) * word_bytes // memory_bytes
        return cls(names, depth, word_bytes, row_bytes // word_bytes, spacing)

    def places(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bank of each of the memory's words, and its place in that."""
        row, column = np.divmod(np.arange(first, first + count), self.row_words)
        row, bank = np.divmod(row, len(self.names))
        return bank, (row * self.row_words + column) * self.spacing


def build(verilog: str, names: tuple[str, ...]) -> Path:
    """The shared library of a module `soc` and what it holds, with these of its arrays in reach. Built once."""
    rules = "\n".join(["`verilator_config", *(f'public_flat_rw -module "soc" -var "{name}"' for name in names), ""])
    members = ", ".join(f"reinterpret_cast<uint8_t*>(&root.top__DOT__soc__DOT__{name})" for name in names)

    def make(directory: Path) -> None:
        objects = toolchain.runtime(["verilated", "verilated_threads"])
        (directory / "rules.vlt").write_text(rules)
        (directory / "banks.hpp").write_text(f"#define BANKS(root) {{ {members} }}\n")
        compile_model(directory, TOP + verilog, [*VERILATE, "rules.vlt"])
        include = toolchain.verilator_root() / "include"
        compile_ = ["g++", "-O2", "-Wall", "-Wextra", *toolchain.SHARED, *toolchain.MODEL_KINDS, "-I."]
        compile_ += ["-isystem", str(include), "-isystem", str(include / "vltstd")]
        link = ["-shared", "-Wl,-Bsymbolic", "-o", "soc.so", SOURCE, "Vtop__ALL.a", *objects, "-pthread"]
        toolchain.call([str(word) for word in (*compile_, *link)], directory)
        toolchain.drop_intermediates(directory)

    tools = toolchain.version(), *VERILATE, *toolchain.SHARED, *MAKE
    key = cache.digest(TOP, verilog, rules, *tools, *cache.sources(NATIVE))
    return cache.entry("native", key, make) / "soc.so"


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    soc, u64, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "new": (soc, []),
        "delete": (None, [soc]),
        "cycles": (u64, [soc]),
        "run": (size, [soc, u64, size]),
        "serve": (ctypes.c_int, [soc, ctypes.c_int, u64]),
        "send": (None, [soc, ctypes.c_char_p, size]),
        "take": (size, [soc, ctypes.c_char_p, size]),
        "discard": (None, [soc]),
        "bank": (ctypes.c_void_p, [soc, size]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"soc_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class SimulatedSoc:
    """A SoC and its memory.

    `verilog` holds its module `soc` and all that this needs, `row_bytes` is of a row of its memory. Time stands still
    but while somebody waits for the link, or while there is a terminal; it counts in seconds of the SoC's clock.
    """

    def __init__(self, verilog: str, soc: SocMap, row_bytes: int) -> None:
        self.map, self._banks = soc, Banks.of(verilog, row_bytes, soc.memory.size)
        self._library = _library(build(verilog, self._banks.names))
        self._native: int | None = self._library.soc_new()
        self._delete = weakref.finalize(self, self._library.soc_delete, self._native)

    @property
    def cycles(self) -> int:
        """Clock cycles since power-on."""
        return int(self._library.soc_cycles(self._handle))

    @property
    def _handle(self) -> int:
        if self._native is None:
            raise LinkError("the simulated SoC is closed")
        return self._native

    def close(self) -> None:
        self._native = None
        self._delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- The link ---

    def device(self) -> SocDevice:
        """The machine, over the SoC's own link. Closing it closes the SoC."""
        return SocDevice.uart(self.map, self.stream())

    def stream(self) -> Stream:
        return _Bytes(self)

    def send(self, data: bytes) -> None:
        """To the SoC, which takes it as time goes on."""
        self._library.soc_send(self._handle, data, len(data))

    def receive(self, size: int, cycles: int) -> bytes:
        """What the SoC has sent: as much, or less if no more came in so many cycles."""
        self._run(cycles, size)
        data = ctypes.create_string_buffer(size)
        taken = self._library.soc_take(self._handle, data, size)
        return data.raw[:taken]

    def step(self, cycles: int) -> None:
        self._run(cycles, _EVER)

    def discard(self) -> None:
        """Forget what neither side has taken."""
        self._library.soc_discard(self._handle)

    def _run(self, cycles: int, size: int) -> None:
        """Until that many bytes have come, or cycles have passed."""
        end = self.cycles + cycles
        while (left := end - self.cycles) > 0:
            if self._library.soc_run(self._handle, min(left, SLICE), size) >= size:
                return

    @contextmanager
    def terminal(self) -> Iterator[str]:
        """The path of a pseudo-terminal that is the link. Time goes on, in a thread, until it is left."""
        ours, theirs = os.openpty()
        os.set_blocking(ours, False)
        tty.setraw(theirs)
        left = threading.Event()
        thread = threading.Thread(target=self._serve, args=(ours, left), name="simulated SoC", daemon=True)
        thread.start()
        try:
            yield os.ttyname(theirs)
        finally:
            left.set()
            thread.join()
            os.close(theirs)
            os.close(ours)

    def _serve(self, file: int, left: threading.Event) -> None:
        while not left.is_set() and self._library.soc_serve(self._handle, file, SLICE):
            pass

    # --- What only a simulation can ---

    def preload(self, address: int, data: bytes) -> None:
        """Put whole words of the memory's controller into the memory, in no time."""
        banks, memory = self._banks, self.map.memory
        if not memory.address <= address <= address + len(data) <= memory.address + memory.size:
            raise InputError(f"memory must have what is preloaded, not {len(data)} bytes at {address:#x}")
        first, rest = divmod(address - memory.address, banks.word_bytes)
        if rest or len(data) % banks.word_bytes:
            raise InputError(f"what is preloaded must be whole words of {banks.word_bytes} bytes")
        words = np.frombuffer(data, np.uint8).reshape(-1, banks.word_bytes)
        bank, place = banks.places(first, len(words))
        for number in range(len(banks.names)):
            self._bank(number)[place[bank == number]] = words[bank == number]

    def _bank(self, number: int) -> NDArray[np.uint8]:
        """One word a row."""
        size = self._banks.depth * self._banks.word_bytes
        raw = (ctypes.c_uint8 * size).from_address(self._library.soc_bank(self._handle, number))
        words: NDArray[np.uint8] = np.ctypeslib.as_array(raw).reshape(-1, self._banks.word_bytes)
        return words


class _Bytes(Stream):
    """The link without a line: a byte is there as soon as the SoC takes it."""

    def __init__(self, soc: SimulatedSoc) -> None:
        self._soc, self._hz = soc, soc.map.clock_hz
        self.rate, self.delay = self._hz / CYCLES_PER_BYTE, 2 * soc.map.gives_up

    def send(self, data: bytes, seconds: float) -> None:
        self._soc.send(data)

    def receive(self, size: int, seconds: float) -> bytes:
        return self._soc.receive(size, math.ceil(seconds * self._hz))

    def discard(self) -> None:
        self._soc.discard()

    def reopen(self) -> None:
        """It is there for as long as the SoC is."""

    def now(self) -> float:
        return self._soc.cycles / self._hz

    def sleep(self, seconds: float) -> None:
        self._soc.step(math.ceil(seconds * self._hz))

    def close(self) -> None:
        self._soc.close()
