"""What a task begins with: its commands, from memory to the store; and the checksum of what is there."""

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import COMMAND_BITS, COMMAND_BYTES, Kind, Space
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw.axi import ADDRESS_WIDTH
from patchloom.hw.bundles import SIZE_WIDTH, CommandWrite, Failure, Request, Sizes, fail
from patchloom.hw.checksum import Checksum
from patchloom.hw.command import CommandLayout
from patchloom.hw.gearbox import Gearbox
from patchloom.hw.pipeline import register


def command_beats(config: Config) -> int:
    """Bus beats of a command, at least one."""
    return max(1, COMMAND_BITS // config.bus_width)


class Boot(wiring.Component):
    """`start` reads the first command of `task` and checks it, then reads all of them, and checks their transfers.

    They are in the store, and what memory brings is `weights`, once `begun`; so it is until `done`. `busy` from the
    cycle after `start` on. After a failure nothing happens until a reset.

    `sum` makes `checksum` that of the program region, while `summing`, from the next cycle on. Both are for an idle
    component only.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "sum": In(1),
                "done": In(1),
                "busy": Out(1),
                "summing": Out(1),
                "checksum": Out(32),
                "begun": Out(1),
                "failure": Out(Failure()),
                "task": In(8),
                "program_base": In(ADDRESS_WIDTH),
                "sizes": In(Sizes()),
                "request": Out(stream.Signature(Request)),
                "read_data": In(stream.Signature(config.word_width)),
                "weights": Out(stream.Signature(config.word_width)),
                "write": Out(CommandWrite(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        whole = config.word_commands  # commands that are read at once
        m.submodules.box = box = Gearbox(config.word_width, COMMAND_BITS)
        m.submodules.checksum = checksum = Checksum(config)
        command = data.View(CommandLayout, box.items.payload[: CommandLayout.size])
        left, index = Signal(16), Signal(range(config.command_depth))
        base = register(
            m, (self.program_base + self.task * (config.command_depth * COMMAND_BYTES))[:ADDRESS_WIDTH], name="base"
        )
        booting = Signal()
        is_beyond, beyond = self._beyond(m, command, index)
        m.d.comb += [
            checksum.base.eq(self.program_base),
            checksum.size.eq(self.sizes.program),
            checksum.words.payload.eq(self.read_data.payload),
            self.checksum.eq(checksum.value),
            box.beats.payload.eq(self.read_data.payload),
            booting.eq(1),
            self.busy.eq(1),
            self.request.payload.address.eq(base),
            self.write.command.eq(command),
            self.write.index.eq(index),
        ]

        def ask(beats: Value | int) -> None:
            m.d.comb += [self.request.valid.eq(1), self.request.payload.beats.eq(beats)]

        with m.FSM():
            self._idle_states(m, box, checksum)
            with m.State("FIRST"):
                ask(whole * command_beats(config))
                with m.If(self.request.ready):
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
                ask((left + whole - 1) // whole * (whole * command_beats(config)))
                with m.If(self.request.ready):
                    m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [box.beats.valid.eq(self.read_data.valid), box.items.ready.eq(1)]
                with m.If(box.items.valid):
                    m.d.comb += self.write.valid.eq(1)
                    m.d.sync += [left.eq(left - 1), index.eq(index + 1)]
                    with m.If(left == 1):
                        m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += box.clear.eq(1)
                m.next = "RUN"
                with m.If(is_beyond):
                    fail(m, self.failure, ErrorCode.BEYOND_REGION, beyond)
            with m.State("RUN"):
                m.d.comb += [booting.eq(0), self.begun.eq(1)]
                with m.If(self.done):
                    m.next = "IDLE"
            with m.State("STOPPED"):
                m.d.comb += self.busy.eq(0)

        m.d.comb += [
            self.weights.payload.eq(self.read_data.payload),
            self.weights.valid.eq(self.read_data.valid & ~booting),
            self.read_data.ready.eq(
                Mux(booting, box.beats.ready | (self.summing & checksum.words.ready), self.weights.ready)
            ),
        ]
        return m

    def _idle_states(self, m: Module, box: Gearbox, checksum: Checksum) -> None:
        """While no task runs."""
        with m.State("IDLE"):
            m.d.comb += self.busy.eq(0)
            with m.If(self.start):
                m.next = "FIRST"
            with m.Elif(self.sum):
                m.d.comb += checksum.start.eq(1)
                m.next = "SUM"
        with m.State("SUM"):
            m.d.comb += [
                self.busy.eq(0),
                self.summing.eq(1),
                box.clear.eq(1),
                self.request.valid.eq(checksum.request.valid),
                self.request.payload.eq(checksum.request.payload),
                checksum.request.ready.eq(self.request.ready),
                checksum.words.valid.eq(self.read_data.valid),
            ]
            with m.If(~checksum.busy):
                m.next = "IDLE"

    def _beyond(self, m: Module, command: data.View, index: Signal) -> tuple[Signal, Signal]:
        """(whether a command written two cycles ago or earlier transfers what it must not, the index of the last one).

        It must end within its region; a STORE's is the output, and nothing else's is.
        """
        later = {name: register(m, value, name=name) for name, value in {
            "written": self.write.valid,
            "at": index,
            "stores": command.kind == Kind.STORE,
            "space": command.dma_space,
            "address": command.dma_address,
            "bytes": command.dma_beats * self.config.beat_bytes,
        }.items()}  # fmt: skip
        sizes = Array(getattr(self.sizes, space.name.lower()) for space in Space)
        high = later["address"][SIZE_WIDTH:].any()  # beyond every size
        ends_within = ~high & (later["address"][:SIZE_WIDTH] + later["bytes"] <= sizes[later["space"]])
        is_allowed = later["stores"] == (later["space"] == Space.OUTPUT)
        is_beyond, beyond = Signal(), Signal.like(index)
        with m.If(self.start):
            m.d.sync += is_beyond.eq(0)
        with m.Elif(later["written"] & ~(is_allowed & ends_within)):
            m.d.sync += [is_beyond.eq(1), beyond.eq(later["at"])]
        return is_beyond, beyond

    def _check(self, m: Module, command: data.View) -> None:
        """From inside a state: the first command must begin a program for this Config."""
        with m.If((command.kind != Kind.BEGIN) | (command.rows < 2) | (command.rows > self.config.command_depth)):
            fail(m, self.failure, ErrorCode.BAD_COMMAND, command.kind)
        with m.Elif(command.epsilon != self.config.fingerprint):
            fail(m, self.failure, ErrorCode.WRONG_CONFIG, command.epsilon[:32])
