"""From the scratchpad to memory."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.hw.bundles import Execution, ScratchpadRead
from patchloom.hw.gearbox import Gearbox
from patchloom.hw.pipeline import delay
from patchloom.hw.scratchpad import Scratchpad


class Storer(wiring.Component):
    """Executes STORE; busy until the last beat is taken.

    Reads a chunk a cycle while the writer takes them, and holds up to `BUFFER` of them while it stalls. The first beat
    can be taken `Scratchpad.READ_LATENCY` + 3 cycles after `order.start`. The number of chunks is a whole number of
    beats.
    """

    BUFFER = Scratchpad.READ_LATENCY + 6  # chunks on their way and in the queue, so that nobody waits

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "order": In(Execution()),
                "read": Out(ScratchpadRead(config)),
                "beats": Out(stream.Signature(config.bus_width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, order = self.order.command, self.order
        chunk = len(self.read.data)
        m.submodules.buffer = buffer = SyncFIFOBuffered(width=chunk, depth=self.BUFFER)
        m.submodules.box = box = Gearbox(chunk, self.config.bus_width)  # chunks in, beats out

        asked, gone = Signal.like(c.rows), Signal.like(c.rows)
        level = Signal(range(self.BUFFER + 1))  # chunks asked for and not yet gone
        read, taken = Signal(), Signal()
        m.d.comb += [
            read.eq(order.busy & (asked != c.rows) & (level != self.BUFFER)),
            self.read.address.eq(c.a_address + asked),
            buffer.w_en.eq(delay(m, read, Scratchpad.READ_LATENCY, name="read")),
            buffer.w_data.eq(self.read.data),
            box.beats.valid.eq(buffer.r_rdy),
            box.beats.payload.eq(buffer.r_data),
            taken.eq(buffer.r_rdy & box.beats.ready),
            buffer.r_en.eq(taken),
            self.beats.valid.eq(box.items.valid),
            self.beats.payload.eq(box.items.payload),
            box.items.ready.eq(self.beats.ready),
        ]
        m.d.sync += [asked.eq(asked + read), gone.eq(gone + taken), level.eq(level + read - taken)]
        with m.If(taken & (gone + 1 == c.rows)):
            m.d.sync += order.busy.eq(0)
        with m.If(order.start):
            m.d.sync += [order.busy.eq(1), asked.eq(0), gone.eq(0)]
        return m
