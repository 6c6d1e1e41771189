"""Vivado's commands in a plain Tcl, as far as Patchloom's scripts use them: what they would refuse is an error here.

What is known of the vendor's cells is a table kept by hand, of AMD's documentation. The machine's own ports and
interfaces are read from the Verilog that the script adds.
"""

import functools
import itertools
import re
import tkinter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

# Pins: (what, which way); interfaces: which way. What a property opens stands under `opened`.
ULTRA = {
    "pins": {
        "pl_clk0": ("clock", "out"), "pl_resetn0": ("resetn", "out"), "pl_ps_irq0": ("interrupt", "in"),
        "maxihpm0_fpd_aclk": ("clock", "in"), "saxihp0_fpd_aclk": ("clock", "in"),
    },
    "interfaces": {"M_AXI_HPM0_FPD": ("out", "maxihpm0_fpd_aclk"), "S_AXI_HP0_FPD": ("in", "saxihp0_fpd_aclk")},
    "opened": {
        "M_AXI_HPM0_FPD": "CONFIG.PSU__USE__M_AXI_GP0", "maxihpm0_fpd_aclk": "CONFIG.PSU__USE__M_AXI_GP0",
        "S_AXI_HP0_FPD": "CONFIG.PSU__USE__S_AXI_GP2", "saxihp0_fpd_aclk": "CONFIG.PSU__USE__S_AXI_GP2",
        "pl_ps_irq0": "CONFIG.PSU__USE__IRQ0", "pl_clk0": "CONFIG.PSU__FPGA_PL0_ENABLE",
    },
    "width": {"S_AXI_HP0_FPD": "CONFIG.PSU__SAXIGP2__DATA_WIDTH"},
    "properties": {
        "CONFIG.PSU__USE__M_AXI_GP1", "CONFIG.PSU__USE__M_AXI_GP2", "CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
    },
    "segments": {"SAXIGP2/HP0_DDR_LOW": ("S_AXI_HP0_FPD", 0, 2 << 30)},
    "master": ("M_AXI_HPM0_FPD", 0xA000_0000, 256 << 20),
}  # fmt: skip
SEVEN = {
    "pins": {
        "FCLK_CLK0": ("clock", "out"), "FCLK_RESET0_N": ("resetn", "out"), "IRQ_F2P": ("interrupt", "in"),
        "M_AXI_GP0_ACLK": ("clock", "in"), "S_AXI_HP0_ACLK": ("clock", "in"),
    },
    "interfaces": {"M_AXI_GP0": ("out", "M_AXI_GP0_ACLK"), "S_AXI_HP0": ("in", "S_AXI_HP0_ACLK")},
    "opened": {
        "M_AXI_GP0": "CONFIG.PCW_USE_M_AXI_GP0", "M_AXI_GP0_ACLK": "CONFIG.PCW_USE_M_AXI_GP0",
        "S_AXI_HP0": "CONFIG.PCW_USE_S_AXI_HP0", "S_AXI_HP0_ACLK": "CONFIG.PCW_USE_S_AXI_HP0",
        "IRQ_F2P": "CONFIG.PCW_USE_FABRIC_INTERRUPT", "FCLK_CLK0": "CONFIG.PCW_EN_CLK0_PORT",
    },
    "width": {"S_AXI_HP0": "CONFIG.PCW_S_AXI_HP0_DATA_WIDTH"},
    "properties": {"CONFIG.PCW_IRQ_F2P_INTR", "CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ"},
    "segments": {"S_AXI_HP0/HP0_DDR_LOWOCM": ("S_AXI_HP0", 0, 1 << 30)},
    "master": ("M_AXI_GP0", 0x4000_0000, 1 << 30),
}  # fmt: skip
RESETS = {
    "pins": {
        "slowest_sync_clk": ("clock", "in"), "ext_reset_in": ("resetn", "in"), "peripheral_reset": ("reset", "out"),
        "peripheral_aresetn": ("resetn", "out"), "interconnect_aresetn": ("resetn", "out"),
    },
    "interfaces": {},
}  # fmt: skip
CONNECT = {
    "pins": {"aclk": ("clock", "in"), "aresetn": ("resetn", "in")},
    "interfaces": {"S00_AXI": ("in", "aclk"), "M00_AXI": ("out", "aclk")},
    "properties": {"CONFIG.NUM_SI", "CONFIG.NUM_MI", "CONFIG.NUM_CLKS"},
}
CELLS: dict[str, dict[str, Any]] = {
    "xilinx.com:ip:zynq_ultra_ps_e": ULTRA,
    "xilinx.com:ip:processing_system7": SEVEN,
    "xilinx.com:ip:proc_sys_reset": RESETS,
    "xilinx.com:ip:smartconnect": CONNECT,
}
KINDS = {"signal:clock:1.0": "clock", "signal:reset:1.0": "reset", "signal:interrupt:1.0": "interrupt"}
ATTRIBUTE = re.compile(
    r'X_INTERFACE_INFO = "xilinx.com:(?P<kind>\S+) (?P<name>\w+) \w+" \*\)\s*'
    r'(?:\(\* X_INTERFACE_PARAMETER = "(?P<parameters>[^"]*)" \*\)\s*)?(?P<way>input|output) wire[^\w]*(?:\d+:0\] )?'
    r"(?P<port>\w+)"
)


def module(text: str) -> dict[str, Any]:
    """What Vivado infers of a wrapper: pins and interfaces as above, and the parameters of the latter."""
    made: dict[str, Any] = {"pins": {}, "interfaces": {}, "parameters": {}}
    for found in ATTRIBUTE.finditer(text):
        way = "in" if found["way"] == "input" else "out"
        parameters = dict(item.split(" ", 1) for item in (found["parameters"] or "").split(", ") if item)
        if found["kind"] in KINDS:
            kind = KINDS[found["kind"]]
            if kind == "reset" and parameters["POLARITY"] == "ACTIVE_LOW":
                kind = "resetn"
            made["pins"][found["port"]] = (kind, way)
            for bus in parameters.get("ASSOCIATED_BUSIF", "").split(":"):
                made["parameters"].setdefault(bus, {})["clock"] = found["port"]
        else:
            made["parameters"].setdefault(found["name"], {}).update(parameters)
            if found["port"].endswith("_awvalid"):
                made["interfaces"][found["name"]] = ("in" if way == "in" else "out", None)
    for name, (way, _) in made["interfaces"].items():
        made["interfaces"][name] = (way, made["parameters"][name].get("clock"))
    return made


# What Python raises would reach Tcl without its text.
PROCEDURE = """proc ::NAME args {
  set told [::do_NAME {*}$args]
  if {[string index $told 0] eq "-"} { error [string range $told 1 end] }
  return [string range $told 1 end]
}"""


class Refused(Exception):
    """By Vivado."""


def _told(command: Callable[..., Any]) -> Callable[..., str]:
    def call(*words: str) -> str:
        try:
            result = command(*words)
        except Refused as error:
            return f"-{error}"
        return "+" if result is None else f"+{result}"

    return call


@dataclass
class Vivado:
    """One project. What a command refuses is a Tcl error with this text."""

    folder: Path
    part: str = ""
    properties: dict[str, dict[str, str]] = field(default_factory=dict)  # of cells and others
    files: list[Path] = field(default_factory=list)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    nets: dict[str, int] = field(default_factory=dict)  # pin -> its net
    links: dict[str, str] = field(default_factory=dict)  # interface -> the other end
    addresses: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # space -> segment, offset, range
    stages: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)  # files that would be written

    def run(self, script: str) -> None:
        """Raises `tkinter.TclError`."""
        tcl = tkinter.Tcl()
        for name in dir(self):
            if name.startswith("do_"):
                tcl.createcommand(f"::{name}", _told(getattr(self, name)))
                tcl.eval(PROCEDURE.replace("NAME", name[3:]))
        tcl.eval(f"set ::argv0 {{}}; info script {{{self.folder / 'build.tcl'}}}")
        tcl.eval(script)

    def refuse(self, text: str) -> NoReturn:
        raise Refused(text)

    # --- Project ---

    def do_create_project(self, name: str, folder: str, *options: str) -> None:
        given = dict(itertools.pairwise(options))
        self.part = given["-part"]

    def do_current_project(self) -> str:
        return "project"

    def do_current_fileset(self) -> str:
        return "sources_1"

    def do_set_property(self, *words: str) -> None:
        if words[0] == "-dict":
            pairs, target = words[1].split(), words[2]
            values = {name: value.strip("{}") for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
        else:
            values, target = {words[0]: words[1]}, words[2]
        kind = self.cells.get(target)
        for name in values if kind is not None else ():
            known = {*kind.get("properties", ()), *kind.get("opened", {}).values(), *kind.get("width", {}).values()}
            if name not in known:
                self.refuse(f"cell {target} has no property {name}")
        self.properties.setdefault(target, {}).update(values)

    def do_add_files(self, *words: str) -> None:
        for name in words[-1].split():
            if not Path(name).is_file():
                self.refuse(f"no file {name}")
            self.files.append(Path(name))

    def do_update_compile_order(self, *words: str) -> None:
        pass

    # --- Block design ---

    def do_create_bd_design(self, name: str) -> None:
        self.stages.append(f"design {name}")

    def do_create_bd_cell(self, *words: str) -> None:
        given = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        if given["-type"] == "ip":
            if given["-vlnv"] not in CELLS:
                self.refuse(f"no IP {given['-vlnv']}")
            self.cells[words[-1]] = CELLS[given["-vlnv"]]
            return
        texts = [file.read_text() for file in self.files if file.suffix == ".v"]
        found = [text for text in texts if re.search(rf"^module {given['-reference']}\b", text, re.MULTILINE)]
        if len(found) != 1:
            self.refuse(f"no module {given['-reference']} in the sources")
        everything = "\n".join(texts)
        for inner in re.findall(r"^  (\w+) \w+ ?\($", found[0], re.MULTILINE):
            if not re.search(rf"^module {inner}\b", everything, re.MULTILINE):
                self.refuse(f"no module {inner} in the sources")
        self.cells[words[-1]] = module(found[0])

    def do_apply_bd_automation(self, *words: str) -> None:
        given = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        if 'apply_board_preset "1"' not in given["-config"] or "board_part" not in self.properties.get("project", {}):
            self.refuse("no board preset")
        if CELLS.get(given["-rule"].replace("bd_rule", "ip")) is not self.cells[words[-1]]:
            self.refuse(f"rule {given['-rule']} is not for cell {words[-1]}")

    def do_get_bd_cells(self, name: str) -> str:
        return name if name in self.cells else self.refuse(f"no cell {name}")

    def _part_of(self, what: str, path: str) -> str:
        cell, _, name = path.partition("/")
        kind = self.cells.get(cell, {what: {}})
        if name not in kind[what]:
            self.refuse(f"no {what[:-1]} {path}")
        opener = kind.get("opened", {}).get(name)
        if opener and self.properties.get(cell, {}).get(opener) != "1":
            self.refuse(f"{path} is closed: {opener}")
        return path

    def do_get_bd_pins(self, path: str) -> str:
        return self._part_of("pins", path)

    def do_get_bd_intf_pins(self, path: str) -> str:
        return self._part_of("interfaces", path)

    def _pin(self, path: str) -> tuple[str, str]:
        cell, _, name = path.partition("/")
        kind, way = self.cells[cell]["pins"][name]
        return kind, way

    def do_connect_bd_net(self, *pins: str) -> None:
        numbers = {self.nets[pin] for pin in pins if pin in self.nets}
        number = min(numbers, default=len(self.nets))
        members = {*pins, *(pin for pin, at in self.nets.items() if at in numbers)}
        self.nets |= dict.fromkeys(members, number)
        drivers = sorted(pin for pin in members if self._pin(pin)[1] == "out")
        if len(drivers) != 1:
            self.refuse(f"a net of {sorted(members)} has {len(drivers)} drivers")
        kinds = {self._pin(pin)[0] for pin in members}
        if len(kinds) != 1:
            self.refuse(f"{drivers[0]} of kind {self._pin(drivers[0])[0]} on a net of {sorted(kinds)}")

    def do_connect_bd_intf_net(self, one: str, other: str) -> None:
        ways = {self.cells[path.partition("/")[0]]["interfaces"][path.partition("/")[2]][0] for path in (one, other)}
        if ways != {"in", "out"}:
            self.refuse(f"{one} and {other} must be a master and a slave")
        for path in (one, other):
            if path in self.links:
                self.refuse(f"{path} is connected twice")
        self.links |= {one: other, other: one}

    def do_get_bd_addr_spaces(self, path: str) -> str:
        cell, _, name = path.partition("/")
        kind = self.cells.get(cell, {})
        if name not in ({"Data"} if "master" in kind else kind.get("parameters", {})):
            self.refuse(f"no address space {path}")
        return path

    def do_get_bd_addr_segs(self, path: str) -> str:
        cell, _, name = path.partition("/")
        kind = self.cells.get(cell, {})
        slaves = {f"{bus}/reg0" for bus, (way, _) in kind.get("interfaces", {}).items() if way == "in"}
        if name not in kind.get("segments", slaves):
            self.refuse(f"no address segment {path}")
        return path

    def do_assign_bd_address(self, *words: str) -> None:
        given = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        offset, size = int(given["-offset"], 0), int(given["-range"], 0)
        if size & (size - 1) or offset % size:
            self.refuse(f"{size} bytes at {offset:#x} are not aligned")
        self.addresses[given["-target_address_space"]] = (words[-1], offset, size)

    def do_validate_bd_design(self) -> None:
        for cell, kind in self.cells.items():
            for name, (what, way) in kind["pins"].items():
                if way == "in" and f"{cell}/{name}" not in self.nets:
                    self.refuse(f"{cell}/{name} is open ({what})")
            for name, (_, clock) in kind["interfaces"].items():
                if f"{cell}/{name}" not in self.links:
                    self.refuse(f"{cell}/{name} is open")
                if clock is None:
                    self.refuse(f"{cell}/{name} has no clock")
        self._check_addresses()
        self._check_widths()
        self.stages.append("validated")

    def _through(self, path: str) -> str:
        """The interface beyond a SmartConnect."""
        cell, _, name = self.links[path].partition("/")
        return self.links[f"{cell}/{'M00_AXI' if name == 'S00_AXI' else 'S00_AXI'}"]

    def _check_addresses(self) -> None:
        (system,) = [cell for cell, kind in self.cells.items() if "master" in kind]
        master, base, reach = self.cells[system]["master"]
        for space in (f"{system}/Data", "machine/m_axi"):
            if space not in self.addresses:
                self.refuse(f"{space} has no address assigned")
        segment, offset, size = self.addresses[f"{system}/Data"]
        if not base <= offset <= offset + size <= base + reach:
            self.refuse(f"{offset:#x} is not an address of {master}")
        if segment != f"{self._through(f'{system}/{master}')}/reg0":
            self.refuse(f"{master} does not reach {segment}")
        segment, offset, size = self.addresses["machine/m_axi"]
        port, base, most = self.cells[system]["segments"][segment.partition("/")[2]]
        if self._through("machine/m_axi") != f"{system}/{port}":
            self.refuse(f"machine/m_axi does not reach {segment}")
        if offset != base or size > most:
            self.refuse(f"{size} bytes at {offset:#x} are not in {segment}")

    def _check_widths(self) -> None:
        parameters = self.cells["machine"]["parameters"]["m_axi"]
        cell, _, name = self._through("machine/m_axi").partition("/")
        width = self.properties[cell].get(self.cells[cell]["width"][name])
        if width != parameters["DATA_WIDTH"]:
            self.refuse(f"{cell}/{name} has {width} bits, machine/m_axi {parameters['DATA_WIDTH']}")

    def do_save_bd_design(self) -> None:
        self._after("validated", "saved")

    # --- Bitstream ---

    def _after(self, earlier: str, stage: str) -> None:
        if earlier not in self.stages:
            self.refuse(f"{stage} before {earlier}")
        self.stages.append(stage)

    def do_get_files(self, name: str) -> str:
        return name if f"design {name.removesuffix('.bd')}" in self.stages else self.refuse(f"no file {name}")

    def do_make_wrapper(self, *words: str) -> None:
        self._after("saved", "wrapper")

    def do_launch_runs(self, *words: str) -> None:
        design = next(stage.split()[1] for stage in self.stages if stage.startswith("design "))
        if self.properties.get("sources_1", {}).get("top") != f"{design}_wrapper":
            self.refuse("top is not the design's wrapper")
        self._after("wrapper", "launched")

    def do_wait_on_run(self, name: str) -> None:
        self._after("launched", "waited")

    def do_get_runs(self, name: str) -> str:
        return name

    def do_get_property(self, name: str, target: str) -> str:
        return {"PROGRESS": "100%", "STATUS": "done", "SLACK": self.properties.get("path", {}).get("SLACK", "0.5")}[
            name
        ]

    def do_get_timing_paths(self) -> str:
        return "path"

    def do_open_run(self, name: str) -> None:
        self._after("waited", "opened")

    def _writes(self, *words: str) -> None:
        self._after("opened", Path(words[-1]).name)
        self.made.append(Path(words[-1]).relative_to(self.folder).as_posix())

    do_report_utilization = do_report_timing_summary = do_write_bitstream = do_write_hw_platform = _writes


@dataclass
class Batch:
    """Vivado without a project, as LiteX drives it: sources, synthesis, placement, routing, bitstream."""

    files: dict[str, str]
    parts: set[str] = field(default_factory=set)
    pins: dict[str, str] = field(default_factory=dict)  # bit of a port -> place
    standards: set[str] = field(default_factory=set)  # bits of ports that have an I/O standard
    verilog: str = ""
    stages: list[str] = field(default_factory=list)

    ORDER = ("synth_design", "opt_design", "place_design", "route_design", "write_bitstream")
    QUIET = (
        "set_msg_config", "report_timing_summary", "report_utilization", "report_io", "report_control_sets",
        "report_clock_utilization", "report_route_status", "report_drc", "report_power", "write_checkpoint",
        "phys_opt_design", "write_cfgmem", "create_clock", "set_clock_groups", "set_false_path", "set_max_delay",
        "get_nets", "get_files", "current_design", "get_clocks", "get_pins", "get_cells", "get_iobanks", "quit",
    )  # fmt: skip

    def run(self, script: str) -> None:
        """Raises `tkinter.TclError`."""
        tcl = self.tcl = tkinter.Tcl()
        commands = {name: lambda *words: "it" for name in self.QUIET}
        commands |= {name: functools.partial(self._stage, name) for name in self.ORDER}
        commands |= {name[3:]: getattr(self, name) for name in dir(self) if name.startswith("do_")}
        for name, command in commands.items():
            tcl.createcommand(f"::do_{name}", _told(command))
            tcl.eval(PROCEDURE.replace("NAME", name))
        tcl.eval(script)

    def _stage(self, name: str, *words: str) -> None:
        if self.stages != list(self.ORDER[: self.ORDER.index(name)]):
            raise Refused(f"{name} after {self.stages}")
        self.stages.append(name)
        if name == "synth_design":
            given = dict(itertools.pairwise(words))
            self.parts.add(given["-part"])
            self._check_modules(given["-top"])

    def _check_modules(self, top: str) -> None:
        modules = set(re.findall(r"^module (\w+)", self.verilog, re.MULTILINE))
        wanted = {top, *re.findall(r"^(patchloom\w*|build_\w+) \w*\s*\(", self.verilog, re.MULTILINE)}
        if missing := sorted(wanted - modules):
            raise Refused(f"no module {missing[0]} in the sources")

    def do_create_project(self, *words: str) -> None:
        self.parts.add(dict(itertools.pairwise(words))["-part"])

    def do_read_verilog(self, name: str) -> None:
        self.verilog += self._file(name) + "\n"

    def do_read_xdc(self, name: str) -> None:
        self.tcl.eval(self._file(name))

    def _file(self, name: str) -> str:
        """By its path from the folder of products."""
        if not name.startswith("../") or name[3:] not in self.files:
            raise Refused(f"no file {name}")
        return self.files[name[3:]]

    @functools.cached_property
    def ports(self) -> set[str]:
        """Bits of the top's ports."""
        head = self.files["soc.v"].partition(");")[0]
        found = re.findall(r"(?:input|output|inout)\s+(?:wire|reg)\s+(?:\[(\d+):0\])?\s*(\w+)", head)
        return {f"{name}[{bit}]" if high else name for high, name in found for bit in range(int(high or 0) + 1)}

    def do_get_ports(self, name: str) -> str:
        if name not in self.ports and f"{name}[0]" not in self.ports:
            raise Refused(f"no port {name}")
        return name

    def do_set_property(self, name: str, value: str, target: str) -> None:
        if name == "LOC":
            if value in self.pins.values():
                raise Refused(f"pin {value} is used twice")
            self.pins[target] = value
        if name == "IOSTANDARD":
            self.standards.add(target)
