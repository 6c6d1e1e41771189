"""From the weight stream to tiles, parameters and the scratchpad."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.commands import Kind, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import operand_limits
from patchloom.hw.array import columns_width, tile_word
from patchloom.hw.command import STEPS_WIDTH, CommandLayout
from patchloom.hw.epilogue import parameters_at_once, parameters_width
from patchloom.hw.pipeline import clip, delay, register
from patchloom.hw.scratchpad import Scratchpad, chunk_width


class Gearbox(wiring.Component):
    """Beats of a stream to items of `width` bits, a multiple or a divisor of the beat, first item in the low bits.

    Nothing is stored beyond the items of the beat at the input: `clear` drops what is left of it.
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


class Loader(wiring.Component):
    """Executes the stationary side of commands, ahead of the datapath.

    `start` for one cycle begins `command` (a LOAD or a MATMUL, stable while `busy`). Tiles and parameters are
    written as soon as the previous ones are in use; those from the scratchpad, and LOADs, wait for `allowed`:
    the datapath has reached the command and nothing is on its way. With `drop` the command's weights, fetched for
    an expert that got no token, are thrown away.
    """

    def __init__(self, config: Config):
        self.config = config
        digits = max(config.inputs, config.outputs)
        address = range(config.scratchpad_chunks)
        chunk = chunk_width(config)
        super().__init__(
            {
                "command": In(CommandLayout),
                "start": In(1),
                "drop": In(1),
                "busy": Out(1),
                "allowed": In(1),
                "weights": In(stream.Signature(config.word_width)),
                "tile_free": In(1),
                "tile_done": Out(1),
                "tile_load": Out(1),
                "tile_by_row": Out(1),
                "tile_index": Out(range(digits)),
                "tile_columns": Out(config.columns_at_once),
                "tile_data": Out(tile_word(config)),
                "parameters_free": In(1),
                "parameters_done": Out(1),
                "parameters_load": Out(1),
                "parameters_index": Out(range(config.outputs)),
                "parameters_words": Out(parameters_width(config)),
                "stationary_ready": In(1),  # the scratchpad takes the address
                "stationary_address": Out(address),
                "stationary_data": In(config.banks * chunk),
                "write": Out(1),
                "write_address": Out(address),
                "write_data": Out(chunk),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, c = self.config, self.command
        self.chunks = Gearbox(config.word_width, chunk_width(config))
        self.columns = Gearbox(config.word_width, columns_width(config))
        self.words = Gearbox(config.word_width, parameters_width(config))
        m.submodules.chunks, m.submodules.columns, m.submodules.words = self.chunks, self.columns, self.words
        for box in (self.chunks, self.columns, self.words):
            m.d.comb += box.beats.payload.eq(self.weights.payload)

        # Position of the tile being written.
        self.group, self.slice, self.digit = Signal(STEPS_WIDTH), Signal(STEPS_WIDTH), Signal(range(5))
        self.feature, self.channel = Signal(len(c.depth) + 1), Signal(len(c.columns) + 1)  # first of the tile
        self.index = Signal(range(max(config.inputs, config.outputs) + 1))  # of its rows or columns
        self.count = Signal.like(c.dma_beats)  # chunks of a LOAD, dropped beats
        self.stored = c.b_source == Stationary.MEMORY
        self.by_row = c.b_source == Stationary.ROWS

        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                position = (self.group, self.slice, self.digit, self.feature, self.channel, self.index, self.count)
                m.d.sync += [x.eq(0) for x in position]
                m.d.sync += self.write_address.eq(c.a_address - 1)
                with m.If(self.start):
                    with m.If(self.drop):
                        m.next = "DROP"
                    with m.Elif(c.kind == Kind.LOAD):
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
        config, c = self.config, self.command
        final_digit = self.digit + 1 == c.b_digits
        final_slice = self.feature + config.inputs >= c.depth
        final_group = self.channel + config.outputs >= c.columns
        m.d.comb += self.tile_done.eq(1)
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
        """LOAD: memory to scratchpad, a chunk a cycle."""
        writing = Signal()
        with m.State("LOAD"), m.If(self.allowed):
            self._connect(m, self.chunks)
            with m.If(self.chunks.items.valid):
                m.d.comb += writing.eq(1)
                m.d.sync += [self.count.eq(self.count + 1), self.write_address.eq(self.write_address + 1)]
                with m.If(self.count + 1 == self.command.rows):
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
                with m.If(self.count + config.word_beats == self.command.dma_beats):
                    m.next = "IDLE"
        with m.State("PARAMETERS"), m.If(self.parameters_free):
            self._connect(m, self.words)
            with m.If(self.words.items.valid):
                following = self.index + parameters_at_once(config)
                m.d.comb += self.parameters_load.eq(1)
                m.d.sync += self.index.eq(following)
                with m.If(following >= config.outputs):
                    m.d.comb += self.parameters_done.eq(1)
                    m.d.sync += self.index.eq(0)
                    m.next = "COLUMNS"
        with m.State("COLUMNS"):
            with m.If((self.index != 0) | self.tile_free):
                self._connect(m, self.columns)
            with m.If(self.columns.items.valid):
                m.d.sync += self.index.eq(following_columns)
                with m.If(following_columns >= config.outputs):
                    self._next_tile(m)

    def _scratchpad_states(self, m: Module) -> Signal:
        """Tiles of a tensor on chip, row by row or column by column; returns the last read of a tile."""
        config, c, by_row = self.config, self.command, self.by_row
        address, read_last = Signal.like(self.stationary_address), Signal()
        self.reading, self.arrived = Signal(), Signal()
        m.d.comb += self.stationary_address.eq(address)
        # rows of the scratchpad that the tile's rows or columns are
        offset = register(m, Mux(by_row, self.feature, self.channel) * c.b_stride, name="offset")
        with m.State("OFFSET"):
            m.next = "TILE"
        with m.State("TILE"):
            along = Mux(by_row, self.group * config.output_chunks, self.slice * config.input_chunks)
            m.d.sync += address.eq(c.b_address + offset + along)
            with m.If(self.tile_free & self.allowed):
                m.next = "READ"
        with m.State("READ"):
            # Rows or columns beyond the tensor meet zeros, or leave as masked channels: they may stay as they are.
            left = Mux(by_row, c.depth - self.feature, c.columns - self.channel)
            limit = Mux(by_row, config.inputs, config.outputs)
            with m.If(self.stationary_ready):
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
        m.d.comb += [self.parameters_words.eq(self.words.items.payload), self.parameters_index.eq(self.index)]
        from_scratchpad = Mux(self.by_row, digits, column)
        m.d.comb += [
            self.write.eq(register(m, self.writing, name="writes")),
            self.write_data.eq(register(m, self.chunks.items.payload, name="chunk")),
            self.tile_load.eq(register(m, (columns.valid & columns.ready) | read, name="loads")),
            self.tile_by_row.eq(register(m, read & self.by_row, name="by_row")),
            self.tile_index.eq(register(m, Mux(read, read_index, self.index), name="tile_index")),
            self.tile_columns.eq(
                register(m, Mux(read, 1 << read_index[: exact_log2(at_once)], ~0)[:at_once], name="columns")
            ),
            self.tile_data.eq(
                register(m, Mux(read, from_scratchpad, columns.payload)[: len(self.tile_data)], name="tile")
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
            element = self.stationary_data.word_select(i, ELEMENT_WIDTH).as_signed()
            wide, _ = clip(element, low, high)
            narrow, _ = clip(element, narrow_low, narrow_high)
            upper = (wide - wide[:8].as_signed())[8:16]
            lower = Mux(self.command.b_digits == 1, narrow[:8], wide[:8])
            out.append(wide if native else Mux(digit == 0, lower, upper))
        return Cat(out)
