"""From the machine's AXI4 port to LiteDRAM: an address window, register slices, bursts as native commands.

LiteDRAM answers OKAY whatever it is asked, and wraps addresses that its memory does not have: a wrong base would be
computed with. And its `ready` depends on everybody else's requests, which would reach deep into the machine's DMA.
"""

from typing import Any

from litedram.common import LiteDRAMNativePort
from litedram.frontend.axi import LiteDRAMAXI2Native
from litex.soc.interconnect import stream
from litex.soc.interconnect.axi import BURST_INCR, AXIInterface
from migen import If, Module, Signal, bits_for, log2_int

from patchloom.boards.description import Memory
from patchloom.hw.axi import ADDRESS_WIDTH, Response

BUFFER_BEATS = 64  # of LiteDRAM's adapter, in each direction


class Bridge(Module):
    """AXI4 slave port `axi` (INCR bursts that cross no 4 KiB line) in front of a native LiteDRAM port.

    A burst outside `memory` is answered DECERR once all bursts before it have been answered, and its data are lost;
    until then no other address of its direction is taken. A burst inside costs one cycle in each of AR, AW and W,
    and one on its way to the port; beats pass at full rate. Every ready of `axi` depends on registers alone, and so do
    the port's requests, which LiteDRAM arbitrates in the same cycle.
    """

    def __init__(self, memory: Memory, port: Any) -> None:
        if memory.base % memory.bytes:
            raise ValueError(f"memory must begin at a multiple of its {memory.bytes:#x} bytes, not at {memory.base:#x}")
        self.memory = memory
        self.axi = AXIInterface(data_width=memory.bus_width, address_width=ADDRESS_WIDTH, id_width=1)
        self.inner = AXIInterface(data_width=memory.bus_width, address_width=log2_int(memory.bytes), id_width=1)
        native = LiteDRAMNativePort("both", port.address_width, port.data_width)
        self.submodules.native = LiteDRAMAXI2Native(
            self.inner, native, w_buffer_depth=BUFFER_BEATS, r_buffer_depth=BUFFER_BEATS, base_address=0
        )
        self._commands(native, port)
        self._read(self.axi, self.inner)
        self._write(self.axi, self.inner)

    def _slice(self, layout: list[tuple[str, int]]) -> Any:
        """A register in both directions."""
        held = stream.Buffer(layout, pipe_valid=True, pipe_ready=True)
        self.submodules += held
        return held

    def _commands(self, native: Any, port: Any) -> None:
        """The adapter reserves its buffers as it asks, so that its requests may wait. Data keep their times."""
        held = self._slice(native.cmd.description)
        self.comb += [
            native.cmd.connect(held.sink),
            held.source.connect(port.cmd),
            native.wdata.connect(port.wdata),
            port.rdata.connect(native.rdata),
        ]

    def _address(self, outer: Any, inner: Any, bad: Any) -> tuple[Any, Any]:
        """An address channel, stopped while `bad`. Returns the events: a burst inside is taken, one outside is."""
        size = len(inner.addr)
        held = self._slice([("addr", size), ("len", 8)])
        is_outside = outer.addr[size:] != self.memory.base >> size
        inside, outside = Signal(), Signal()
        self.comb += [
            outer.ready.eq(held.sink.ready & ~bad),
            held.sink.valid.eq(outer.valid & ~bad & ~is_outside),
            held.sink.addr.eq(outer.addr),
            held.sink.len.eq(outer.len),
            inside.eq(held.sink.valid & held.sink.ready),
            outside.eq(outer.valid & outer.ready & is_outside),
            held.source.connect(inner, keep={"valid", "ready", "addr", "len"}),
            inner.burst.eq(BURST_INCR),
            inner.size.eq(log2_int(self.memory.bus_width // 8)),
        ]
        return inside, outside

    def _count(self, begun: Any, ended: Any) -> Any:
        """Bursts that have begun and not ended; no more than the buffers, a beat each, and the slices hold."""
        bursts = Signal(bits_for(BUFFER_BEATS + 8))
        self.sync += bursts.eq(bursts + begun - ended)
        return bursts

    def _read(self, axi: Any, inner: Any) -> None:
        bad, beats, denying = Signal(), Signal(8), Signal()
        inside, outside = self._address(axi.ar, inner.ar, bad)
        unanswered = self._count(inside, inner.r.valid & inner.r.ready & inner.r.last)
        self.sync += [
            If(outside, bad.eq(1), beats.eq(axi.ar.len)),
            If(denying & axi.r.ready, beats.eq(beats - 1), If(axi.r.last, bad.eq(0))),
        ]
        self.comb += [
            denying.eq(bad & (unanswered == 0)),
            inner.r.connect(axi.r, keep={"data", "last", "resp"}),
            axi.r.valid.eq(inner.r.valid | denying),
            inner.r.ready.eq(axi.r.ready),
            If(denying, axi.r.resp.eq(Response.DECERR.value), axi.r.last.eq(beats == 0)),
        ]

    def _write(self, axi: Any, inner: Any) -> None:
        bad, swallowed, denying, swallowing = Signal(), Signal(), Signal(), Signal()
        inside, outside = self._address(axi.aw, inner.aw, bad)
        held = self._slice([("data", self.memory.bus_width), ("strb", self.memory.bus_width // 8)])
        unwritten = self._count(inside, held.sink.valid & held.sink.ready & held.sink.last)
        unanswered = self._count(inside, inner.b.valid & inner.b.ready)
        self.sync += [
            If(outside, bad.eq(1)),
            If(swallowing & axi.w.valid & axi.w.last, swallowed.eq(1)),
            If(denying & axi.b.ready, bad.eq(0), swallowed.eq(0)),
        ]
        self.comb += [
            swallowing.eq(bad & ~swallowed & (unwritten == 0)),
            axi.w.connect(held.sink, keep={"data", "strb", "last"}),
            held.sink.valid.eq(axi.w.valid & (unwritten != 0)),
            axi.w.ready.eq((held.sink.ready & (unwritten != 0)) | swallowing),
            held.source.connect(inner.w, keep={"valid", "ready", "data", "strb", "last"}),
            denying.eq(swallowed & (unanswered == 0)),
            inner.b.connect(axi.b, keep={"resp"}),
            axi.b.valid.eq(inner.b.valid | denying),
            inner.b.ready.eq(axi.b.ready),
            If(denying, axi.b.resp.eq(Response.DECERR.value)),
        ]
