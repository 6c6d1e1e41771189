"""The shared compute unit: scratchpad, streamed operand, array, accumulators and epilogue in one pipeline."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Queue
from patchloom.compiler.machine.config import Config
from patchloom.hw.array import Accumulators, Multipliers, Tile
from patchloom.hw.bundles import (
    Beats,
    ParameterWrite,
    QueueRead,
    ScratchpadRead,
    ScratchpadWrite,
    StationaryRead,
    TableWrite,
    TileWrite,
    Turn,
)
from patchloom.hw.epilogue import Epilogue, Parameters
from patchloom.hw.operand import Operand
from patchloom.hw.pipeline import delay, register
from patchloom.hw.rows import walk
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.serialiser import ParameterQueue, Serialiser
from patchloom.hw.statistics import Statistics


class Datapath(wiring.Component):
    """Executes the beats of one MATMUL: a beat is a row's slice against the tile in use.

    A beat may enter every cycle, but a row must not come back within `PERIOD` cycles. All that a beat leaves
    behind can be read `latency` cycles after it entered. Writes travel as long as the beats do: those of the
    next parameters may begin with the first beat that uses the present ones, those of the next tile a cycle
    after it, and either must end before the first beat of their own, the tile's at the latest with it.

    `stationary` reads the scratchpad in the cycles in which no residual is read. With one copy of the scratchpad, the
    last beats of rows of a command that has residuals must enter an even number of cycles apart: residuals are read an
    odd number of cycles ahead of writes. While no beat is on its way, others may use the scratchpad: `read`, if
    `external`, and `write`.

    With `Config.epilogue_lanes` rows wait for the epilogue behind the array. Of rows whose last beat has entered, no
    more than `Serialiser.depth` may not be `taken` yet; `latency` counts from there, and the last beats of rows may
    enter in any cycle. Parameters take turns with whoever writes them, and are there when the epilogue needs them.
    """

    PERIOD = max(Accumulators.PERIOD, Epilogue.PERIOD, Statistics.GATHER_PERIOD)
    OPERAND = 3 + Statistics.READ_LATENCY  # cycle in which elements and row constants meet

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "beats": In(Beats(config)),
                # of the command's expert
                "source": Out(QueueRead(config)),
                "target": Out(QueueRead(config)),
                # stationary operand
                "tile": In(TileWrite(config)),
                "parameters": In(ParameterWrite(config)),
                "table": In(TableWrite()),
                "stationary": In(StationaryRead(config)),
                # the scratchpad, for others
                "external": In(1),  # `read` and not the beats' own address
                "read": In(ScratchpadRead(config)),
                "write": In(ScratchpadWrite(config)),
                "saturations": Out(range(config.inputs + 2 * config.channels_at_once + 1)),
            }
            | ({"parameters_turn": In(Turn()), "taken": Out(1)} if config.epilogue_lanes else {})
        )

    @staticmethod
    def sums_latency(config: Config) -> int:
        """Cycles until a row's last beat has made its totals."""
        return Datapath.OPERAND + Operand.LATENCY + Multipliers.latency(config) + Accumulators.LATENCY

    @staticmethod
    def write_latency(config: Config) -> int:
        """Cycles until a row's last beat, or the last pass of one that was taken, is written to the scratchpad."""
        return Datapath._epilogue_at(config) + Epilogue.LATENCY

    @staticmethod
    def latency(config: Config) -> int:
        settled = max(Epilogue.settle(config), Epilogue.LATENCY + Statistics.gather_latency(config))
        return Datapath._epilogue_at(config) + settled

    @staticmethod
    def _epilogue_at(config: Config) -> int:
        return Serialiser.LATENCY if config.epilogue_lanes else Datapath.sums_latency(config)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.scratchpad = self.scratchpad = Scratchpad(config)
        m.submodules.statistics = self.statistics = Statistics(config)
        m.submodules.operand = self.operand = Operand(config)
        m.submodules.tile = tile = Tile(config)
        m.submodules.multipliers = multipliers = Multipliers(config)
        m.submodules.accumulators = self.accumulators = Accumulators(config)
        parameters = ParameterQueue(config) if config.epilogue_lanes else Parameters(config)
        m.submodules.parameters = parameters
        m.submodules.epilogue = self.epilogue = Epilogue(config)

        wiring.connect(m, wiring.flipped(self.table), self.epilogue.table)
        self._fetch(m)
        # The tile is exchanged so that it stands when its first beat's digits come.
        digits_at = self.OPERAND + Operand.LATENCY
        write_at = digits_at - Tile.WRITE_LATENCY - 1  # the loader's own register is the missing cycle
        m.d.comb += tile.write.load.eq(delay(m, self.tile.load, write_at, name="tile_load"))
        written, ports = (Cat(w.by_row, w.index, w.columns, w.data) for w in (self.tile, tile.write))
        m.d.comb += ports.eq(delay(m, written, write_at, name="tile_write"))
        m.d.comb += [
            tile.swap.eq(delay(m, self.beats.beat.valid & self.beats.beat.tile, digits_at - 1, name="tile_swap")),
            multipliers.digits.eq(self.operand.digits),
            multipliers.weights.eq(tile.weights),
        ]
        sums_at = digits_at + Multipliers.latency(config)
        row_sum_late = sums_at - self.OPERAND - Operand.sum_latency(config)
        m.d.comb += [
            self.accumulators.beat.eq(delay(m, self.beats.beat, sums_at, name="beat_sums")),
            self.accumulators.sums.eq(multipliers.sums),
            self.accumulators.row_sum.eq(delay(m, self.operand.row_sum, row_sum_late, name="row_sum")),
        ]
        self._finish(m, parameters, sums_at + Accumulators.LATENCY - 1)
        return m

    def _fetch(self, m: Module) -> None:
        """Row to elements and row constants."""
        c, beat, scratchpad, statistics = self.beats.command, self.beats.beat, self.scratchpad, self.statistics
        # Cycles 1 and 2: the row's token. Cycles 3 and 4: its offset. Cycle 5: the slice's address.
        m.d.comb += self.source.row.eq(beat.row)
        own_row = delay(m, beat.row, 1, name="row")
        row = register(m, Mux(c.queue == Queue.GATHER, self.source.entry.token, own_row), name="token")
        scattered = register(m, row * c.a_stride, name="scattered")
        bits = len(scratchpad.a.address)
        [walked] = walk(m, beat.valid, beat.row, c.line, [(c.a_stride, c.a_outer)], bits, late=3, name="row")
        offset = register(m, Mux(c.queue == Queue.GATHER, scattered[:bits], walked), name="offset")
        step, jump = (Mux(c.a_packed, chunks << 1, chunks) for chunks in (c.a_step, c.a_jump))
        step = Mux(c.a_step == 0, self.config.input_chunks, step)
        [pieces] = walk(m, beat.valid, beat.slice, c.a_run, [(step, jump)], bits + 1, late=4, name="slice")
        chunk = Mux(c.a_packed, pieces >> 1, pieces)  # half chunks if packed
        address = register(m, (c.a_address + offset + chunk)[:bits], name="address")
        ahead = self.OPERAND - Scratchpad.READ_LATENCY
        own = delay(m, address, ahead - 5, name="address")
        m.d.comb += [
            scratchpad.a.address.eq(Mux(self.external, self.read.address, own)),
            self.read.data.eq(scratchpad.a.data),
            statistics.command.eq(c),
            statistics.read_row.eq(register(m, c.a_statistics + row, name="statistics_row")),
            # Then elements meet the constants of their row.
            self.operand.command.eq(c),
            self.operand.half.eq(delay(m, pieces[0], self.OPERAND - 4, name="half")),
            self.operand.beat.eq(delay(m, beat, self.OPERAND, name="beat")),
            self.operand.elements.eq(scratchpad.a.data),
            self.operand.mean.eq(statistics.mean),
            self.operand.scale.eq(statistics.scale),
            self.operand.shift.eq(statistics.shift),
            self.epilogue.maximum_row.eq(delay(m, beat.row, self.OPERAND - 2, name="maximum_row")),
            self.operand.maximum.eq(register(m, self.epilogue.maximum, name="maximum")),
        ]

    def _finish(self, m: Module, parameters: Parameters | ParameterQueue, parameters_at: int) -> None:
        """Accumulators to the scratchpad."""
        epilogue, scratchpad = self.epilogue, self.scratchpad
        command, external = self.beats.command, Signal.like(scratchpad.write.enable)
        m.d.comb += external[:2].eq(self.write.enable)
        swap, beat, totals, row_total = (
            self._serialised(m, parameters)
            if self.config.epilogue_lanes
            else self._at_once(m, parameters, parameters_at)
        )
        wiring.connect(m, parameters.used, epilogue.parameters)
        wiring.connect(m, epilogue.target, wiring.flipped(self.target))
        m.d.comb += [
            parameters.swap.eq(swap),
            epilogue.command.eq(command),
            epilogue.beat.eq(beat),
            epilogue.totals.eq(totals),
            epilogue.row_total.eq(row_total),
            scratchpad.b.address.eq(Mux(epilogue.reads, epilogue.residual.address, self.stationary.address)),
            epilogue.residual.data.eq(scratchpad.b.data),
            self.stationary.data.eq(scratchpad.b.data),
            self.stationary.ready.eq(~(epilogue.reads | (epilogue.write.valid & Scratchpad.shares_port(self.config)))),
            scratchpad.write.valid.eq(self.write.valid | epilogue.write.valid),
            scratchpad.write.address.eq(Mux(self.write.valid, self.write.address, epilogue.write.address)),
            scratchpad.write.data.eq(Mux(self.write.valid, self.write.data, epilogue.write.data)),
            scratchpad.write.enable.eq(Mux(self.write.valid, external, epilogue.write.enable)),
            self.statistics.gather.eq(epilogue.gather),
            self.statistics.begin.eq(epilogue.gather_begin),
            self.statistics.gather_row.eq(epilogue.gather_row),
            self.statistics.elements.eq(epilogue.elements),
        ]
        m.d.sync += self.saturations.eq(self.operand.saturations + epilogue.saturations)

    def _at_once(self, m: Module, parameters: Parameters, late: int) -> tuple[Value, ...]:
        """All sums of a row enter the epilogue as they leave the accumulators.

        Returns what goes there (`swap` of the parameters, beat, totals, row total); parameters come `late`.
        """
        before = delay(m, self.accumulators.beat, Accumulators.LATENCY - 1, name="beat_before")
        written, ports = (Cat(w.index, w.words) for w in (self.parameters, parameters.write))
        m.d.comb += [
            parameters.write.load.eq(delay(m, self.parameters.load, late, name="parameters_load")),
            ports.eq(delay(m, written, late, name="parameters_write")),
        ]
        sums = self.accumulators
        return before.valid & before.channels, sums.done, sums.totals, sums.row_total

    def _serialised(self, m: Module, parameters: ParameterQueue) -> tuple[Value, ...]:
        """The sums wait, and those of some channels of a row enter in a cycle. Returns the same."""
        m.submodules.serialiser = serialiser = Serialiser(self.config)
        wiring.connect(m, wiring.flipped(self.parameters), parameters.write)
        wiring.connect(m, wiring.flipped(self.parameters_turn), parameters.turn)
        m.d.comb += [
            parameters.now.eq(serialiser.now),
            serialiser.there.eq(parameters.there),
            serialiser.residual.eq(self.beats.command.residual),
            serialiser.beat.eq(self.accumulators.done),
            serialiser.totals.eq(self.accumulators.totals),
            serialiser.row_total.eq(self.accumulators.row_total),
            self.statistics.first.eq(self.epilogue.gather_first),
            self.taken.eq(serialiser.taken),
        ]
        return serialiser.swap, serialiser.pass_, serialiser.pass_totals, serialiser.pass_row_total
