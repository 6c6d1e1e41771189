"""The machine as one migen Instance, its ports taken from the RTL."""

import re
from typing import Any

from amaranth.hdl._ir import PortDirection
from litex.soc.interconnect.axi import AXIInterface, AXILiteInterface
from migen import ClockSignal, Constant, Instance, Module, ResetSignal, Signal

from patchloom.boards.sources import DIGEST, MACHINE
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import DIGEST_BITS
from patchloom.hw import axi
from patchloom.hw.top import Top

PORT = re.compile(r"(?P<bus>m_axi|s_axil)_(?P<channel>aw|ar|w|b|r)(?P<member>\w+)")


class Machine(Module):
    """Master `memory`, slave `control` (byte addresses of 32 bits, of which the machine sees its own), `irq`."""

    def __init__(self, config: Config, clock_hz: int) -> None:
        self.memory = AXIInterface(data_width=config.bus_width, address_width=axi.ADDRESS_WIDTH, id_width=1)
        self.control = AXILiteInterface(data_width=axi.LITE_DATA_WIDTH, address_width=32)
        self.irq = Signal()
        self.digest = Signal(DIGEST_BITS)
        self.clock_hz = Constant(clock_hz, 32)
        ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for name, (value, direction) in axi.port_map(Top(config)).items():
            way = "i" if direction == PortDirection.Input else "o"
            ports[f"{way}_{name}"] = self._signal(name, len(value), way)
        self.specials += [Instance(MACHINE, **ports), Instance(DIGEST, o_digest=self.digest)]

    def _signal(self, name: str, width: int, way: str) -> Any:
        """What a port of the machine is connected to."""
        found = PORT.fullmatch(name)
        if found is None:
            signal = getattr(self, name)  # a new port of the machine must be given a place here
        else:
            bus = self.memory if found["bus"] == "m_axi" else self.control
            signal = getattr(getattr(bus, found["channel"]), found["member"])
        if way == "i" and found and found["member"] == "addr":
            signal = signal[:width]
        if len(signal) != width:
            raise ValueError(f"port {name} must be connected to {width} bits, not {len(signal)}")
        return signal
