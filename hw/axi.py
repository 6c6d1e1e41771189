"""AXI4 and AXI4-Lite ports. Members bear the standard's names, so a top level shows what tools look for.

All signatures are the master's side: a component that is a slave declares `In(Lite(...))`. There is one ID, 0.
"""

from enum import IntEnum

from amaranth import Module
from amaranth.hdl import Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ADDRESS_WIDTH = 64
LITE_ADDRESS_WIDTH = 12  # 4 KiB, the least a Zynq interconnect maps
LITE_DATA_WIDTH = 32
PAGE_BYTES = 4096  # no burst may cross a multiple of this
BURST_BEATS = 256
INCR = 1
CACHEABLE = 0b0011  # AxCACHE: normal, non-cacheable, bufferable; what interconnects expect of a DMA engine


class Response(IntEnum):
    """xRESP; bit 1 marks an error."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def _address_channel(prefix: str, address_width: int) -> dict[str, wiring.Member]:
    members = {
        "id": Out(1),
        "addr": Out(address_width),
        "len": Out(8),  # beats - 1
        "size": Out(3),  # log2 of the bytes of a beat
        "burst": Out(2),
        "cache": Out(4),
        "prot": Out(3),
        "valid": Out(1),
        "ready": In(1),
    }
    return {prefix + name: member for name, member in members.items()}


class Reads(wiring.Signature):
    """The read channels, AR and R, of an AXI4 master."""

    def __init__(self, data_width: int, address_width: int = ADDRESS_WIDTH):
        self.data_width = data_width
        super().__init__(
            _address_channel("ar", address_width)
            | {
                "rid": In(1),
                "rdata": In(data_width),
                "rresp": In(2),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class Writes(wiring.Signature):
    """The write channels, AW, W and B, of an AXI4 master."""

    def __init__(self, data_width: int, address_width: int = ADDRESS_WIDTH):
        self.data_width = data_width
        super().__init__(
            _address_channel("aw", address_width)
            | {
                "wdata": Out(data_width),
                "wstrb": Out(data_width // 8),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
            }
        )


class Master(wiring.Signature):
    """All five channels of an AXI4 master."""

    def __init__(self, data_width: int, address_width: int = ADDRESS_WIDTH):
        self.data_width = data_width
        reads, writes = Reads(data_width, address_width), Writes(data_width, address_width)
        super().__init__(dict(reads.members.items()) | dict(writes.members.items()))


class Lite(wiring.Signature):
    """AXI4-Lite, 32 data bits."""

    def __init__(self, address_width: int = LITE_ADDRESS_WIDTH):
        super().__init__(
            {
                "awaddr": Out(address_width),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(LITE_DATA_WIDTH),
                "wstrb": Out(LITE_DATA_WIDTH // 8),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(address_width),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(LITE_DATA_WIDTH),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


def forward(m: Module, inner, outer) -> None:
    """Drive the port `outer` of a component with its submodule's port `inner`, member by member of `inner`.

    `forward(m, reader.bus, self.bus); forward(m, writer.bus, self.bus)` makes one `Master` of a `Reads` and a
    `Writes`, and `forward(m, registers.control, self.control)` passes a slave port through. `inner` and `outer` face
    the same way.
    """
    for name, member in inner.signature.members.items():
        one, other = getattr(inner, name), getattr(outer, name)
        if member.is_signature:
            forward(m, one, other)
        elif member.flow == Out:
            m.d.comb += other.eq(one)
        else:
            m.d.comb += one.eq(other)


# Names of a top level's ports: member -> prefix. Others keep their own names, `_` between levels.
PREFIXES = {"bus": "m_axi", "control": "s_axil"}


# Words of Verilog that a port may well be called; it gets a `_` behind.
KEYWORDS = frozenset(
    {"begin", "config", "edge", "end", "event", "initial", "input", "output", "repeat", "task", "time"}
)


def port_map(component: wiring.Component) -> dict[str, tuple[Value, PortDirection]]:
    """The `ports` argument of Amaranth's back ends: `bus` as m_axi_araddr..., `control` as s_axil_awaddr..."""
    ports = {}
    for path, member, value in component.signature.flatten(component):
        names = [PREFIXES.get(str(path[0]), str(path[0])), *map(str, path[1:])]
        direction = PortDirection.Input if member.flow == In else PortDirection.Output
        name = "_".join(names)
        ports[name + "_" * (name in KEYWORDS)] = (Value.cast(value), direction)
    return ports
