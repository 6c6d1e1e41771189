"""Vivado's projects of boards with a processing system: a block design around the machine, as one Tcl script.

Names of the vendor's cells, pins, properties and address segments are a table kept by hand, from AMD's documentation
(PG201, PG082, PG164, PG247, UG994); no Vivado has run what comes of it.
"""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from patchloom.boards import regmap
from patchloom.boards.core import WRAPPER, wrapper
from patchloom.boards.description import Board, BoardError, Zynq
from patchloom.boards.sources import MACHINE, digest, machine_verilog
from patchloom.compiler.machine.config import Config

TEMPLATES = Path(__file__).parent / "templates" / "vivado"
DESIGN = "soc"  # the block design; Vivado's wrapper around it is DESIGN_wrapper
SCRIPT, CONSTRAINTS, README = "build.tcl", f"{MACHINE}.xdc", "vivado/README.md"


@dataclass(frozen=True)
class System:
    """Names of one kind of processing system."""

    automation: str  # what its board preset is applied with
    clock: str  # to the programmable logic
    reset: str  # active low
    interrupt: str
    clock_of: dict[str, str]  # port -> pin of its clock
    segment_of: dict[str, str]  # memory port -> address segment of the memory behind it
    enable: dict[str, dict[str, str]]  # port -> properties that open it
    fixed: dict[str, str]  # properties
    frequency: str  # property of the clock's rate, in MHz
    width_of: dict[str, str]  # memory port -> property of its width


SYSTEMS = {
    "zynq_ultra_ps_e": System(
        automation='apply_board_preset "1"',
        clock="pl_clk0",
        reset="pl_resetn0",
        interrupt="pl_ps_irq0",
        clock_of={"M_AXI_HPM0_FPD": "maxihpm0_fpd_aclk", "S_AXI_HP0_FPD": "saxihp0_fpd_aclk"},
        segment_of={"S_AXI_HP0_FPD": "SAXIGP2/HP0_DDR_LOW"},
        enable={
            "M_AXI_HPM0_FPD": {"PSU__USE__M_AXI_GP0": "1"},
            "S_AXI_HP0_FPD": {"PSU__USE__S_AXI_GP2": "1"},
        },
        fixed={
            "PSU__USE__M_AXI_GP1": "0",
            "PSU__USE__M_AXI_GP2": "0",
            "PSU__USE__IRQ0": "1",
            "PSU__FPGA_PL0_ENABLE": "1",
        },
        frequency="PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
        width_of={"S_AXI_HP0_FPD": "PSU__SAXIGP2__DATA_WIDTH"},
    ),
    "processing_system7": System(
        automation='make_external "FIXED_IO, DDR" apply_board_preset "1"',
        clock="FCLK_CLK0",
        reset="FCLK_RESET0_N",
        interrupt="IRQ_F2P",
        clock_of={"M_AXI_GP0": "M_AXI_GP0_ACLK", "S_AXI_HP0": "S_AXI_HP0_ACLK"},
        segment_of={"S_AXI_HP0": "S_AXI_HP0/HP0_DDR_LOWOCM"},
        enable={"M_AXI_GP0": {"PCW_USE_M_AXI_GP0": "1"}, "S_AXI_HP0": {"PCW_USE_S_AXI_HP0": "1"}},
        fixed={"PCW_USE_FABRIC_INTERRUPT": "1", "PCW_IRQ_F2P_INTR": "1", "PCW_EN_CLK0_PORT": "1"},
        frequency="PCW_FPGA0_PERIPHERAL_FREQMHZ",
        width_of={"S_AXI_HP0": "PCW_S_AXI_HP0_DATA_WIDTH"},
    ),
}


def zynq(found: Board) -> Zynq:
    if found.zynq is None:
        raise BoardError(f"board {found.name} has no processing system")
    return found.zynq


def script(found: Board, config: Config) -> str:
    """`vivado -mode batch -source build.tcl`: from sources to bitstream and hardware platform, or an error."""
    board, system = zynq(found), SYSTEMS[zynq(found).system]
    properties = {
        **system.enable[board.register_port],
        **system.enable[board.memory_port],
        **system.fixed,
        system.frequency: f"{found.clock_hz / 1e6:g}",
        system.width_of[board.memory_port]: str(config.bus_width),
    }
    facts = {
        "title": found.title,
        "part": found.device.part,
        "board_part": board.board_part,
        "design": DESIGN,
        "machine": MACHINE,
        "wrapper": WRAPPER,
        "constraints": CONSTRAINTS,
        "system": board.system,
        "automation": system.automation,
        "properties": " \\\n".join(f"  CONFIG.{name} {{{value}}}" for name, value in properties.items()),
        "clock": system.clock,
        "reset": system.reset,
        "interrupt": system.interrupt,
        "register_port": board.register_port,
        "register_clock": system.clock_of[board.register_port],
        "memory_port": board.memory_port,
        "memory_clock": system.clock_of[board.memory_port],
        "registers": f"{found.registers:#x}",
        "window": str(regmap.WINDOW),
        "segment": system.segment_of[board.memory_port],
        "memory_base": f"{found.memory.base:#x}",
        "memory_bytes": str(found.memory.bytes),
    }
    return Template((TEMPLATES / SCRIPT).read_text()).substitute(facts)


def sources(found: Board, config: Config) -> tuple[int, dict[str, str]]:
    """The digest that the machine's registers hold, and the files by name."""
    made = {
        SCRIPT: script(found, config),
        CONSTRAINTS: (TEMPLATES / CONSTRAINTS).read_text(),
        f"{MACHINE}.v": machine_verilog(config),
    }
    build = digest([found.name, *(text for item in sorted(made.items()) for text in item)])
    return build, made | {f"{WRAPPER}.v": wrapper(config, build, found.clock_hz)}


def readme_facts(found: Board) -> dict[str, str]:
    board = zynq(found)
    return {
        "name": found.name,
        "registers": f"{found.registers:#x}",
        "memory_port": board.memory_port,
        "register_port": board.register_port,
        "board_part": board.board_part,
        "load": (TEMPLATES / f"load.{board.system}.md").read_text().rstrip(),
    }
