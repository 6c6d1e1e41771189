"""The SoC around the machine on boards without a processing system, by LiteX: memory controller and link to the host.

One builder for ULX3S, ECPIX-5, Arty and for simulation. There is no CPU and no cache: the host starts the memory,
writes the image and the machine's registers over the link, and sees the memory at the machine's own addresses.

LiteX changes the working directory, prints, and keeps global state: run this in a process of its own, as
`boards.sources` does: `python -m patchloom.boards.soc FOLDER`, the request as JSON on standard input.
"""

import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import litedram.modules
import litedram.phy
from litedram.init import get_sdram_phy_init_sequence
from litedram.phy.model import SDRAMPHYModel
from litex.build.generic_platform import GenericPlatform, Pins, Subsignal
from litex.soc.cores.uart import RS232PHY, RS232PHYModel, UARTBone
from litex.soc.integration.export import get_csr_json
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from migen import ClockDomain, Module, Signal

from patchloom.boards.board import board
from patchloom.boards.bridge import Bridge
from patchloom.boards.description import Board, BoardError, Litex
from patchloom.boards.machine import Machine
from patchloom.boards.sources import DIGEST, MACHINE, SOC
from patchloom.compiler.machine.config import Config
from patchloom.host.device import Region
from patchloom.host.transports.levelling import COMMAND, CONTROL, Levelling
from patchloom.host.transports.soc import SocMap, Step
from patchloom.host.transports.uartbone import GIVES_UP
from patchloom.hw.axi import LITE_ADDRESS_WIDTH

PHYS: dict[str, tuple[str, dict[str, Any]]] = {  # pads, and arguments beside them and the clock
    "HalfRateGENSDRPHY": ("sdram", {}),
    "ECP5DDRPHY": ("ddram", {}),
    "A7DDRPHY": ("ddram", {"memtype": "DDR3", "nphases": 4}),
}
ETHERNET: dict[str, tuple[str, dict[str, Any]]] = {  # module, and arguments beside the pads
    "LiteEthPHYMII": ("mii", {}),
    "LiteEthPHYRGMII": ("ecp5rgmii", {"rx_delay": 0.0}),
}
ETHERBONE_WORDS = 256  # of a record; a longer one would stop the receiver
SIMULATION = [
    ("sys_clk", 0, Pins(1)),
    ("sys_rst", 0, Pins(1)),
    (
        "serial",
        0,
        *(Subsignal(f"source_{name}", Pins(width)) for name, width in (("valid", 1), ("ready", 1), ("data", 8))),
        *(Subsignal(f"sink_{name}", Pins(width)) for name, width in (("valid", 1), ("ready", 1), ("data", 8))),
    ),
]


class SimulatedClock(Module):
    """The domain `sys` from two pins. `rst` is the SoC's own reset."""

    def __init__(self, platform: Any) -> None:
        self.rst = Signal()
        self.clock_domains.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("sys_clk")),
            self.cd_sys.rst.eq(platform.request("sys_rst") | self.rst),
        ]


class Soc(SoCCore):
    """Machine, memory and link of a board; simulated, a model takes the place of the memory, a stream that of pins.

    The stream has ports serial_sink_* (bytes from the host) and serial_source_* (to the host), each valid, ready, data.
    """

    def __init__(self, found: Board, config: Config, *, simulated: bool) -> None:
        litex = found.built_by_litex()
        real = _platform(litex)
        platform = GenericPlatform("simulation", SIMULATION, name=SOC) if simulated else real
        self.crg = SimulatedClock(platform) if simulated else _clocks(found, litex, real)
        without = dict.fromkeys(("with_uart", "with_timer"), False)
        super().__init__(platform, found.clock_hz, cpu_type=None, integrated_sram_size=0, **without)
        self._add_memory(found, litex, real, simulated)
        self._add_machine(found, config)
        self._add_link(found, platform, simulated)

    def _add_memory(self, found: Board, litex: Litex, real: Any, simulated: bool) -> None:
        pads, arguments = PHYS[litex.phy]
        phy = getattr(litedram.phy, litex.phy)(real.request(pads), sys_clk_freq=found.clock_hz, **arguments)
        dram = getattr(litedram.modules, litex.simulated_dram if simulated else litex.dram)
        module = dram(found.clock_hz, litex.rate)
        if simulated:
            phy = SDRAMPHYModel(module, settings=phy.settings, clk_freq=found.clock_hz)
        elif hasattr(phy, "init"):  # ECP5's DDR PHY stops the clocks while its delays settle
            self.comb += [self.crg.stop.eq(phy.init.stop), self.crg.reset.eq(phy.init.reset)]
        self.add_module("phy", phy)
        # The machine's port passes by the cache that would be here by default.
        self.add_sdram("sdram", phy=phy, module=module, l2_cache_size=0)
        self.dram = module

    def _add_machine(self, found: Board, config: Config) -> None:
        width = self.sdram.crossbar.controller.data_width
        if not config.bus_width == found.memory.bus_width == width:  # a converter would come between them, silently
            raise BoardError(
                f"board {found.name}'s memory controller has {width} bits, the board says {found.memory.bus_width} and "
                f"the machine has {config.bus_width}"
            )
        region = self.bus.regions["main_ram"]
        memory = replace(found.memory, base=region.origin, bytes=region.size)
        self.machine = machine = Machine(config, found.clock_hz)
        self.bridge = bridge = Bridge(memory, self.sdram.crossbar.get_port())
        self.comb += machine.memory.connect(bridge.axi)
        self.bus.add_slave(
            "patchloom", machine.control, SoCRegion(found.registers, 1 << LITE_ADDRESS_WIDTH, mode="rw", cached=False)
        )

    def _add_link(self, found: Board, platform: Any, simulated: bool) -> None:
        pads = platform.request("serial")
        phy = RS232PHYModel(pads) if simulated else RS232PHY(pads, found.clock_hz, found.baud)
        self.add_module("uart_phy", phy)
        # Nobody wants to simulate a tenth of a second of silence.
        self.gives_up = GIVES_UP / 100 if simulated else GIVES_UP
        clock = found.clock_hz * self.gives_up / GIVES_UP
        self.uart = UARTBone(phy, clock, address_width=self.bus.address_width)
        self.bus.add_master("uart", self.uart.wishbone)
        if found.link == "etherbone" and not simulated:
            self._add_etherbone(found.built_by_litex(), platform)

    def _add_etherbone(self, litex: Litex, platform: Any) -> None:
        module, arguments = ETHERNET[litex.ethernet]
        ethernet = getattr(import_module(f"liteeth.phy.{module}"), litex.ethernet)
        phy = ethernet(platform.request("eth_clocks"), platform.request("eth"), **arguments)
        self.add_module("eth_phy", phy)
        # 32 bits: all but the PHY runs at the machine's clock, not at the PHY's, which may be 125 MHz.
        self.add_etherbone(phy=phy, ip_address=litex.ip, data_width=32, buffer_depth=ETHERBONE_WORDS)


def _platform(litex: Litex) -> Any:
    return import_module(f"litex_boards.platforms.{litex.platform}").Platform(**dict(litex.arguments))


def _clocks(found: Board, litex: Litex, platform: Any) -> Any:
    target = import_module(f"litex_boards.targets.{litex.platform}")
    return target._CRG(platform, found.clock_hz, **dict(litex.clocks))


# --- What the host must know ---

PHY_RESET_CYCLES = 1000
DELAY_CYCLES = 4  # of a delay's unit, which is one turn of a loop on a CPU
RUNNING = 0b1111  # of `sdram_dfii_control`: the controller has the memory. It would do with 1, which is the reset value


def csrs(soc: Soc) -> dict[str, int]:
    """Addresses of LiteX's own registers."""
    known = json.loads(get_csr_json(soc.csr_regions, soc.constants, soc.mem_regions))
    return {name: csr["addr"] for name, csr in sorted(known["csr_registers"].items())}


def start_of_memory(soc: Soc) -> list[Step]:
    """LiteDRAM's sequence as words to write, behind a reset of the PHY, if that has one."""
    at = csrs(soc)
    steps = [Step(at["phy_rst"], value, PHY_RESET_CYCLES) for value in (1, 0) if "phy_rst" in at]
    sequence, _ = get_sdram_phy_init_sequence(soc.phy.settings, soc.dram.timing_settings)
    for _, address, bank, names, delay in sequence:
        flags = sum((CONTROL | COMMAND)[name] for name in names.split("|"))
        if "DFII_CONTROL" in names:
            written = {"sdram_dfii_control": flags}
        else:
            port = {"address": address, "baddress": bank, "command": flags, "command_issue": 1}
            written = {f"sdram_dfii_pi0_{name}": value for name, value in port.items()}
        steps += [Step(at[name], value, 0) for name, value in written.items()]
        steps[-1] = replace(steps[-1], cycles=DELAY_CYCLES * delay)
    return [*steps, Step(at["sdram_dfii_control"], RUNNING, 0)]


def levelling(soc: Soc) -> Levelling | None:
    """What the host must know to level the memory's delays; nothing where there are none."""
    at, settings = csrs(soc), soc.phy.settings
    if "phy_rdly_dq_rst" not in at:
        return None
    prefixes = re.compile(r"sdram_dfii_(?=pi)|phy_")
    return Levelling(
        lanes=settings.databits // 8,
        phases=settings.nphases,
        phase_bytes=settings.dfi_databits // 8,
        read_phase=_reset_value(settings.rdphase),
        write_phase=_reset_value(settings.wrphase),
        delays=settings.delays,
        bitslips=settings.bitslips,
        csrs={prefixes.sub("", name): address for name, address in at.items() if prefixes.match(name)},
    )


def _reset_value(setting: Any) -> int:
    """Of what some PHYs have as a register, for debugging."""
    return setting.reset.value if isinstance(setting, Signal) else int(setting)


def host_map(soc: Soc, found: Board) -> SocMap:
    region = soc.bus.regions["main_ram"]
    memory = Region(region.origin, region.size)
    return SocMap(
        board=found.name,
        clock_hz=found.clock_hz,
        registers=found.registers,
        memory=memory,
        setup=tuple(start_of_memory(soc)),
        levelling=levelling(soc),
        baud=found.baud,
        gives_up=soc.gives_up,
    )


def row_bytes(soc: Soc) -> int:
    """Of the memory, over all its chips."""
    return int(soc.phy.settings.databits // 8 << soc.dram.geom_settings.colbits)


def write(folder: Path, name: str, config: Config, *, simulated: bool) -> None:
    """Verilog, constraints, and what the host must know."""
    found = board(name)
    soc = Soc(found, config, simulated=simulated)
    if simulated:
        soc.finalize()
        soc.platform.get_verilog(soc, name=SOC, regular_comb=False).write(str(folder / f"{SOC}.v"))
    else:
        if found.tools == "vivado":
            for module in (MACHINE, DIGEST):
                soc.platform.add_source(str(folder / f"{module}.v"))
        soc.platform.build(soc, build_dir=str(folder), build_name=SOC, run=False)
    host_map(soc, found).save(folder / "soc.json")
    (folder / "litex.json").write_text(json.dumps({"csrs": csrs(soc), "row_bytes": row_bytes(soc)}))


if __name__ == "__main__":
    request = json.load(sys.stdin)
    write(Path(sys.argv[1]), request["board"], Config(**request["config"]), simulated=request["simulated"])
