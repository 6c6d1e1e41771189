"""The shared compute unit: scratchpad, streamed operand, array, accumulators and epilogue in one pipeline."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Queue, Residual
from patchloom.compiler.machine.config import Config
from patchloom.hw.array import Accumulators, Multipliers, Tile, tile_word
from patchloom.hw.command import CommandLayout, beat_layout
from patchloom.hw.epilogue import Epilogue, Parameters, parameters_width, queue_entry
from patchloom.hw.operand import Operand
from patchloom.hw.pipeline import delay, register
from patchloom.hw.scratchpad import Scratchpad, chunk_width
from patchloom.hw.statistics import Statistics


class Datapath(wiring.Component):
    """Executes the beats of one MATMUL: a beat is a row's slice against the tile in use.

    A beat may enter every cycle, but a row must not come back within `PERIOD` cycles. All that a beat leaves
    behind can be read `latency` cycles after it entered. Writes travel as long as the beats do: those of the
    next parameters may begin with the first beat that uses the present ones, those of the next tile a cycle
    after it, and either must end before the first beat of their own, the tile's at the latest with it.

    `stationary_data` follow their address by `Scratchpad.READ_LATENCY` cycles, if `stationary_ready`, while the
    command adds no residual. With one copy of the scratchpad, the last beats of rows of a command that does add one
    must enter an even number of cycles apart: residuals are read an odd number of cycles ahead of writes.
    While no beat is on its way, others may use the scratchpad: `read_address` if `read_external`, the data as
    much later; and `write`.
    """

    PERIOD = max(Accumulators.PERIOD, Epilogue.PERIOD, Statistics.GATHER_PERIOD)
    OPERAND = 3 + Statistics.READ_LATENCY  # cycle in which elements and row constants meet

    def __init__(self, config: Config):
        self.config = config
        address = range(config.scratchpad_chunks)
        chunk = chunk_width(config)
        digits = max(config.inputs, config.outputs)
        super().__init__(
            {
                "command": In(CommandLayout),
                "beat": In(beat_layout(config)),
                # queue entries of the command's expert, one cycle after the row
                "source_row": Out(range(config.max_rows)),
                "source_entry": In(queue_entry(config)),
                "target_row": Out(range(config.max_rows)),
                "target_entry": In(queue_entry(config)),
                # stationary operand
                "tile_load": In(1),
                "tile_by_row": In(1),
                "tile_index": In(range(digits)),
                "tile_columns": In(config.columns_at_once),
                "tile_data": In(tile_word(config)),
                "parameters_load": In(1),
                "parameters_index": In(range(config.outputs)),
                "parameters_words": In(parameters_width(config)),
                "stationary_ready": Out(1),
                "stationary_address": In(address),
                "stationary_data": Out(config.banks * chunk),
                # the scratchpad, for others
                "read_external": In(1),
                "read_address": In(address),
                "read_data": Out(chunk),
                "write": In(1),
                "write_address": In(address),
                "write_data": In(chunk),
                "saturations": Out(range(config.inputs + 2 * config.outputs + 1)),
            }
        )

    @staticmethod
    def sums_latency(config: Config) -> int:
        """Cycles until a row's last beat has made its totals."""
        return Datapath.OPERAND + Operand.LATENCY + Multipliers.latency(config) + Accumulators.LATENCY

    @staticmethod
    def write_latency(config: Config) -> int:
        """Cycles until a row's last beat is written to the scratchpad."""
        return Datapath.sums_latency(config) + Epilogue.LATENCY

    @staticmethod
    def latency(config: Config) -> int:
        settled = max(Epilogue.settle(config), Epilogue.LATENCY + Statistics.gather_latency(config))
        return Datapath.sums_latency(config) + settled

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.scratchpad = self.scratchpad = Scratchpad(config)
        m.submodules.statistics = self.statistics = Statistics(config)
        m.submodules.operand = self.operand = Operand(config)
        m.submodules.tile = tile = Tile(config)
        m.submodules.multipliers = multipliers = Multipliers(config)
        m.submodules.accumulators = self.accumulators = Accumulators(config)
        m.submodules.parameters = parameters = Parameters(config)
        m.submodules.epilogue = self.epilogue = Epilogue(config)

        self._fetch(m)
        # The tile is exchanged so that it stands when its first beat's digits come.
        digits_at = self.OPERAND + Operand.LATENCY
        before = delay(m, self.beat, digits_at - 1, name="beat_tile")
        # The loader's own register is the missing cycle.
        m.d.comb += tile.load.eq(delay(m, self.tile_load, digits_at - 2, name="tile_load"))
        written = Cat(self.tile_by_row, self.tile_index, self.tile_columns, self.tile_data)
        ports = Cat(tile.load_by_row, tile.load_index, tile.load_columns, tile.load_data)
        m.d.comb += ports.eq(delay(m, written, digits_at - 2, name="tile_write"))
        m.d.comb += [
            tile.swap.eq(before.valid & before.tile),
            multipliers.digits.eq(self.operand.digits),
            multipliers.weights.eq(tile.weights),
        ]
        sums_at = digits_at + Multipliers.latency(config)
        row_sum_late = sums_at - self.OPERAND - Operand.sum_latency(config)
        m.d.comb += [
            self.accumulators.beat.eq(delay(m, before, sums_at - digits_at + 1, name="beat_sums")),
            self.accumulators.sums.eq(multipliers.sums),
            self.accumulators.row_sum.eq(delay(m, self.operand.row_sum, row_sum_late, name="row_sum")),
        ]
        self._finish(m, parameters, sums_at + Accumulators.LATENCY - 1)
        return m

    def _fetch(self, m: Module) -> None:
        """Row to elements and row constants."""
        c, beat, scratchpad, statistics = self.command, self.beat, self.scratchpad, self.statistics
        # Cycles 1 and 2: the row's token. Cycle 3: its offset. Cycle 4: the slice's address.
        m.d.comb += self.source_row.eq(beat.row)
        own_row = delay(m, beat.row, 1, name="row")
        row = register(m, Mux(c.queue == Queue.GATHER, self.source_entry.token, own_row), name="token")
        offset = register(m, row * c.a_stride, name="offset")
        pieces = beat.slice * self.config.input_chunks  # half chunks if packed
        chunk = delay(m, Mux(c.a_packed, pieces >> 1, pieces), 3, name="chunk")
        address = register(m, (c.a_address + offset + chunk)[: len(scratchpad.a_address)], name="address")
        ahead = self.OPERAND - Scratchpad.READ_LATENCY
        own = delay(m, address, ahead - 4, name="address")
        m.d.comb += [
            scratchpad.a_address.eq(Mux(self.read_external, self.read_address, own)),
            self.read_data.eq(scratchpad.a_data),
            statistics.command.eq(c),
            statistics.read_row.eq(register(m, c.a_statistics + row, name="statistics_row")),
            # Then elements meet the constants of their row.
            self.operand.command.eq(c),
            self.operand.beat.eq(delay(m, beat, self.OPERAND, name="beat")),
            self.operand.elements.eq(scratchpad.a_data),
            self.operand.mean.eq(statistics.mean),
            self.operand.scale.eq(statistics.scale),
            self.operand.shift.eq(statistics.shift),
            self.epilogue.maximum_row.eq(delay(m, beat.row, self.OPERAND - 2, name="maximum_row")),
            self.operand.maximum.eq(register(m, self.epilogue.maximum, name="maximum")),
        ]

    def _finish(self, m: Module, parameters: Parameters, parameters_at: int) -> None:
        """Accumulators to the scratchpad."""
        config, epilogue, scratchpad = self.config, self.epilogue, self.scratchpad
        before = delay(m, self.accumulators.beat, Accumulators.LATENCY - 1, name="beat_before")
        external = Signal(2 * config.output_chunks)
        adds = self.command.residual != Residual.NONE
        m.d.comb += external[:2].eq(self.write.replicate(2))
        written = Cat(self.parameters_index, self.parameters_words)
        m.d.comb += [
            parameters.load.eq(delay(m, self.parameters_load, parameters_at, name="parameters_load")),
            Cat(parameters.load_index, parameters.words).eq(delay(m, written, parameters_at, name="parameters_write")),
        ]
        m.d.comb += [
            parameters.swap.eq(before.valid & before.channels),
            epilogue.command.eq(self.command),
            epilogue.beat.eq(self.accumulators.done),
            epilogue.totals.eq(self.accumulators.totals),
            epilogue.row_total.eq(self.accumulators.row_total),
            epilogue.bias.eq(parameters.bias),
            epilogue.multiplier.eq(parameters.multiplier),
            epilogue.shift.eq(parameters.shift),
            self.target_row.eq(epilogue.queue_row),
            epilogue.entry.eq(self.target_entry),
            scratchpad.b_address.eq(Mux(adds, epilogue.residual_address, self.stationary_address)),
            epilogue.residual.eq(scratchpad.b_data),
            self.stationary_data.eq(scratchpad.b_data),
            self.stationary_ready.eq(~epilogue.write if Scratchpad.shares_port(config) else 1),
            scratchpad.write.eq(self.write | epilogue.write),
            scratchpad.write_address.eq(Mux(self.write, self.write_address, epilogue.write_address)),
            scratchpad.write_data.eq(Mux(self.write, self.write_data, epilogue.write_data)),
            scratchpad.write_enable.eq(Mux(self.write, external, epilogue.write_enable)),
            self.statistics.gather.eq(epilogue.gather),
            self.statistics.begin.eq(epilogue.gather_begin),
            self.statistics.gather_row.eq(epilogue.gather_row),
            self.statistics.elements.eq(epilogue.elements),
        ]
        m.d.sync += self.saturations.eq(self.operand.saturations + epilogue.saturations)
