"""DMA engines: requests for whole beats become AXI4 bursts.

A request is a beat-aligned byte address and a number of beats (none is allowed and does nothing). Both engines keep
several bursts on the way and move one beat a cycle, across requests too, as long as memory and the other side do.
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from compiler.config import Config
from hw import axi

BEATS_WIDTH = 28  # as dma_beats of a command
BURSTS_AHEAD = 4  # write bursts whose address may leave before their data
BURSTS_UNANSWERED = 64


class Request(data.Struct):
    address: axi.ADDRESS_WIDTH
    beats: BEATS_WIDTH


class _Splitter(wiring.Component):
    """Cuts requests into bursts that neither exceed `chunk` beats nor cross a multiple of it.

    One burst a cycle, across requests too; it appears in the cycle after its request was taken. `flush` drops what is
    left of a request and takes none.
    """

    def __init__(self, config: Config, chunk: int):
        self.beat_bytes, self.chunk = config.beat_bytes, chunk
        burst = data.StructLayout({"address": axi.ADDRESS_WIDTH, "beats": range(chunk + 1)})
        super().__init__(
            {
                "request": In(stream.Signature(Request)),
                "burst": Out(stream.Signature(burst)),
                "flush": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # An address is [page][index of the beat in its chunk][byte]: to the next chunk there is only +1 to add.
        byte_bits, index_bits = exact_log2(self.beat_bytes), exact_log2(self.chunk)
        page = Signal(axi.ADDRESS_WIDTH - byte_bits - index_bits)
        index = Signal(index_bits)
        left = Signal(BEATS_WIDTH)
        room = Signal(range(self.chunk + 1))
        final = Signal()

        m.d.comb += [
            self.busy.eq(left != 0),
            room.eq(self.chunk - index),
            final.eq(left <= room),
            self.burst.valid.eq(self.busy & ~self.flush),
            self.burst.p.address[byte_bits:].eq(Cat(index, page)),
            self.burst.p.beats.eq(Mux(final, left, room)),
        ]
        do_burst = self.burst.valid & self.burst.ready
        m.d.comb += self.request.ready.eq((~self.busy | (do_burst & final)) & ~self.flush)
        with m.If(do_burst):
            m.d.sync += [page.eq(page + 1), index.eq(0), left.eq(left - self.burst.p.beats)]
        with m.If(self.request.valid & self.request.ready):
            m.d.sync += Cat(index, page).eq(self.request.p.address[byte_bits:])
            m.d.sync += left.eq(self.request.p.beats)
        with m.If(self.flush):
            m.d.sync += left.eq(0)
        return m


def _drive_address(m, config: Config, bus, prefix: str, burst, *, allow):
    """Move `burst` into the registered address channel `prefix` whenever it is free; returns the moment it happens."""
    channel = {
        name: getattr(bus, prefix + name) for name in ("addr", "len", "size", "burst", "cache", "valid", "ready")
    }
    free = ~channel["valid"] | channel["ready"]
    m.d.comb += [
        channel["size"].eq(exact_log2(config.beat_bytes)),
        channel["burst"].eq(axi.INCR),
        channel["cache"].eq(axi.CACHEABLE),
        burst.ready.eq(free & allow),
    ]
    do_burst = burst.valid & burst.ready
    with m.If(free):
        m.d.sync += channel["valid"].eq(do_burst)
    with m.If(do_burst):
        m.d.sync += [channel["addr"].eq(burst.p.address), channel["len"].eq(burst.p.beats - 1)]
    return do_burst


class Reader(wiring.Component):
    """Memory to stream.

    Room in the buffer (`config.fifo_beats`) is reserved before a burst is asked for, so RREADY is always high. Bursts
    are at most a quarter of it: latency is hidden up to about `0.75 * fifo_beats` cycles. A beat is on `data` two
    cycles after it was on the bus. Beats answered with an error are passed on as they came.

    `error` holds the RRESP of the first bad beat until `flush`.

    `flush` drops requests, buffered and outstanding beats (`data.valid` is withdrawn at once). A read that was begun
    is finished as AXI asks. It may fall before `idle`: the engine goes on swallowing, and takes requests once idle.
    `idle`: no request in work and nothing outstanding on the bus; the buffer may still hold data.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "request": In(stream.Signature(Request)),
                "data": Out(stream.Signature(config.bus_width)),
                "bus": Out(axi.Reads(config.bus_width)),
                "flush": In(1),
                "idle": Out(1),
                "error": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        return m


class Writer(wiring.Component):
    """Stream to memory.

    Addresses run up to `BURSTS_AHEAD` bursts ahead of their data and never wait for it; data never waits for AWREADY.
    A beat taken from `data` is on the bus one cycle later. BREADY is always high.

    `error` holds the BRESP of the first bad answer until `flush`.

    `flush` drops requests and takes no data; a burst that was begun is completed with WSTRB = 0. It may fall before
    `idle`: the engine goes on completing, and takes requests and data once idle.
    `idle`: no request in work, and every burst answered.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "request": In(stream.Signature(Request)),
                "data": In(stream.Signature(config.bus_width)),
                "bus": Out(axi.Writes(config.bus_width)),
                "flush": In(1),
                "idle": Out(1),
                "error": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        return m
