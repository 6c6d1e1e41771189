"""Runs the datapath, the router and the storer."""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Kind, Residual, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw.bundles import (
    Bases,
    Beats,
    CommandRead,
    Execution,
    Failure,
    Request,
    Routes,
    Turn,
    fail,
    lengths_width,
)
from patchloom.hw.command import STEPS_WIDTH
from patchloom.hw.datapath import Datapath
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.serialiser import Serialiser
from patchloom.hw.walker import Walker, dma_address


class Issuer(wiring.Component):
    """Executes the commands one after another, from `begun` on; `done` pulses at the end, when memory owes nothing.

    A beat a cycle is issued, unless the next tile or its parameters are not there (`stall_weights`), a row would come
    back too soon, or the scratchpad's one port is taken. A command begins when all that the one before left behind can
    be read: the first beat `Datapath.latency` + 2 cycles after the last. A ROUTE waits until the other walkers, who may
    still have weights to drop of experts without tokens, have come to it. `stall_writes` while it waits for memory to
    take results.

    With `Config.epilogue_lanes` no beat is issued that ends a row beyond those for which there is room behind the array
    (the rows issued and not yet `taken`), the datapath waits for parameters, and it has left when the last row has.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "begun": In(1),
                "done": Out(1),
                "failure": Out(Failure()),
                "index": Out(range(config.command_depth)),  # of the command
                "stall_weights": Out(1),
                "stall_writes": Out(1),
                "bases": In(Bases()),
                "lengths": In(lengths_width(config)),
                "routes": Out(Routes()),
                "read": Out(CommandRead(config)),
                # the other walkers
                "stager_index": In(range(config.command_depth)),
                "fetcher_index": In(range(config.command_depth)),
                "staged": In(1),
                "fetched": In(1),
                # loader
                "allowed": Out(1),  # to use the scratchpad for the stager's command
                "tile": In(Turn()),
                **({"taken": In(1)} if config.epilogue_lanes else {"parameters": In(Turn())}),
                # what executes
                "beats": Out(Beats(config)),
                "router": Out(Execution()),
                "storer": Out(Execution()),
                "write_request": Out(stream.Signature(Request)),
                "reader_idle": In(1),
                "reader_empty": In(1),
                "writer_idle": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        self.walker = walker = Walker(m, config, self.read, self.lengths, self.routes)
        c = walker.command
        settle = Signal(range(Datapath.latency(config) + 1))  # cycles until the last beat has left
        drained = settle == 0
        waiting = Signal(range(Serialiser.depth(config) + 1))  # rows issued and not yet taken
        with m.If(~drained & (waiting == 0) if config.epilogue_lanes else ~drained):
            m.d.sync += settle.eq(settle - 1)
        self.reached, self.final_row = Signal(), Signal.like(c.rows)  # of the MATMUL being issued
        self.begins = Signal()  # a MATMUL
        if config.epilogue_lanes:
            self.ends_row = Signal()
            m.d.sync += waiting.eq(waiting + self.ends_row - self.taken)
            self.no_end = waiting == Serialiser.depth(config)  # of a row, in this cycle
        else:
            # Sums that are written a cycle apart would meet the reads of residuals at a shared port of the scratchpad.
            odd, adds, self.no_end = Signal(), Signal(), Signal()
            m.d.sync += [odd.eq(~odd & ~self.begins), adds.eq(c.residual != Residual.NONE)]
            m.d.comb += self.no_end.eq(odd & adds & Scratchpad.shares_port(config))
        self.walks = (
            self._along(m, c.depth, config.inputs, "slice"),
            self._along(m, c.columns, config.outputs, "group"),
        )
        m.d.comb += [
            self.index.eq(walker.index),
            self.allowed.eq(self.reached & drained & (walker.index == self.stager_index)),
            self.router.command.eq(self.beats.command),
            self.storer.command.eq(self.beats.command),
        ]
        self.tile_there, self.use_tile = self._next(m, self.tile)
        self.parameters_there: Value = Const(1)  # with a queue it is the datapath that waits for them
        if not config.epilogue_lanes:
            self.parameters_there, self.use_parameters = self._next(m, self.parameters)
        with m.FSM():
            walker.begin_states(self.begun)
            with m.State("RUN"), m.If(drained):
                m.d.sync += self.beats.command.eq(c)  # stands until the last beat has left
                self._begin(m)
            with m.State("MATMUL"):
                m.d.comb += self.reached.eq(1)
                with m.If(self._issue(m)):
                    m.d.sync += settle.eq(Datapath.latency(config))
                    walker.advance()
            self._other_states(m)
        return m

    def _begin(self, m: Module) -> None:
        """What to do with a command when nothing is on its way any more."""
        walker = self.walker
        c = walker.command
        with m.Switch(c.kind):
            with m.Case(Kind.LOAD, Kind.TABLE):
                m.d.comb += self.reached.eq(1)
                with m.If(self.stager_index > walker.index):
                    walker.advance()
            with m.Case(Kind.STORE):
                m.d.comb += [
                    self.write_request.valid.eq(1),
                    self.write_request.payload.address.eq(dma_address(c, self.bases)),
                    self.write_request.payload.beats.eq(c.dma_beats),
                ]
                with m.If(self.write_request.ready):
                    m.d.comb += self.storer.start.eq(1)
                    m.next = "STORE"
            with m.Case(Kind.MATMUL):
                m.d.comb += self.begins.eq(1)
                m.d.sync += self.final_row.eq(walker.length - 1)
                m.next = "MATMUL"
                with m.If(walker.empty):
                    walker.advance()
            with m.Case(Kind.ROUTE):
                # Whoever is behind still looks at the queues of the ROUTE before.
                with m.If((self.stager_index >= walker.index) & (self.fetcher_index >= walker.index)):
                    m.next = "ROUTE-START"
            with m.Case(Kind.END):
                m.next = "END"
            with m.Default():
                fail(m, self.failure, ErrorCode.BAD_COMMAND, c.kind)

    def _other_states(self, m: Module) -> None:
        """Of commands that others execute."""
        with m.State("ROUTE-START"):
            m.d.comb += self.router.start.eq(1)
            m.d.sync += self.routes.begun.eq(self.routes.begun + 1)
            m.next = "ROUTE"
        with m.State("ROUTE"):
            with m.If(~self.router.busy):
                m.d.sync += self.routes.done.eq(self.routes.done + 1)
                self.walker.advance()
        with m.State("STORE"):
            m.d.comb += self.stall_writes.eq(1)
            with m.If(~self.storer.busy):
                self.walker.advance()
        with m.State("END"):
            m.d.comb += self.stall_writes.eq(~self.writer_idle)
            with m.If(self.writer_idle & self.fetched & self.staged & self.reader_idle):
                m.d.comb += self.done.eq(self.reader_empty)
                m.next = "IDLE"
                with m.If(~self.reader_empty):
                    fail(m, self.failure, ErrorCode.UNREAD, self.walker.index)
        with m.State("STOPPED"):
            pass

    @staticmethod
    def _next(m: Module, turn: wiring.PureInterface) -> tuple[Signal, Signal]:
        """Of the next tile or parameters: (they are written, the event that a beat uses them)."""
        written, use = Signal(), Signal()
        with m.If(turn.done | use):
            m.d.sync += written.eq(turn.done)
        m.d.comb += turn.free.eq(~written)
        return written, use

    def _issue(self, m: Module) -> Signal:
        """Issue the beats of a MATMUL, from inside its state; returns the event of the last one."""
        config, c, beat, final_row = self.config, self.walker.command, self.beats.beat, self.final_row
        row, slice_, group = Signal.like(c.rows), Signal(STEPS_WIDTH), Signal(STEPS_WIDTH)
        streamed, stationary = Signal(), Signal(range(5))  # digits
        gap = Signal(range(Datapath.PERIOD))

        stored = c.b_source == Stationary.MEMORY
        digits_a = c.a_wide if config.activation_width < ELEMENT_WIDTH else 0  # digit number of the last one
        (first_slice, next_slice, last_slice), (_, next_group, last_group) = self.walks
        first_digit, last_digit = (
            (streamed == 0) & (stationary == 0),
            (streamed == digits_a) & (stationary + 1 == c.b_digits),
        )
        fills = first_digit & first_slice
        ends = last_digit & last_slice
        first_row, last_row = Signal(init=1), row == final_row
        holds = ends & self.no_end
        new_tile, new_channels = first_row & (streamed == 0), first_row & ends & stored
        waits = (new_tile & ~self.tile_there) | (new_channels & ~self.parameters_there)
        issue = ~waits & (gap == 0) & ~holds
        m.d.comb += [
            self.stall_weights.eq(waits),
            beat.valid.eq(issue),
            beat.row.eq(row),
            beat.slice.eq(slice_),
            beat.group.eq(group),
            beat.digit.eq(streamed),
            beat.scale.eq(streamed + (stationary if config.weight_width < ELEMENT_WIDTH else 0)),
            beat.tile.eq(new_tile),
            beat.channels.eq(new_channels),
            beat.first.eq(fills),
            beat.last.eq(ends),
            beat.fresh.eq(first_digit),
            self.use_tile.eq(issue & new_tile),
            (self.ends_row.eq(issue & ends) if config.epilogue_lanes else self.use_parameters.eq(issue & new_channels)),
        ]
        with m.If(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        finished = Signal()
        pass_over = issue & last_row
        with m.If(issue):
            m.d.sync += [row.eq(Mux(last_row, 0, row + 1)), first_row.eq(last_row)]
        with m.If(pass_over):
            # A row must not come back too soon.
            with m.If(final_row < Datapath.PERIOD - 1):
                m.d.sync += gap.eq(Datapath.PERIOD - 1 - final_row)
            m.d.sync += streamed.eq(Mux(streamed == digits_a, 0, 1))
            with m.If(streamed == digits_a):
                m.d.sync += stationary.eq(Mux(stationary + 1 == c.b_digits, 0, stationary + 1))
            with m.If(last_digit):
                m.d.comb += next_slice.eq(1)
                m.d.sync += slice_.eq(Mux(last_slice, 0, slice_ + 1))
                with m.If(last_slice):
                    m.d.comb += [next_group.eq(1), finished.eq(last_group)]
                    m.d.sync += group.eq(Mux(last_group, 0, group + 1))
        return finished

    def _along(self, m: Module, total: Value, step: int, name: str) -> tuple[Signal, Signal, Signal]:
        """Walk along `total` features or channels, again and again, from where the issuer begins a command.

        Returns (at the first step, the event that the next one is taken, at the last step).
        """
        first, following, last = (Signal(name=f"{what}_{name}") for what in ("first", "next", "last"))
        left = Signal.like(total, name=f"left_{name}")
        beyond = Mux(last | self.begins, total, left - step)  # left after this step
        with m.If(following | self.begins):
            m.d.sync += [left.eq(beyond), first.eq(last | self.begins), last.eq(beyond <= step)]
        return first, following, last
