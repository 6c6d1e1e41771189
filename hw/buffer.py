"""A queue in a block RAM."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.hw.pipeline import block_ram, look_up


class Buffer(wiring.Component):
    """A queue of words of `ratio` beats, never pushed when full: `depth` in a block RAM, one more behind it.

    A word can be read when its last beat is there.
    """

    def __init__(self, width: int, depth: int, ratio: int):
        self.width, self.depth, self.ratio = width, depth, ratio
        words = stream.Signature(ratio * width)
        super().__init__({"beat": In(width), "push": In(1), "clear": In(1), "data": Out(words)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ram = m.submodules.ram = block_ram(unsigned(self.ratio * self.width), self.depth)
        write, address = ram.write_port(granularity=self.width), Signal(range(self.depth))
        level = Signal(range(self.depth + 1))  # words in the RAM
        place = Signal(range(self.ratio))  # of the next beat in its word
        whole = self.push & (place == self.ratio - 1)
        do_read = (level != 0) & (~self.data.valid | self.data.ready)
        m.d.comb += [
            write.data.eq(self.beat.replicate(self.ratio)),
            write.en.eq(self.push << place),
            self.data.payload.eq(look_up(m, ram, address, do_read, name="word")),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + whole),
            address.eq(address + do_read),
            level.eq(level + whole - do_read),
        ]
        with m.If(self.push):
            m.d.sync += place.eq(Mux(whole, 0, place + 1))
        with m.If(do_read):
            m.d.sync += self.data.valid.eq(1)
        with m.Elif(self.data.ready):
            m.d.sync += self.data.valid.eq(0)
        with m.If(self.clear):
            m.d.sync += [write.addr.eq(0), address.eq(0), level.eq(0), place.eq(0), self.data.valid.eq(0)]
        return m
