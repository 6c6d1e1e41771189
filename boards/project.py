"""The files of a board's project: sources, scripts, what a host must know."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from patchloom.boards import regmap, sources, tools, vivado
from patchloom.boards.description import Board
from patchloom.boards.place import OPTIONS, device_options, settings_in
from patchloom.boards.sources import DIGEST, LICENCE, MACHINE, SOC, header
from patchloom.compiler.machine.config import Config

FORMAT = "patchloom project"
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
    build, made, beside = (_around_system if found.zynq else _around_litex)(found, config)
    head = header(config, build)
    values = regmap.known(config.fingerprint, build)
    beside |= {**regmap.for_host(values, found.registers), "README.md": readme(found, config)}
    files = {name: head + text if name.endswith(VERILOG) else text for name, text in made.items()}
    return Project(found, config, build, files | beside, tuple(sorted(made)))


def _around_litex(found: Board, config: Config) -> tuple[int, dict[str, str], dict[str, str]]:
    """Digest, sources, other files of a board whose SoC LiteX makes."""
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
    beside = {
        "soc.json": json.dumps(asdict(soc.map), indent=1) + "\n",
        "csrs.json": json.dumps(soc.csrs, indent=1) + "\n",
        **({"Makefile": makefile(found)} if found.tools == "open" else {}),
    }
    return build, made, beside


def _around_system(found: Board, config: Config) -> tuple[int, dict[str, str], dict[str, str]]:
    """The same of a board with a processing system."""
    build, made = vivado.sources(found, config)
    return build, made, {}


def makefile(found: Board) -> str:
    options = " ".join((*device_options(found.device.part), *OPTIONS))
    before, after = (line.rstrip("\n") for line in settings_in(SOC))
    facts = {
        "soc": SOC, "netlist": NETLIST, "machine": MACHINE, "digest": DIGEST, "options": options,
        "settings": "s|^" + before.replace("{", "[{]") + "$$|" + after.replace("\n", "\\n") + "|",
    }  # fmt: skip
    return Template((HERE / "templates" / "Makefile").read_text()).substitute(facts)


def readme(found: Board, config: Config) -> str:
    """Of the folder."""
    template = HERE / "templates" / (vivado.README if found.zynq else f"README.{found.tools}.md")
    facts = _litex_facts(found) if found.litex else vivado.readme_facts(found)
    facts |= {
        "title": found.title,
        "part": found.device.part,
        "proven": found.proven,
        "mhz": f"{found.clock_hz / 1e6:g}",
        "memory": found.memory.kind,
        "machine": MACHINE,
        "config": ", ".join(f"{f.name} {getattr(config, f.name)}" for f in fields(config)),
    }
    return Template(template.read_text()).substitute(facts)


def _litex_facts(found: Board) -> dict[str, str]:
    litex = found.built_by_litex()
    link = f"UART of {found.baud:,} baud" + f", Etherbone at {litex.ip}" * (found.link == "etherbone")
    return {"loader": litex.loader, "link": link}
