"""Executes a task's commands: three walkers over one command list, each as far ahead as it may be.

The fetcher asks memory for what commands will need, the stager keeps the loader busy with tiles, the issuer
runs the datapath. A walker that meets an expert's command waits until the issuer has done the ROUTE before it;
the fetcher goes on as soon as that ROUTE has given the expert a token, or at once where one is expected.
"""

from collections.abc import Callable
from dataclasses import dataclass

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import (
    COMMAND_BITS,
    COMMAND_BYTES,
    Kind,
    Queue,
    Residual,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw.axi import ADDRESS_WIDTH
from patchloom.hw.command import STEPS_WIDTH, CommandLayout, beat_layout
from patchloom.hw.datapath import Datapath
from patchloom.hw.dma import Request
from patchloom.hw.loader import Gearbox
from patchloom.hw.pipeline import block_ram, look_up, register
from patchloom.hw.scratchpad import Scratchpad

ROUTES_WIDTH = 8


def command_beats(config: Config) -> int:
    return max(1, COMMAND_BITS // config.bus_width)


class CommandStore(wiring.Component):
    """The task's commands; the first reader that asks is granted, its command is there in the next cycle."""

    READERS = 3

    def __init__(self, config: Config):
        self.config = config
        index = range(config.command_depth)
        ports = {f"ask_{i}": In(1) for i in range(self.READERS)} | {
            f"index_{i}": In(index) for i in range(self.READERS)
        }
        super().__init__(
            ports
            | {f"grant_{i}": Out(1) for i in range(self.READERS)}
            | {
                "command": Out(CommandLayout),
                "write": In(1),
                "write_index": In(index),
                "write_command": In(CommandLayout),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = block_ram(CommandLayout, self.config.command_depth)
        write, address = store.write_port(), Signal(range(self.config.command_depth))
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_index),
            write.data.eq(self.write_command),
            self.command.eq(look_up(m, store, address, name="command")),
        ]
        for i in reversed(range(self.READERS)):
            with m.If(getattr(self, f"ask_{i}")):
                m.d.comb += address.eq(getattr(self, f"index_{i}"))
                m.d.comb += [getattr(self, f"grant_{j}").eq(i == j) for j in range(self.READERS)]
        return m


@dataclass(frozen=True)
class QueueState:
    """What walkers look at: the queues' lengths, and how many ROUTEs have begun and are done."""

    lengths: Array
    begun: Signal
    done: Signal


class Walker:
    """One position in the command list; adds its states to a component's FSM.

    What a command's queue is like is known a cycle later. `known`: if the command needs one, the ROUTE that fills it
    has run; `filling`: it is running, and there is a token. `empty`: the command needs a queue that has no token.
    """

    def __init__(self, m: Module, store: CommandStore, number: int, queues: QueueState, name: str):
        self.m, self.store, self.number, self.name = m, store, number, name
        self.index = Signal(range(store.config.command_depth), init=1, name=f"{name}_index")
        self.command = Signal(CommandLayout, name=f"{name}_command", reset_less=True)
        self.seen = Signal(ROUTES_WIDTH, name=f"{name}_seen")
        queued = (self.command.kind == Kind.MATMUL) & (self.command.queue != Queue.NONE)
        length = Mux(queued, queues.lengths[self.command.expert], self.command.rows)
        self.length = register(m, length, name=f"{name}_length")
        self.known = register(m, ~queued | (self.seen == queues.done), name=f"{name}_known")
        self.empty = register(m, queued & (length == 0), name=f"{name}_empty")
        self.filling = register(m, queued & (length != 0) & (self.seen == queues.begun), name=f"{name}_filling")

    def fetch_states(self, first: str, then: str) -> None:
        m, i, store = self.m, self.number, self.store
        with m.State(first):
            m.d.comb += [getattr(store, f"ask_{i}").eq(1), getattr(store, f"index_{i}").eq(self.index)]
            with m.If(getattr(store, f"grant_{i}")):
                m.next = f"{first}-TAKE"
        with m.State(f"{first}-TAKE"):
            m.d.sync += self.command.eq(store.command)
            m.next = f"{first}-DECODE"
        with m.State(f"{first}-DECODE"):
            m.next = then

    def advance(self, to: str) -> None:
        self.m.d.sync += self.index.eq(self.index + 1)
        with self.m.If(self.command.kind == Kind.ROUTE):
            self.m.d.sync += self.seen.eq(self.seen + 1)
        self.m.next = to


class Sequencer(wiring.Component):
    """`start` runs the commands of `task`; `done` pulses when all they wrote is in memory, `error` stops all.

    After an error, or to abandon a task, reset the component. `stall_weights` is high while the datapath
    could go on but for the next tile, `stall_writes` while it waits for memory to take results.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "done": Out(1),
                "error": Out(1),
                "error_code": Out(8),
                "error_detail": Out(32),
                "task": In(8),
                "program_base": In(ADDRESS_WIDTH),
                "input_base": In(ADDRESS_WIDTH),
                "output_base": In(ADDRESS_WIDTH),
                "command_index": Out(16),
                "stall_weights": Out(1),
                "stall_writes": Out(1),
                # memory
                "read_request": Out(stream.Signature(Request)),
                "read_data": In(stream.Signature(config.word_width)),
                "write_request": Out(stream.Signature(Request)),
                "writer_idle": In(1),
                # loader
                "loader_command": Out(CommandLayout),
                "loader_start": Out(1),
                "loader_drop": Out(1),
                "loader_busy": In(1),
                "loader_allowed": Out(1),
                "weights": Out(stream.Signature(config.word_width)),
                "tile_done": In(1),
                "tile_free": Out(1),
                "parameters_done": In(1),
                "parameters_free": Out(1),
                "lengths": In(config.max_experts * config.max_rows.bit_length()),
                # datapath
                "command": Out(CommandLayout),
                "beat": Out(beat_layout(config)),
                # router and storer
                "router_start": Out(1),
                "router_busy": In(1),
                "storer_start": Out(1),
                "storer_busy": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self.routes, self.routes_begun = Signal(ROUTES_WIDTH), Signal(ROUTES_WIDTH)  # executed, begun
        width = self.config.max_rows.bit_length()
        lengths = Array(self.lengths.word_select(e, width) for e in range(self.config.max_experts))
        queues = QueueState(lengths, self.routes_begun, self.routes)
        m.submodules.commands = store = CommandStore(self.config)
        names = ("issuer", "stager", "fetcher")
        self.issuer, self.stager, self.fetcher = (Walker(m, store, i, queues, name) for i, name in enumerate(names))
        self.begun = Signal()  # commands are there, walkers run
        self.fetched, self.staged = Signal(), Signal()  # walkers that have come to the end
        self._boot(m, store)
        self._fetch(m)
        self._stage(m)
        self.loaded = self._next_loaded(m)
        self._issue(m)
        m.d.comb += self.command_index.eq(self.issuer.index)
        return m

    def _fail(self, m: Module, code: ErrorCode, detail: Signal) -> None:
        m.d.comb += [self.error.eq(1), self.error_code.eq(code), self.error_detail.eq(detail)]

    def _boot(self, m: Module, store: CommandStore) -> None:
        """Read the first command and check it, then read all of them."""
        config = self.config
        beats = command_beats(config)
        whole = config.word_commands  # commands that are read at once
        m.submodules.command_box = box = Gearbox(config.word_width, COMMAND_BITS)
        command = data.View(CommandLayout, box.items.payload[: CommandLayout.size])
        left, index = Signal(16), Signal(range(config.command_depth))
        base = register(
            m, (self.program_base + self.task * (config.command_depth * COMMAND_BYTES))[:ADDRESS_WIDTH], name="base"
        )
        request = self.asked = Signal(data.StructLayout({"valid": 1, "payload": Request}))
        self.booting = Signal()
        m.d.comb += [box.beats.payload.eq(self.read_data.payload), self.booting.eq(1), self.busy.eq(1)]
        m.d.comb += [store.write_command.eq(command), store.write_index.eq(index)]

        def ask(size: Value | int) -> None:
            address = request.payload.address.eq(base)
            m.d.comb += [request.valid.eq(1), address, request.payload.beats.eq(size)]

        with m.FSM(name="boot"):
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                with m.If(self.start):
                    m.next = "FIRST"
            with m.State("FIRST"):
                ask(whole * beats)
                with m.If(~self.read_request.valid):
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += box.beats.valid.eq(self.read_data.valid)
                m.d.sync += [left.eq(command.rows), index.eq(0)]
                with m.If(box.items.valid):
                    m.d.comb += box.items.ready.eq(1)
                    m.next = "REST"
                    self._check(m, command)
            with m.State("REST"):
                m.d.comb += box.clear.eq(1)
                ask((left + whole - 1) // whole * (whole * beats))
                with m.If(~self.read_request.valid):
                    m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [box.beats.valid.eq(self.read_data.valid), box.items.ready.eq(1)]
                with m.If(box.items.valid):
                    m.d.comb += store.write.eq(1)
                    m.d.sync += [left.eq(left - 1), index.eq(index + 1)]
                    with m.If(left == 1):
                        m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += box.clear.eq(1)
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [self.booting.eq(0), self.begun.eq(1)]
                with m.If(self.done):
                    m.next = "IDLE"
            with m.State("STOPPED"):
                m.d.comb += self.busy.eq(0)

        m.d.comb += [
            self.weights.payload.eq(self.read_data.payload),
            self.weights.valid.eq(self.read_data.valid & ~self.booting),
            self.read_data.ready.eq(Mux(self.booting, box.beats.ready, self.weights.ready)),
        ]

    def _check(self, m: Module, command: data.View) -> None:
        """From inside the boot's state: the first command must begin a program for this Config."""
        depth = self.config.command_depth
        with m.If((command.kind != Kind.BEGIN) | (command.rows < 2) | (command.rows > depth)):
            self._fail(m, ErrorCode.BAD_COMMAND, command.kind)
            m.next = "STOPPED"
        with m.Elif(command.epsilon != self.config.fingerprint):
            self._fail(m, ErrorCode.WRONG_CONFIG, command.epsilon[:32])
            m.next = "STOPPED"

    def _address(self, command: data.View) -> Signal:
        """Byte address of a command's DMA."""
        bases = {Space.INPUT: self.input_base, Space.OUTPUT: self.output_base}
        base = self.program_base
        for space, other in bases.items():
            base = Mux(command.dma_space == space, other, base)
        return (base + command.dma_address)[:ADDRESS_WIDTH]

    def _fetch(self, m: Module) -> None:
        """Ask for what commands stream, from a register: addresses are sums, and the reader is far away."""
        walker, asked, request = self.fetcher, self.asked, self.read_request
        c = walker.command
        with m.If(request.valid & request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(asked.valid & ~request.valid):
            m.d.sync += [request.valid.eq(1), request.payload.eq(asked.payload)]
        streams = (c.kind == Kind.LOAD) | ((c.kind == Kind.MATMUL) & (c.b_source == Stationary.MEMORY))

        def ask() -> None:
            with m.If(streams & (~walker.empty | c.expected)):
                m.d.comb += [
                    asked.valid.eq(1),
                    asked.payload.address.eq(self._address(c)),
                    asked.payload.beats.eq(c.dma_beats),
                ]
            with m.If(~asked.valid | ~request.valid):
                walker.advance("FETCH")

        with m.FSM(name="fetch"):
            self._walk_ahead(m, walker, walker.known | walker.filling | c.expected, ask, self.fetched)

    def _stage(self, m: Module) -> None:
        walker = self.stager
        c = walker.command
        loads = (c.kind == Kind.LOAD) | (c.kind == Kind.MATMUL)
        m.d.comb += self.loader_command.eq(c)

        def load() -> None:
            with m.If(loads & (~walker.empty | c.expected)):
                m.d.comb += [self.loader_start.eq(1), self.loader_drop.eq(walker.empty)]
                m.next = "LOAD"
            with m.Else():
                walker.advance("FETCH")

        with m.FSM(name="stage"):
            self._walk_ahead(m, walker, walker.known, load, self.staged)
            with m.State("LOAD"), m.If(~self.loader_busy):
                walker.advance("FETCH")

    def _walk_ahead(self, m: Module, walker: Walker, known: Value, act: Callable[[], None], ended: Signal) -> None:
        """States of a walker that runs ahead of the issuer: `act` on each command, `ended` until the task is done."""
        with m.State("IDLE"):
            m.d.sync += [walker.index.eq(1), walker.seen.eq(self.routes)]
            with m.If(self.begun & ~self.done):
                m.next = "FETCH"
        walker.fetch_states("FETCH", "RUN")
        with m.State("RUN"):
            with m.If(walker.command.kind == Kind.END):
                m.next = "END"
            with m.Elif(known):
                act()
        with m.State("END"):
            m.d.comb += ended.eq(1)
            with m.If(self.done):
                m.next = "IDLE"

    def _issue(self, m: Module) -> None:
        walker, config = self.issuer, self.config
        c = walker.command
        settle = Signal(range(Datapath.latency(config) + 1))  # cycles until the last beat has left
        drained = settle == 0
        with m.If(~drained):
            m.d.sync += settle.eq(settle - 1)
        reached, self.final_row = Signal(), Signal.like(c.rows)  # of the MATMUL being issued
        self.begins = Signal()  # a MATMUL
        # Sums that are written a cycle apart would meet the reads of residuals at a shared port of the scratchpad.
        odd, adds, self.avoids_port = Signal(), Signal(), Signal()
        m.d.sync += [odd.eq(~odd & ~self.begins), adds.eq(c.residual != Residual.NONE)]
        m.d.comb += self.avoids_port.eq(odd & adds & Scratchpad.shares_port(config))
        self.walks = (
            self._along(m, c.depth, config.inputs, "slice"),
            self._along(m, c.columns, config.outputs, "group"),
        )
        same = walker.index == self.stager.index
        m.d.comb += self.loader_allowed.eq(reached & drained & same)

        with m.FSM(name="issue"):
            with m.State("IDLE"):
                m.d.sync += [walker.index.eq(1), walker.seen.eq(self.routes)]
                with m.If(self.begun):
                    m.next = "FETCH"
            walker.fetch_states("FETCH", "RUN")
            with m.State("RUN"):
                with m.If(drained):
                    m.d.comb += reached.eq(c.kind == Kind.LOAD)
                    m.d.sync += self.command.eq(c)  # stands until the last beat has left
                    self._begin(m)
            with m.State("MATMUL"):
                m.d.comb += reached.eq(1)
                with m.If(self._beats(m)):
                    m.d.sync += settle.eq(Datapath.latency(config))
                    walker.advance("FETCH")
            with m.State("ROUTE-START"):
                m.d.comb += self.router_start.eq(1)
                m.d.sync += self.routes_begun.eq(self.routes_begun + 1)
                m.next = "ROUTE"
            with m.State("ROUTE"):
                with m.If(~self.router_busy):
                    m.d.sync += self.routes.eq(self.routes + 1)
                    walker.advance("FETCH")
            with m.State("STORE"):
                m.d.comb += self.stall_writes.eq(1)
                with m.If(~self.storer_busy):
                    walker.advance("FETCH")
            with m.State("END"):
                m.d.comb += self.stall_writes.eq(~self.writer_idle)
                with m.If(self.writer_idle & self.fetched & self.staged):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("STOPPED"):
                pass

    def _begin(self, m: Module) -> None:
        """What the issuer does with a command when nothing is on its way any more."""
        walker = self.issuer
        c = walker.command
        with m.Switch(c.kind):
            with m.Case(Kind.LOAD):
                with m.If(self.stager.index > walker.index):
                    walker.advance("FETCH")
            with m.Case(Kind.STORE):
                m.d.comb += [
                    self.write_request.valid.eq(1),
                    self.write_request.payload.address.eq(self._address(c)),
                    self.write_request.payload.beats.eq(c.dma_beats),
                ]
                with m.If(self.write_request.ready):
                    m.d.comb += self.storer_start.eq(1)
                    m.next = "STORE"
            with m.Case(Kind.MATMUL):
                m.d.comb += self.begins.eq(1)
                m.d.sync += self.final_row.eq(walker.length - 1)
                m.next = "MATMUL"
                with m.If(walker.empty):
                    walker.advance("FETCH")
            with m.Case(Kind.ROUTE):
                m.next = "ROUTE-START"
            with m.Case(Kind.END):
                m.next = "END"
            with m.Default():
                self._fail(m, ErrorCode.BAD_COMMAND, c.kind)
                m.next = "STOPPED"

    def _next_loaded(self, m: Module) -> tuple[Signal, Signal, Signal, Signal]:
        """(tile written, parameters written, use tile, use parameters): written by the loader, used by a beat."""
        pairs = []
        for done, free in ((self.tile_done, self.tile_free), (self.parameters_done, self.parameters_free)):
            written, use = Signal(), Signal()
            with m.If(done | use):
                m.d.sync += written.eq(done)
            m.d.comb += free.eq(~written)
            pairs.append((written, use))
        (tile, use_tile), (parameters, use_parameters) = pairs
        return tile, parameters, use_tile, use_parameters

    def _beats(self, m: Module) -> Signal:
        """Issue the beats of a MATMUL, from inside its state; returns the event of the last one."""
        config, c, beat, final_row = self.config, self.issuer.command, self.beat, self.final_row
        tile, parameters, use_tile, use_parameters = self.loaded
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
        holds = ends & self.avoids_port
        new_tile, new_channels = first_row & (streamed == 0), first_row & ends & stored
        waits = (new_tile & ~tile) | (new_channels & ~parameters)
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
            use_tile.eq(issue & new_tile),
            use_parameters.eq(issue & new_channels),
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
