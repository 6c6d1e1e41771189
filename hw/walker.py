"""A position in the command list: what issuer, stager and fetcher have in common."""

from collections.abc import Callable

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import wiring

from patchloom.compiler.machine.commands import Kind, Queue, Space
from patchloom.compiler.machine.config import Config
from patchloom.hw.axi import ADDRESS_WIDTH
from patchloom.hw.bundles import ROUTES_WIDTH
from patchloom.hw.command import CommandLayout
from patchloom.hw.pipeline import register


class Walker:
    """Adds its registers to a component, and its states to the component's FSM.

    `read` is the component's port to the command store, `lengths` are the queues'. What a command's queue is
    like is known a cycle after the command. `known`: if the command needs one, the ROUTE that fills it has run;
    `filling`: it is running, and there is a token. `empty`: the command needs a queue that has no token.
    """

    def __init__(
        self, m: Module, config: Config, read: wiring.PureInterface, lengths: Value, routes: wiring.PureInterface
    ):
        self.m, self.read, self.routes = m, read, routes
        self.index = Signal(range(config.command_depth), init=1)
        self.command = Signal(CommandLayout, reset_less=True)
        self.seen = Signal(ROUTES_WIDTH)  # ROUTEs before this command
        queued = (self.command.kind == Kind.MATMUL) & (self.command.queue != Queue.NONE)
        width = config.max_rows.bit_length()
        each = Array(lengths.word_select(e, width) for e in range(config.max_experts))
        length = Mux(queued, each[self.command.expert], self.command.rows)
        self.length = register(m, length, name="length")
        self.known = register(m, ~queued | (self.seen == routes.done), name="known")
        self.empty = register(m, queued & (length == 0), name="empty")
        self.filling = register(m, queued & (length != 0) & (self.seen == routes.begun), name="filling")

    def begin_states(self, begun: Value) -> None:
        """IDLE until the commands are there; then FETCH, after which the walker's own RUN has `command` before it."""
        m, read = self.m, self.read
        with m.State("IDLE"):
            m.d.sync += [self.index.eq(1), self.seen.eq(self.routes.done)]
            with m.If(begun):
                m.next = "FETCH"
        with m.State("FETCH"):
            m.d.comb += [read.ask.eq(1), read.index.eq(self.index)]
            with m.If(read.grant):
                m.next = "FETCH-TAKE"
        with m.State("FETCH-TAKE"):
            m.d.sync += self.command.eq(read.command)
            m.next = "FETCH-DECODE"
        with m.State("FETCH-DECODE"):
            m.next = "RUN"

    def walk_ahead(self, begun: Value, done: Value, known: Value, act: Callable[[], None], ended: Value) -> None:
        """States of a walker that runs ahead of the issuer: `act` on each command, `ended` until the task is done."""
        m = self.m
        self.begin_states(begun & ~done)
        with m.State("RUN"):
            with m.If(self.command.kind == Kind.END):
                m.next = "END"
            with m.Elif(known):
                act()
        with m.State("END"):
            m.d.comb += ended.eq(1)
            with m.If(done):
                m.next = "IDLE"

    def advance(self) -> None:
        """From inside a state: go on to the next command."""
        self.m.d.sync += self.index.eq(self.index + 1)
        with self.m.If(self.command.kind == Kind.ROUTE):
            self.m.d.sync += self.seen.eq(self.seen + 1)
        self.m.next = "FETCH"


def dma_address(command: Value, bases: wiring.PureInterface) -> Value:
    """Byte address of a command's DMA."""
    base = bases.program
    for space, other in ((Space.INPUT, bases.input), (Space.OUTPUT, bases.output)):
        base = Mux(command.dma_space == space, other, base)
    return (base + command.dma_address)[:ADDRESS_WIDTH]
