"""The files of a board's project: sources, scripts, what a host must know."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from patchloom.boards import regmap, sources, tools
from patchloom.boards.description import Board
from patchloom.boards.place import OPTIONS, device_options
from patchloom.boards.sources import DIGEST, MACHINE, SOC
from patchloom.compiler.machine.config import Config

FORMAT = "patchloom project"
LICENCE = "Apache-2.0"
NETLIST = "netlist.json"
SYNTHESIS = (  # Yosys's Verilog reader takes very long over large memories
    f"read_rtlil {MACHINE}.il",
    f"read_verilog {SOC}.v",
    f"read_verilog {DIGEST}.v",
    f"synth_ecp5 -top {SOC} -json {NETLIST}",
    "tee -q -o stat.json stat -json",
)
HERE = Path(__file__).parent
VERILOG = ".v"


@dataclass(frozen=True)
class Project:
    """Of one board and one Config, whatever Program runs there."""

    board: Board
    config: Config
    digest: int  # what the machine's registers hold
    files: dict[str, str]  # by name; the sources are those that `sources` names
    sources: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Of the manifest: the same for the same inputs."""
        return {
            "format": FORMAT,
            "patchloom": version("patchloom"),
            "licence": LICENCE,
            "board": self.board.name,
            "part": self.board.device.part,
            "clock_hz": self.board.clock_hz,
            "config": asdict(self.config),
            "fingerprint": f"{self.config.fingerprint:08x}",
            "digest": f"{self.digest:032x}",
            "tools": tools.package_versions(),
            "sources": {name: source_digest(name, self.files[name]) for name in self.sources},
        }


def source_digest(name: str, text: str) -> str:
    """SHA-256 without comments, which hold versions; there are no paths in a source."""
    bare = sources.without_comments(text) if name.endswith(VERILOG) else text
    return hashlib.sha256(bare.encode()).hexdigest()


def project(found: Board, config: Config) -> Project:
    """All files but those that tools make."""
    soc = sources.soc(found, config)
    made = {f"{SOC}.v": soc.verilog, sources.CONSTRAINTS[found.device.family]: soc.constraints}
    if found.tools == "open":
        made |= {f"{MACHINE}.il": sources.machine_rtlil(config), "synth.ys": "\n".join(SYNTHESIS) + "\n"}
    else:
        made |= {f"{SOC}.tcl": soc.script}
    made |= {f"{MACHINE}.v": sources.machine_verilog(config)}
    versions = [f"{name} {number}" for name, number in tools.package_versions().items()]
    build = sources.digest([found.name, *versions, *(text for item in sorted(made.items()) for text in item)])
    made[f"{DIGEST}.v"] = sources.digest_verilog(build)
    head = header(config, build)
    beside = {
        **registers(found, config, build),
        "soc.json": json.dumps(asdict(soc.map), indent=1) + "\n",
        "csrs.json": json.dumps(soc.csrs, indent=1) + "\n",
        **({"Makefile": makefile(found)} if found.tools == "open" else {}),
        "README.md": readme(found, config),
    }
    files = {name: head + text if name.endswith(VERILOG) else text for name, text in made.items()}
    return Project(found, config, build, files | beside, tuple(sorted(made)))


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


def registers(found: Board, config: Config, build: int) -> dict[str, str]:
    """The map of the machine's registers, in the forms that other tools read."""
    values = regmap.known(config.fingerprint, build)
    return {
        "patchloom_regs.h": regmap.c_header(values),
        "patchloom_regs.json": regmap.json_text(values),
        "patchloom_regs.svd": regmap.svd(values, found.registers),
    }


def makefile(found: Board) -> str:
    options = " ".join((*device_options(found.device.part), *OPTIONS))
    facts = {"soc": SOC, "netlist": NETLIST, "machine": MACHINE, "digest": DIGEST, "options": options}
    return Template((HERE / "templates" / "Makefile").read_text()).substitute(facts)


def readme(found: Board, config: Config) -> str:
    litex = found.built_by_litex()
    template = HERE / "templates" / f"README.{found.tools}.md"
    facts = {
        "title": found.title,
        "part": found.device.part,
        "proven": found.proven,
        "loader": litex.loader,
        "mhz": f"{found.clock_hz / 1e6:g}",
        "memory": found.memory.kind,
        "machine": MACHINE,
        "config": ", ".join(f"{f.name} {getattr(config, f.name)}" for f in fields(config)),
        "link": f"UART of {found.baud:,} baud" + f", Etherbone at {litex.ip}" * (found.link == "etherbone"),
    }
    return Template(template.read_text()).substitute(facts)
