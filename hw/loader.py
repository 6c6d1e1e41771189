"""From the weight stream to tiles, parameters, the epilogue's table and the scratchpad."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.commands import Kind, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import operand_limits
from patchloom.compiler.machine.tables import ENTRY_BITS
from patchloom.hw.bundles import (
    Loading,
    ParameterWrite,
    ScratchpadWrite,
    StationaryRead,
    TableWrite,
    TileWrite,
    Turn,
    chunk_width,
    columns_width,
    parameters_at_once,
    parameters_width,
)
from patchloom.hw.command import STEPS_WIDTH
from patchloom.hw.gearbox import Gearbox
from patchloom.hw.pipeline import clip, delay, register
from patchloom.hw.scratchpad import Scratchpad


class Loader(wiring.Component):
    """Executes the stationary side of commands, ahead of the datapath.

    An order is a LOAD, a TABLE or a MATMUL. A word of `weights` is taken each cycle, or as many cycles as it holds
    parts: chunks of a LOAD, entries of a TABLE, parameters, or columns of a tile. Tiles and parameters are written as
    soon as the previous ones are in use; those from the scratchpad, a row or column a cycle, LOADs and TABLEs wait
    until they are `allowed`. `tile_turn.done` is a cycle early: the last write of the tile may be in the cycle after
    it.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "order": In(Loading()),
                "weights": In(stream.Signature(config.word_width)),
                "tile_turn": Out(Turn()),
                "tile": Out(TileWrite(config)),
                "parameters_turn": Out(Turn()),
                "parameters": Out(ParameterWrite(config)),
                "table": Out(TableWrite()),
                "stationary": Out(StationaryRead(config)),
                "write": Out(ScratchpadWrite(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, c = self.config, self.order.command
        self.chunks = Gearbox(config.word_width, chunk_width(config))
        self.columns = Gearbox(config.word_width, columns_width(config))
        self.words = Gearbox(config.word_width, parameters_width(config))
        self.entries = Gearbox(config.word_width, ENTRY_BITS)
        m.submodules.chunks, m.submodules.columns, m.submodules.words = self.chunks, self.columns, self.words
        m.submodules.entries = self.entries
        for box in (self.chunks, self.columns, self.words, self.entries):
            m.d.comb += box.beats.payload.eq(self.weights.payload)

        # Position of the tile being written.
        self.group, self.slice, self.digit = Signal(STEPS_WIDTH), Signal(STEPS_WIDTH), Signal(range(5))
        self.feature, self.channel = Signal(len(c.depth) + 1), Signal(len(c.columns) + 1)  # first of the tile
        self.index = Signal(range(max(config.inputs, config.outputs) + 1))  # of its rows or columns
        self.count = Signal.like(c.dma_beats)  # chunks of a LOAD, entries of a TABLE, dropped beats
        self.stored = c.b_source == Stationary.MEMORY
        self.by_row = c.b_source == Stationary.ROWS

        m.d.comb += self.order.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.order.busy.eq(0)
                position = (self.group, self.slice, self.digit, self.feature, self.channel, self.index, self.count)
                m.d.sync += [x.eq(0) for x in position]
                m.d.sync += self.write.address.eq(c.a_address - 1)
                with m.If(self.order.start):
                    with m.If(self.order.drop):
                        m.next = "DROP"
                    with m.Elif((c.kind == Kind.LOAD) | (c.kind == Kind.TABLE)):
                        m.next = "LOAD"
                    with m.Elif(self.stored):
                        m.next = "PARAMETERS"
                    with m.Else():
                        m.next = "OFFSET"
            self._load_states(m)
            self._memory_states(m)
            read_last = self._scratchpad_states(m)

        m.d.comb += self.arrived.eq(delay(m, read_last, Scratchpad.READ_LATENCY + 1, name="arrived"))
        self._write_tile(m)
        return m

    def _connect(self, m: Module, box: Gearbox) -> None:
        """The weight stream goes to `box`, which gives all it has."""
        m.d.comb += [
            box.beats.valid.eq(self.weights.valid),
            self.weights.ready.eq(box.beats.ready),
            box.items.ready.eq(1),
        ]

    def _next_tile(self, m: Module) -> None:
        config, c = self.config, self.order.command
        final_digit = self.digit + 1 == c.b_digits
        final_slice = self.feature + config.inputs >= c.depth
        final_group = self.channel + config.outputs >= c.columns
        m.d.comb += self.tile_turn.done.eq(1)
        m.d.sync += [self.index.eq(0), self.digit.eq(Mux(final_digit, 0, self.digit + 1))]
        with m.If(final_digit):
            m.d.sync += self.slice.eq(Mux(final_slice, 0, self.slice + 1))
            m.d.sync += self.feature.eq(Mux(final_slice, 0, self.feature + config.inputs))
            with m.If(final_slice):
                m.d.sync += [self.group.eq(self.group + 1), self.channel.eq(self.channel + config.outputs)]
        with m.If(final_digit & final_slice & final_group):
            m.next = "IDLE"
        with m.Elif(~self.stored):
            m.next = "OFFSET"
        with m.Elif(final_digit & final_slice):
            m.next = "PARAMETERS"
        with m.Else():
            m.next = "COLUMNS"

    def _load_states(self, m: Module) -> None:
        """LOAD: memory to scratchpad, a chunk a cycle. TABLE: to the epilogue, an entry a cycle."""
        self.is_table = self.order.command.kind == Kind.TABLE
        writing = Signal()
        with m.State("LOAD"), m.If(self.order.allowed):
            with m.If(self.is_table):
                self._connect(m, self.entries)
            with m.Else():
                self._connect(m, self.chunks)
            with m.If(self.entries.items.valid | self.chunks.items.valid):
                m.d.comb += writing.eq(1)
                m.d.sync += [self.count.eq(self.count + 1), self.write.address.eq(self.write.address + 1)]
                with m.If(self.count + 1 == self.order.command.rows):
                    m.next = "SETTLE"
        with m.State("SETTLE"):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(self.index == Scratchpad.WRITE_LATENCY + 1):
                m.next = "IDLE"
        self.writing = writing

    def _memory_states(self, m: Module) -> None:
        """Parameters of a group, then its tiles, block of columns by block."""
        config, following_columns = self.config, self.index + self.config.columns_at_once
        with m.State("DROP"):
            m.d.comb += self.weights.ready.eq(1)
            with m.If(self.weights.valid):
                m.d.sync += self.count.eq(self.count + config.word_beats)
                with m.If(self.count + config.word_beats == self.order.command.dma_beats):
                    m.next = "IDLE"
        with m.State("PARAMETERS"), m.If(self.parameters_turn.free):
            self._connect(m, self.words)
            with m.If(self.words.items.valid):
                following = self.index + parameters_at_once(config)
                m.d.comb += self.parameters.load.eq(1)
                m.d.sync += self.index.eq(following)
                with m.If(following >= config.outputs):
                    m.d.comb += self.parameters_turn.done.eq(1)
                    m.d.sync += self.index.eq(0)
                    m.next = "COLUMNS"
        with m.State("COLUMNS"):
            with m.If((self.index != 0) | self.tile_turn.free):
                self._connect(m, self.columns)
            with m.If(self.columns.items.valid):
                m.d.sync += self.index.eq(following_columns)
                with m.If(following_columns >= config.outputs):
                    self._next_tile(m)

    def _scratchpad_states(self, m: Module) -> Signal:
        """Tiles of a tensor on chip, row by row or column by column; returns the last read of a tile."""
        config, c, by_row = self.config, self.order.command, self.by_row
        address, read_last = Signal.like(self.stationary.address), Signal()
        self.reading, self.arrived = Signal(), Signal()
        m.d.comb += self.stationary.address.eq(address)
        # rows of the scratchpad that the tile's rows or columns are
        offset = register(m, Mux(by_row, self.feature, self.channel) * c.b_stride, name="offset")
        with m.State("OFFSET"):
            m.next = "TILE"
        with m.State("TILE"):
            along = Mux(by_row, self.group * config.output_chunks, self.slice * config.input_chunks)
            m.d.sync += address.eq(c.b_address + offset + along)
            with m.If(self.tile_turn.free & self.order.allowed):
                m.next = "READ"
        with m.State("READ"):
            # Rows or columns beyond the tensor meet zeros, or leave as masked channels: they may stay as they are.
            left = Mux(by_row, c.depth - self.feature, c.columns - self.channel)
            limit = Mux(by_row, config.inputs, config.outputs)
            with m.If(self.stationary.ready):
                m.d.comb += self.reading.eq(1)
                m.d.sync += [self.index.eq(self.index + 1), address.eq(address + c.b_stride)]
                with m.If((self.index + 1 == limit) | (self.index + 1 == left)):
                    m.d.comb += read_last.eq(1)
                    m.next = "WAIT"
        with m.State("WAIT"), m.If(self.arrived):
            self._next_tile(m)
        return read_last

    def _write_tile(self, m: Module) -> None:
        """A word of columns from memory, or one row or column from the scratchpad, a cycle."""
        config, columns = self.config, self.columns.items
        at_once, digits = config.columns_at_once, self._digits(self.digit)
        column = digits[: config.inputs * config.weight_width].replicate(at_once)
        read = delay(m, self.reading, Scratchpad.READ_LATENCY, name="reading")
        read_index = delay(m, self.index, Scratchpad.READ_LATENCY, name="read_index")
        m.d.comb += [self.parameters.words.eq(self.words.items.payload), self.parameters.index.eq(self.index)]
        from_scratchpad = Mux(self.by_row, digits, column)
        m.d.comb += [
            self.write.enable.eq(self.write.valid.replicate(2)),
            self.write.valid.eq(register(m, self.writing & ~self.is_table, name="writes")),
            self.write.data.eq(register(m, self.chunks.items.payload, name="chunk")),
            self.table.load.eq(register(m, self.writing & self.is_table, name="enters")),
            self.table.index.eq(register(m, self.count[: len(self.table.index)], name="entry_index")),
            self.table.entry.eq(register(m, self.entries.items.payload, name="entry")),
            self.tile.load.eq(register(m, (columns.valid & columns.ready) | read, name="loads")),
            self.tile.by_row.eq(register(m, read & self.by_row, name="by_row")),
            self.tile.index.eq(register(m, Mux(read, read_index, self.index), name="tile_index")),
            self.tile.columns.eq(
                register(m, Mux(read, 1 << read_index[: exact_log2(at_once)], ~0)[:at_once], name="columns")
            ),
            self.tile.data.eq(
                register(m, Mux(read, from_scratchpad, columns.payload)[: len(self.tile.data)], name="tile")
            ),
        ]

    def _digits(self, digit: Signal) -> Cat:
        """The chosen digit of every element read from the scratchpad, limited to what its digits can hold."""
        config = self.config
        native = config.weight_width == ELEMENT_WIDTH
        low, high = operand_limits(ELEMENT_WIDTH)
        narrow_low, narrow_high = operand_limits(8)
        out = []
        for i in range(max(config.inputs, config.outputs)):
            element = self.stationary.data.word_select(i, ELEMENT_WIDTH).as_signed()
            wide, _ = clip(element, low, high)
            narrow, _ = clip(element, narrow_low, narrow_high)
            upper = (wide - wide[:8].as_signed())[8:16]
            lower = Mux(self.order.command.b_digits == 1, narrow[:8], wide[:8])
            out.append(wide if native else Mux(digit == 0, lower, upper))
        return Cat(out)
