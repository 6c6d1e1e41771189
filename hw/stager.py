"""Keeps the loader busy with tiles."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.config import Config
from patchloom.hw.bundles import CommandRead, Execution, Routes, lengths_width
from patchloom.hw.walker import Walker


class Stager(wiring.Component):
    """Walks the commands, from `begun` on; `ended` until `done`. The loader executes each LOAD, TABLE and MATMUL.

    Between two of them the loader idles for five cycles at least. A command of an expert waits until its ROUTE is
    done; if the expert got no token it is passed over, but where weights were fetched for it the loader must `drop`
    them.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "begun": In(1),
                "done": In(1),
                "ended": Out(1),
                "index": Out(range(config.command_depth)),  # of the command
                "lengths": In(lengths_width(config)),
                "routes": In(Routes()),
                "read": Out(CommandRead(config)),
                "loader": Out(Execution()),
                "drop": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        walker, loader = Walker(m, self.config, self.read, self.lengths, self.routes), self.loader
        c = walker.command
        loads = (c.kind == Kind.LOAD) | (c.kind == Kind.TABLE) | (c.kind == Kind.MATMUL)
        m.d.comb += [self.index.eq(walker.index), loader.command.eq(c)]

        def load() -> None:
            with m.If(loads & (~walker.empty | c.expected)):
                m.d.comb += [loader.start.eq(1), self.drop.eq(walker.empty)]
                m.next = "LOAD"
            with m.Else():
                walker.advance()

        with m.FSM():
            walker.walk_ahead(self.begun, self.done, walker.known, load, self.ended)
            with m.State("LOAD"), m.If(~loader.busy):
                walker.advance()
        return m
