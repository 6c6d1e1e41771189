"""Asks memory for what commands will stream."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Kind, Stationary
from patchloom.compiler.machine.config import Config
from patchloom.hw.bundles import Bases, CommandRead, Request, Routes, lengths_width
from patchloom.hw.walker import Walker, dma_address


class Fetcher(wiring.Component):
    """Walks the commands as far ahead as the reader takes requests, from `begun` on; `ended`, the last one taken, until
    `done`.

    A command takes four cycles, or as long as the reader's stall. One of an expert waits until its ROUTE has given the
    expert a token or is done, and asks for nothing if there is no token; where an expert is `expected` it asks at once.

    `request` comes from a register, which takes the boot's requests too: addresses are sums, and the reader is far
    away.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "begun": In(1),
                "done": In(1),
                "ended": Out(1),
                "index": Out(range(config.command_depth)),  # of the command
                "bases": In(Bases()),
                "lengths": In(lengths_width(config)),
                "routes": In(Routes()),
                "read": Out(CommandRead(config)),
                "boot": In(stream.Signature(Request)),
                "request": Out(stream.Signature(Request)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        walker = Walker(m, self.config, self.read, self.lengths, self.routes)
        c, request, asks, ended = walker.command, self.request, Signal(), Signal()
        m.d.comb += [self.boot.ready.eq(~request.valid), self.ended.eq(ended & ~request.valid)]
        m.d.comb += self.index.eq(walker.index)
        with m.If(request.valid & request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If((asks | self.boot.valid) & ~request.valid):
            m.d.sync += [request.valid.eq(1), request.payload.eq(self.boot.payload)]
            with m.If(asks):
                m.d.sync += request.payload.address.eq(dma_address(c, self.bases))
                m.d.sync += request.payload.beats.eq(c.dma_beats)
        stored = (c.kind == Kind.MATMUL) & (c.b_source == Stationary.MEMORY)
        streams = (c.kind == Kind.LOAD) | (c.kind == Kind.TABLE) | stored

        def ask() -> None:
            m.d.comb += asks.eq(streams & (~walker.empty | c.expected))
            with m.If(~asks | ~request.valid):
                walker.advance()

        with m.FSM():
            walker.walk_ahead(self.begun, self.done, walker.known | walker.filling | c.expected, ask, ended)
        return m
