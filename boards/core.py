"""The machine without a board, for people with a SoC of their own: `patchloom rtl`.

The folder holds its Verilog, a wrapper whose ports Vivado takes for AXI interfaces, the register map in four forms, and
a test bench with frames whose outputs are the reference interpreter's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from amaranth.hdl._ir import PortDirection

from patchloom.boards import regmap
from patchloom.boards.selftest import selftest
from patchloom.boards.sources import LICENCE, MACHINE, header, machine_verilog
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.frames import Elements
from patchloom.compiler.machine.program import Program
from patchloom.compiler.machine.registers import DIGEST_BITS
from patchloom.hw import axi
from patchloom.hw.dma import BURSTS_AHEAD, longest_burst
from patchloom.hw.folder import write_project
from patchloom.hw.top import interface
from patchloom.hw.verilog import WRITER, digest
from patchloom.sim.interpret import execute

TEMPLATES = Path(__file__).parent / "templates" / "core"
WRAPPER = "patchloom_axi"  # module, and name of its file
FORMAT = "patchloom rtl"


@dataclass(frozen=True)
class PortOf:
    """A port of the machine."""

    name: str
    width: int
    is_input: bool


def ports(config: Config) -> list[PortOf]:
    """All of the machine's but its clock and reset."""
    found = axi.port_map(interface(config).create()).items()
    return [PortOf(name, len(value), direction == PortDirection.Input) for name, (value, direction) in found]


# --- The wrapper ---

# What Vivado must know of clock, reset and interrupt; of a bus it is told at the bus's first port.
SIGNALS = {
    "clk": ("xilinx.com:signal:clock:1.0 clk CLK", "ASSOCIATED_BUSIF {buses}, ASSOCIATED_RESET rst"),
    "rst": ("xilinx.com:signal:reset:1.0 rst RST", "POLARITY ACTIVE_HIGH"),
    "irq": ("xilinx.com:signal:interrupt:1.0 irq INTERRUPT", "SENSITIVITY LEVEL_HIGH"),
}


def _buses(config: Config) -> dict[str, dict[str, Any]]:
    """Parameters of each bus interface, by its name."""
    master = {
        "PROTOCOL": "AXI4", "DATA_WIDTH": config.bus_width, "ADDR_WIDTH": axi.ADDRESS_WIDTH, "ID_WIDTH": 1,
        "READ_WRITE_MODE": "READ_WRITE", "HAS_BURST": 1, "HAS_CACHE": 1, "HAS_LOCK": 0, "HAS_PROT": 1, "HAS_QOS": 0,
        "HAS_REGION": 0, "HAS_WSTRB": 1, "HAS_BRESP": 1, "HAS_RRESP": 1, "SUPPORTS_NARROW_BURST": 0,
        "MAX_BURST_LENGTH": longest_burst(config), "NUM_READ_OUTSTANDING": config.fifo_beats // longest_burst(config),
        "NUM_WRITE_OUTSTANDING": BURSTS_AHEAD,
    }  # fmt: skip
    slave = {"PROTOCOL": "AXI4LITE", "DATA_WIDTH": axi.LITE_DATA_WIDTH, "ADDR_WIDTH": axi.LITE_ADDRESS_WIDTH}
    return {"m_axi": master, "s_axil": slave}


def attributes(config: Config) -> dict[str, tuple[str, str]]:
    """By port: X_INTERFACE_INFO and X_INTERFACE_PARAMETER, the latter perhaps empty."""
    buses = _buses(config)
    found = {name: (info, text.format(buses=":".join(buses))) for name, (info, text) in SIGNALS.items()}
    for bus, parameters in buses.items():
        text = ", ".join(f"{name} {value}" for name, value in {"XIL_INTERFACENAME": bus, **parameters}.items())
        for port in ports(config):
            if port.name.startswith(f"{bus}_"):
                member = port.name.removeprefix(f"{bus}_").upper()
                found[port.name] = (f"xilinx.com:interface:aximm:1.0 {bus} {member}", text)
                text = ""
    return found


def wrapper(config: Config, build: int, clock_hz: int = 0) -> str:
    """Module `WRAPPER`: the machine with ports in ANSI style and attributes, its digest fixed to `build`.

    Its parameter CLOCK_HZ is what the machine says of its clock, `clock_hz` unless whoever instantiates it says better.
    """
    found, marks = [PortOf("clk", 1, True), PortOf("rst", 1, True), *ports(config)], attributes(config)
    values = {"digest": f"{DIGEST_BITS}'h{build:032x}", "clock_hz": "CLOCK_HZ"}
    outside = [port for port in found if port.name not in values]
    lines = [f"module {WRAPPER} #(parameter [31:0] CLOCK_HZ = {clock_hz}) ("]
    for position, port in enumerate(outside):
        info, parameter = marks[port.name]
        lines.append(f'  (* X_INTERFACE_INFO = "{info}" *)')
        lines += [f'  (* X_INTERFACE_PARAMETER = "{parameter}" *)'] * bool(parameter)
        way, width = "input" if port.is_input else "output", f" [{port.width - 1}:0]" * (port.width > 1)
        lines.append(f"  {way} wire{width} {port.name}" + "," * (position < len(outside) - 1))
    links = [f"    .{port.name}({values.get(port.name, port.name)})" for port in found]
    lines += [");", f"  {MACHINE} machine (", ",\n".join(links), "  );", "endmodule"]
    return "\n".join(lines) + "\n"


# --- Frames of the test bench ---


@dataclass(frozen=True, eq=False)
class Frame:
    """A task of a Program, and the input region that it is run on."""

    name: str  # of its folder
    program: Program
    task: int
    region: Elements = field(repr=False)


def frames(program: Program, regions: Sequence[Elements]) -> list[Frame]:
    """One per task; a task's name may be text that no file name or make variable holds."""
    return [Frame(f"task{number}", program, number, region) for number, region in enumerate(regions)]


@dataclass(frozen=True)
class _Places:
    """Of a frame in the test bench's memory, in beats from its base."""

    image: int
    input: int
    input_beats: int
    output: int
    end: int


def _places(frame: Frame) -> _Places:
    """Image, input and output one after another, each at a page."""
    beat, page = frame.program.config.beat_bytes, axi.PAGE_BYTES // frame.program.config.beat_bytes
    task = frame.program.tasks[frame.task]
    image, input_beats, output_beats = (
        -(-size // beat) for size in (len(frame.program.image), task.input_bytes, task.output_bytes)
    )
    start = -(-image // page) * page
    output = -(-(start + input_beats) // page) * page
    return _Places(image, start, input_beats, output, output + output_beats)


def _frame_files(frame: Frame) -> dict[str, str]:
    places, config = _places(frame), frame.program.config
    output, saturations = execute(frame.program, frame.program.tasks[frame.task].name, frame.region)
    facts = (
        places.image, places.input, places.input_beats, places.output, output.size, frame.task, saturations,
    )  # fmt: skip
    return {
        "facts.hex": "".join(f"{value:x}\n" for value in facts),
        "program.hex": "".join(_hex_words(frame.program.image, config.beat_bytes)),
        "input.hex": "".join(_hex_words(frame.region.astype("<i2").tobytes(), config.beat_bytes)),
        "output.hex": "".join(_hex_words(output.astype("<i2").tobytes(), 2)),
    }


def _hex_words(data: bytes, size: int) -> Iterator[str]:
    """Lines for $readmemh: little-endian words of `size` bytes."""
    padded = np.frombuffer(data + bytes(-len(data) % size), np.uint8).reshape(-1, size)
    return (word[::-1].tobytes().hex() + "\n" for word in padded)


def _bench_header(config: Config, frames: Sequence[Frame]) -> str:
    elements = max(frame.program.tasks[frame.task].output_bytes // 2 for frame in frames)
    sizes = {
        "BUS_WIDTH": config.bus_width,
        "MEMORY_BEATS": max(_places(frame).end for frame in frames),
        "OUTPUT_ELEMENTS": elements,
    }
    return "/* Generated: sizes of the test bench. */\n" + "".join(f"`define {n} {v}\n" for n, v in sizes.items())


# --- The folder ---


def core_files(config: Config, frames: Sequence[Frame]) -> dict[str, str]:
    """All but the manifest; the self-test's frame is among them whatever `frames` are."""
    machine = machine_verilog(config)
    build = digest(machine)
    values, head = regmap.known(config.fingerprint, build), header(config, build)
    program, region = selftest(config)
    every = [Frame("selftest", program, 0, region), *frames]
    files: dict[str, str] = {
        f"{MACHINE}.v": head + machine,
        f"{WRAPPER}.v": head + wrapper(config, build),
        "patchloom_regs.vh": regmap.verilog_header(values),
        **regmap.for_host(values),
        "testbench.sv": (TEMPLATES / "testbench.sv").read_text(),
        "testbench.vh": _bench_header(config, every),
        "Makefile": (TEMPLATES / "Makefile").read_text(),
        "README.md": _readme(config, every),
    }
    for frame in every:
        files |= {f"frames/{frame.name}/{name}": text for name, text in _frame_files(frame).items()}
    return files


def _readme(config: Config, frames: Sequence[Frame]) -> str:
    listed = ", ".join(f"`{frame.name}`" for frame in frames)
    sizes = ", ".join(f"{f.name} {getattr(config, f.name)}" for f in fields(config))
    facts = {"config": sizes, "frames": listed, "width": config.bus_width, "connect": connect(config)}
    return Template((TEMPLATES / "README.md").read_text()).substitute(facts)


def connect(config: Config) -> str:
    """How to connect the machine and run a frame; a part of the documentation, too."""
    facts = {"width": config.bus_width, "beat": config.beat_bytes, "burst": longest_burst(config)}
    return Template((TEMPLATES / "connect.md").read_text()).substitute(facts)


def write_core(config: Config, path: Path, frames: Sequence[Frame] = ()) -> None:
    """The folder, whole or not at all. Raises `ProjectError` if `path` holds anything else than an unaltered one."""
    files = core_files(config, frames)
    facts = {
        "format": FORMAT,
        "patchloom": version("patchloom"),
        "writer": WRITER,
        "licence": LICENCE,
        "config": {f.name: getattr(config, f.name) for f in fields(config)},
        "fingerprint": f"{config.fingerprint:08x}",
        "digest": f"{digest(machine_verilog(config)):032x}",
        "frames": {"selftest": "made for this Config"}
        | {frame.name: frame.program.tasks[frame.task].name for frame in frames},
    }
    write_project(path, files, facts)
