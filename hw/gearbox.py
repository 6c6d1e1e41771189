"""From a stream of one width to a stream of another."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Gearbox(wiring.Component):
    """Beats of a stream to items of `width` bits, a multiple or a divisor of the beat, first item in the low bits.

    An item a cycle leaves, or a beat enters, in the cycle in which it comes; either side may stall. Nothing is stored
    beyond the items of the beat at the input: `clear` drops what is left of it.
    """

    def __init__(self, bus_width: int, width: int):
        if width % bus_width and bus_width % width:
            raise ValueError(f"item width must be a multiple or a divisor of the bus's {bus_width} bits, not {width}")
        self.bus_width, self.width = bus_width, width
        super().__init__(
            {
                "beats": In(stream.Signature(bus_width)),
                "items": Out(stream.Signature(width)),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        do_item = self.items.valid & self.items.ready
        if self.width <= self.bus_width:
            ratio = self.bus_width // self.width
            position = Signal(range(ratio))
            final = position == ratio - 1
            partial = self.clear & (position != 0)
            m.d.comb += [
                self.items.payload.eq(self.beats.payload.word_select(position, self.width)),
                self.items.valid.eq(self.beats.valid & ~self.clear),
                self.beats.ready.eq((do_item & final) | partial),
            ]
            with m.If(do_item):
                m.d.sync += position.eq(Mux(final, 0, position + 1))
            with m.If(partial):
                m.d.sync += position.eq(0)
        else:
            ratio = self.width // self.bus_width
            position = Signal(range(ratio))
            final = position == ratio - 1
            held = Signal(self.width - self.bus_width, reset_less=True)
            m.d.comb += [
                self.items.payload.eq(Cat(held, self.beats.payload)),
                self.items.valid.eq(self.beats.valid & final & ~self.clear),
                self.beats.ready.eq(Mux(final, self.items.ready, 1) & ~self.clear),
            ]
            with m.If(self.beats.valid & self.beats.ready):
                m.d.sync += position.eq(Mux(final, 0, position + 1))
                m.d.sync += held.eq(Cat(held, self.beats.payload)[self.bus_width :])
        return m
