"""The checksum of a region of memory, so that a driver need not read it back to know what lies there."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.hw.axi import ADDRESS_WIDTH
from patchloom.hw.bundles import SIZE_WIDTH, Request
from patchloom.hw.gearbox import Gearbox

BYTE = 8  # bits at a time: of 32 the logic is five times as large


class Checksum(wiring.Component):
    """CRC-32 of IEEE 802.3, as of zlib, of `size` bytes from `base` on, a byte a cycle.

    `start` for one cycle begins it; `base` and `size` stand while `busy`, which rises with the next cycle; then `value`
    is the sum until the next start. Words of memory are read whole and taken as they come.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "base": In(ADDRESS_WIDTH),
                "size": In(SIZE_WIDTH),
                "value": Out(CRC32_ETHERNET.crc_width),
                "request": Out(stream.Signature(Request)),
                "words": In(stream.Signature(config.word_width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        per_word = self.config.word_width // BYTE
        m.submodules.box = box = Gearbox(self.config.word_width, BYTE)
        m.submodules.crc = crc = CRC32_ETHERNET(data_width=BYTE).create()
        left = Signal.like(self.size)
        do_byte = box.items.valid & box.items.ready
        m.d.comb += [
            self.busy.eq(1),
            self.value.eq(crc.crc),
            self.request.payload.address.eq(self.base),
            self.request.payload.beats.eq((self.size + per_word - 1) // per_word * self.config.word_beats),
            box.beats.payload.eq(self.words.payload),
            box.beats.valid.eq(self.words.valid),
            self.words.ready.eq(box.beats.ready),
            crc.data.eq(box.items.payload),
            crc.valid.eq(do_byte),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                with m.If(self.start):
                    m.d.comb += crc.start.eq(1)
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += self.request.valid.eq(1)
                m.d.sync += left.eq(self.size)
                with m.If(self.request.ready):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.comb += box.items.ready.eq(left != 0)
                m.d.sync += left.eq(left - do_byte)
                with m.If(left == 0):
                    m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += box.clear.eq(1)  # what the last word of memory holds beyond
                m.next = "IDLE"
        return m
