"""The texts that a bitstream or a simulation is made from: the machine, the SoC around it, the build's digest."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from amaranth.back import rtlil

from patchloom.boards.description import Board, BoardError
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import DIGEST_BITS
from patchloom.host.transports.soc import SocMap
from patchloom.hw import axi, cache
from patchloom.hw.top import Top
from patchloom.hw.verilog import WRITER, emit_cached

LICENCE = "Apache-2.0"
MACHINE = "patchloom"  # modules, and names of their files
SOC = "soc"
DIGEST = "build_digest"
CONSTRAINTS = {"ecp5": f"{SOC}.lpf", "xc7": f"{SOC}.xdc"}
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


@dataclass(frozen=True)
class SocSources:
    """What LiteX makes of a board and a Config: the same bytes for the same packages."""

    verilog: str  # module `soc`, with instances of MACHINE and DIGEST
    constraints: str  # pins and clocks; nothing in simulation
    script: str  # Vivado's; nothing with open tools
    map: SocMap  # for the host's driver
    csrs: dict[str, int]  # addresses of LiteX's own registers
    row_bytes: int  # of the memory; how a model of it is filled


def header(config: Config, build: int) -> str:
    """The comment that Verilog files begin with."""
    values = [f"{f.name} {getattr(config, f.name)}" for f in fields(config)]
    rows = [", ".join(values[i : i + 4]) for i in range(0, len(values), 4)]
    lines = [
        f"Patchloom {version('patchloom')}, generated: do not edit.",
        f"SPDX-License-Identifier: {LICENCE}",
        *(f"Config: {row}" if not i else f"        {row}" for i, row in enumerate(rows)),
        f"Fingerprint {config.fingerprint:08x}, digest {build:032x}",
    ]
    return "".join(f"// {line}\n" for line in lines) + "\n"


def machine_verilog(config: Config) -> str:
    return emit_cached(lambda: Top(config), MACHINE, repr(config), name=MACHINE)


def machine_rtlil(config: Config) -> str:
    """Yosys's own language: its Verilog reader takes very long over large memories."""

    def convert() -> str:
        top = Top(config)
        return str(rtlil.convert(top, MACHINE, ports=axi.port_map(top), emit_src=False))

    return cache.text("rtlil", cache.digest(WRITER, MACHINE, repr(config), *cache.sources(*cache.RTL)), convert)


def check(found: Board, config: Config) -> None:
    """That this machine can be built for this board."""
    if config.bus_width != found.memory.bus_width:
        raise BoardError(
            f"board {found.name}'s memory controller is {found.memory.bus_width} bits wide: Config.bus_width must be "
            f"{found.memory.bus_width}, not {config.bus_width}"
        )


def soc(found: Board, config: Config, *, simulated: bool = False) -> SocSources:
    """Of a board with a SoC by LiteX. Simulated, a model takes the place of the memory, a byte stream that of pins."""
    found.built_by_litex()
    check(found, config)
    request = json.dumps({"board": found.name, "config": asdict(config), "simulated": simulated})
    with tempfile.TemporaryDirectory(prefix="patchloom-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "patchloom.boards.soc", name]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BoardError(
                f"LiteX failed to generate the SoC of {found.name}:\n{done.stdout[-500:]}{done.stderr[-2000:]}"
            )
        return SocSources(
            verilog=without_comments((folder / f"{SOC}.v").read_text()),
            constraints="" if simulated else (folder / CONSTRAINTS[found.device.family]).read_text() + "\n",
            script=_script(folder) if found.tools == "vivado" and not simulated else "",
            map=SocMap.load(folder / "soc.json"),
            **json.loads((folder / "litex.json").read_text()),
        )


def _script(folder: Path) -> str:
    """LiteX's, to be run in the folder of products."""
    text = (folder / f"{SOC}.tcl").read_text()
    return text.replace(f"{folder.resolve()}/", "../").replace("read_xdc ", "read_xdc ../")


def without_comments(verilog: str) -> str:
    """LiteX's hold dates, and a hierarchy in another order every time."""
    lines = (line.rstrip() for line in COMMENT.sub("", verilog).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def digest(texts: Iterable[str]) -> int:
    """Of a build: all that goes into it but the digest itself."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return int.from_bytes(total.digest()[: DIGEST_BITS // 8], "little")


def digest_verilog(value: int) -> str:
    """The module that the machine's register `digest` is driven by."""
    return (
        f"module {DIGEST} (output wire [{DIGEST_BITS - 1}:0] digest);\n"
        f"  assign digest = {DIGEST_BITS}'h{value:032x};\nendmodule\n"
    )
