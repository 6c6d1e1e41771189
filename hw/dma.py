"""DMA engines: requests for whole beats become AXI4 bursts.

A request is a beat-aligned byte address and a number of beats (none is allowed and does nothing). Both engines keep
several bursts on the way and move one beat a cycle, across requests too, as long as memory and the other side do
and bursts have two beats or more.
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.config import Config
from patchloom.hw import axi
from patchloom.hw.buffer import Buffer
from patchloom.hw.bundles import BEATS_WIDTH, Request, Window

BURSTS_AHEAD = 4  # write bursts whose address may leave before their data
BURSTS_UNANSWERED = 64  # writes on the way: with full bursts far more than any memory's latency needs


def longest_burst(config: Config) -> int:
    """Beats, as AXI allows."""
    return min(axi.BURST_BEATS, axi.PAGE_BYTES // config.beat_bytes)


class _Splitter(wiring.Component):
    """Cuts requests into bursts that neither exceed `chunk` beats nor cross a multiple of it.

    A burst every other cycle; it appears two cycles after its request was taken. One that is `outside` the window is
    to stay where it is. `flush` drops what is left of a request and takes none.
    """

    def __init__(self, config: Config, chunk: int):
        self.beat_bytes, self.chunk = config.beat_bytes, chunk
        burst = data.StructLayout({"address": axi.ADDRESS_WIDTH, "beats": range(chunk + 1), "outside": 1})
        super().__init__(
            {
                "request": In(stream.Signature(Request)),
                "burst": Out(stream.Signature(burst)),
                "window": In(Window()),
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
        left, cut = Signal(BEATS_WIDTH), Signal()  # beats; whether a burst has been cut off them
        room = Signal(range(self.chunk + 1))
        final = Signal()
        window_page = page[-len(self.window.first) :]  # of which a burst is in one

        m.d.comb += [
            self.busy.eq((left != 0) | cut),
            room.eq(self.chunk - index),
            final.eq(left <= room),
            self.burst.valid.eq(cut & ~self.flush),
            self.request.ready.eq((left == 0) & ~self.flush),
        ]
        with m.If(self.burst.valid & self.burst.ready):
            m.d.sync += cut.eq(0)
        with m.Elif(~cut & (left != 0)):
            m.d.sync += [
                cut.eq(1),
                self.burst.p.address[byte_bits:].eq(Cat(index, page)),
                self.burst.p.beats.eq(Mux(final, left, room)),
                self.burst.p.outside.eq((window_page < self.window.first) | (window_page > self.window.last)),
                page.eq(page + 1),
                index.eq(0),
                left.eq(Mux(final, 0, left - room)),
            ]
        with m.If(self.request.valid & self.request.ready):
            m.d.sync += Cat(index, page).eq(self.request.p.address[byte_bits:])
            m.d.sync += left.eq(self.request.p.beats)
        with m.If(self.flush):
            m.d.sync += [left.eq(0), cut.eq(0)]
        return m


def _raise_address(m, config: Config, bus, prefix: str, burst, allow):
    """Move bursts into the registered address channel `prefix` while `allow` is high; returns the event.

    None that is outside the window. Once raised, VALID and its payload stay until READY, whatever `allow` does.
    """
    valid, ready = getattr(bus, prefix + "valid"), getattr(bus, prefix + "ready")
    free = ~valid | ready
    do_burst = burst.valid & burst.ready
    m.d.comb += [
        getattr(bus, prefix + "size").eq(exact_log2(config.beat_bytes)),
        getattr(bus, prefix + "burst").eq(axi.INCR),
        getattr(bus, prefix + "cache").eq(axi.CACHEABLE),
        burst.ready.eq(free & allow & ~burst.p.outside),
    ]
    with m.If(free):
        m.d.sync += valid.eq(do_burst)
    with m.If(do_burst):
        m.d.sync += getattr(bus, prefix + "addr").eq(burst.p.address)
        m.d.sync += getattr(bus, prefix + "len").eq(burst.p.beats - 1)
    return do_burst


def _discarding(m, flush, idle):
    """High from `flush` on until both `flush` is low and the engine is idle."""
    draining = Signal()
    with m.If(flush):
        m.d.sync += draining.eq(1)
    with m.Elif(idle):
        m.d.sync += draining.eq(0)
    return flush | draining


def _keep_error(m, error, response, valid, discard):
    """`error` takes the first answer that is one, and is cleared by `discard`."""
    with m.If(discard):
        m.d.sync += error.eq(0)
    with m.Elif(valid & response[1] & (error == 0)):
        m.d.sync += error.eq(response)


class Reader(wiring.Component):
    """Memory to stream.

    `data` are words of `config.word_beats` beats, first beat in the low bits; requests are whole words. Room in the
    buffer (`config.fifo_beats`) is reserved before a burst is asked for, so RREADY is always high. Bursts are at most
    a quarter of it: latency is hidden up to about `0.75 * fifo_beats` cycles. A word is on `data` two cycles after its
    last beat was on the bus. Beats answered with an error are passed on as they came.

    `error` holds the RRESP of the first bad beat until `flush`. A burst `outside` the window is not begun, and the
    engine waits for `flush`.

    `flush` drops requests, buffered and outstanding beats (`data.valid` is withdrawn at once). A read that was begun
    is finished as AXI asks. It may fall before `idle`: the engine goes on swallowing, and takes requests once idle.
    `idle`: no request in work and nothing outstanding on the bus; the buffer may still hold data, unless `empty`.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "request": In(stream.Signature(Request)),
                "data": Out(stream.Signature(config.word_width)),
                "bus": Out(axi.Reads(config.bus_width)),
                "window": In(Window()),
                "flush": In(1),
                "idle": Out(1),
                "empty": Out(1),
                "error": Out(2),
                "outside": Out(1),
            }
        )

    @staticmethod
    def burst_beats(config: Config) -> int:
        """At most: a quarter of the buffer."""
        return min(longest_burst(config), config.fifo_beats // 4)

    def elaborate(self, platform):
        m = Module()
        bus, depth, ratio = self.bus, self.config.fifo_beats, self.config.word_beats
        chunk = self.burst_beats(self.config)
        m.submodules.splitter = splitter = _Splitter(self.config, chunk)
        wiring.connect(m, wiring.flipped(self.request), splitter.request)

        discard = _discarding(m, self.flush, self.idle)
        free = Signal(range(depth + 1), init=depth)  # buffer places not reserved
        outstanding = Signal(range(depth + 1))  # beats asked for and not yet here
        do_burst = _raise_address(m, self.config, bus, "ar", splitter.burst, free >= chunk)
        do_beat = bus.rvalid & bus.rready
        do_leave = self.data.valid & self.data.ready
        asked = Mux(do_burst, splitter.burst.p.beats, 0)

        m.submodules.buffer = buffer = Buffer(len(bus.rdata), depth // ratio, ratio)
        wiring.connect(m, wiring.flipped(self.window), splitter.window)
        m.d.comb += [
            splitter.flush.eq(discard),
            self.outside.eq(splitter.burst.valid & splitter.burst.p.outside),
            self.empty.eq(~splitter.busy & (free == depth)),
            bus.rready.eq(1),
            buffer.beat.eq(bus.rdata),
            buffer.push.eq(do_beat),
            buffer.clear.eq(discard),
            self.data.payload.eq(buffer.data.payload),
            self.data.valid.eq(buffer.data.valid & ~discard),
            buffer.data.ready.eq(do_leave),
            self.idle.eq(~splitter.busy & (outstanding == 0)),
        ]
        m.d.sync += outstanding.eq(outstanding + asked - do_beat)
        m.d.sync += free.eq(Mux(discard, depth, free - asked + ratio * do_leave))
        _keep_error(m, self.error, bus.rresp, do_beat, discard)
        return m


class Writer(wiring.Component):
    """Stream to memory.

    Addresses run up to `BURSTS_AHEAD` bursts ahead of their data and never wait for it; data never waits for AWREADY.
    A beat taken from `data` is on the bus one cycle later. BREADY is always high.

    `error` holds the BRESP of the first bad answer until `flush`. A burst `outside` the window is not begun, and the
    engine waits for `flush`.

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
                "window": In(Window()),
                "flush": In(1),
                "idle": Out(1),
                "error": Out(2),
                "outside": Out(1),
            }
        )

    @staticmethod
    def burst_beats(config: Config) -> int:
        """At most: what AXI allows."""
        return longest_burst(config)

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        chunk = self.burst_beats(self.config)
        m.submodules.splitter = splitter = _Splitter(self.config, chunk)
        wiring.connect(m, wiring.flipped(self.request), splitter.request)
        m.submodules.begun = begun = SyncFIFO(width=exact_log2(chunk), depth=BURSTS_AHEAD)  # bursts' beats - 1

        discard = _discarding(m, self.flush, self.idle)
        unanswered = Signal(range(BURSTS_UNANSWERED + 1))
        allow = begun.w_rdy & (unanswered != BURSTS_UNANSWERED)
        do_burst = _raise_address(m, self.config, bus, "aw", splitter.burst, allow)
        do_answer = bus.bvalid & bus.bready
        wiring.connect(m, wiring.flipped(self.window), splitter.window)
        m.d.comb += [
            splitter.flush.eq(discard),
            self.outside.eq(splitter.burst.valid & splitter.burst.p.outside),
            begun.w_en.eq(do_burst),
            begun.w_data.eq(splitter.burst.p.beats - 1),
            bus.bready.eq(1),
            self.idle.eq(~splitter.busy & (unanswered == 0)),
        ]
        m.d.sync += unanswered.eq(unanswered + do_burst - do_answer)
        _keep_error(m, self.error, bus.bresp, do_answer, discard)

        active = Signal()  # a burst's data is on its way
        left = Signal(len(begun.r_data))
        free = ~bus.wvalid | bus.wready
        do_beat = active & free & (self.data.valid | discard)
        do_begin = begun.r_rdy & (~active | (do_beat & (left == 0)))
        m.d.comb += [
            begun.r_en.eq(do_begin),
            self.data.ready.eq(active & free & ~discard),
        ]
        with m.If(free):
            m.d.sync += bus.wvalid.eq(do_beat)
        with m.If(do_beat):
            m.d.sync += [
                bus.wdata.eq(self.data.payload),
                bus.wstrb.eq(Mux(discard, 0, ~0)),
                bus.wlast.eq(left == 0),
                left.eq(left - 1),
                active.eq(left != 0),
            ]
        with m.If(do_begin):
            m.d.sync += [active.eq(1), left.eq(begun.r_data)]
        return m
