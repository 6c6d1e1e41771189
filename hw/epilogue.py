"""Behind the array: bias, requantise, activation, row scale, residual, saturation, and what rows leave behind.

One group of channels of one token passes each cycle, or takes `Config.passes` cycles; nothing stalls.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Queue, Residual, RowScale, Stationary
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH, PARAMETER_BITS, Config
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, MAX_SHIFT, ROW_ONE, SHIFT_WIDTH, SUM_WIDTH
from patchloom.hw.bundles import (
    MULTIPLIER_WIDTH,
    ParameterSet,
    ParameterWrite,
    QueueRead,
    ScratchpadRead,
    ScratchpadWrite,
    TableWrite,
    parameters_at_once,
)
from patchloom.hw.command import CommandLayout, beat_layout, pass_layout
from patchloom.hw.pipeline import (
    block_ram,
    clip,
    delay,
    limited_shift,
    look_up,
    maximum,
    multiply,
    popcount,
    register,
    rounded,
    running,
    tree,
    tree_latency,
)
from patchloom.hw.rows import walk
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.tables import Activation, Reciprocal


class Parameters(wiring.Component):
    """Bias, multiplier and shift of a group of channels: one set in use, the next one being written.

    `swap` puts the written set to use in the next cycle; the first write of the next set may come with it.
    """

    def __init__(self, config: Config):
        self.config = config
        self.step = parameters_at_once(config)
        super().__init__(
            {
                "write": In(ParameterWrite(config)),
                "swap": In(1),
                "used": Out(ParameterSet(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields: list[Signal] = []
        for j in range(self.config.outputs):
            written = Signal(BIAS_WIDTH + MULTIPLIER_WIDTH + SHIFT_WIDTH, name=f"written_{j}", reset_less=True)
            used = Signal.like(written, name=f"used_{j}")
            with m.If(self.write.load & (self.write.index == j // self.step * self.step)):
                m.d.sync += written.eq(self.write.words.word_select(j % self.step, PARAMETER_BITS))
            with m.If(self.swap):
                m.d.sync += used.eq(written)
            fields.append(used)
        m.d.comb += [
            self.used.bias.eq(Cat(f[:BIAS_WIDTH] for f in fields)),
            self.used.multiplier.eq(Cat(f[BIAS_WIDTH:][:MULTIPLIER_WIDTH] for f in fields)),
            self.used.shift.eq(Cat(f[BIAS_WIDTH + MULTIPLIER_WIDTH :] for f in fields)),
        ]
        return m


class Epilogue(wiring.Component):
    """Finished accumulators in, scratchpad writes out, `LATENCY` cycles later.

    A beat enters every cycle, but a row must not come back within `PERIOD` cycles. `parameters` are those of the
    beat's group and must be stable from its first beat on.

    With `Config.epilogue_lanes` a beat is a pass, and `totals`, `parameters` and `elements` are of its channels alone.
    The passes of a row and group come one after another without a gap; what a row leaves behind, it leaves in the last.
    """

    WORD = 6  # cycles until a channel is requantised
    POST = WORD + Activation.LATENCY  # activated
    TOTAL = POST + 4  # scaled by a factor, the residual added
    LATENCY = TOTAL + 1
    EARLIER = TOTAL - POST  # a factor is there than what is added
    PERIOD = 4

    def __init__(self, config: Config):
        self.config = config
        n = config.channels_at_once
        super().__init__(
            {
                "command": In(CommandLayout),
                "beat": In(pass_layout(config) if config.epilogue_lanes else beat_layout(config)),
                "totals": In(n * config.accumulator_width),
                "row_total": In(SUM_WIDTH),
                "parameters": In(ParameterSet(config)),
                "table": In(TableWrite()),
                "target": Out(QueueRead(config)),
                "residual": Out(ScratchpadRead(config, config.output_chunks)),
                "reads": Out(1),  # whether the residual's address is one
                "write": Out(ScratchpadWrite(config, config.output_chunks)),
                "elements": Out(n * ELEMENT_WIDTH),  # that are written, not packed
                "gather": Out(1),
                "gather_begin": Out(1),
                "gather_row": Out(range(config.statistics_rows)),
                "maximum_row": In(range(config.max_rows)),  # whose score maximum is asked for
                "maximum": Out(signed(ELEMENT_WIDTH)),  # one cycle later
                "saturations": Out(range(2 * n + 1)),
            }
            | ({"gather_first": Out(1)} if config.epilogue_lanes else {})  # pass of a row
        )

    @staticmethod
    def settle(config: Config) -> int:
        """Cycles from `beat` until all that it leaves behind can be read."""
        maxima = tree_latency(config.channels_at_once) + 5 + bool(config.epilogue_lanes)
        return Epilogue.LATENCY + max(Scratchpad.WRITE_LATENCY, maxima)

    @staticmethod
    def residual_latency(config: Config, residual: Residual) -> int:
        """Cycles until a beat's residual is asked for; with passes, a cycle earlier, as it is kept for all of them."""
        used = Epilogue.TOTAL - Epilogue.EARLIER * (residual == Residual.MULTIPLY)
        return used - 1 - Scratchpad.READ_LATENCY - bool(config.epilogue_lanes)

    @staticmethod
    def residual_lead(config: Config, residual: Residual) -> int:
        """Cycles from there until the beat is written."""
        return Epilogue.LATENCY - Epilogue.residual_latency(config, residual)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._rows(m)
        self._channels(m)
        self._maxima(m)
        return m

    def _rows(self, m: Module) -> None:
        """What belongs to the whole row: queue entry, addresses, factor."""
        c, beat = self.command, self.beat
        m.submodules.reciprocal = reciprocal = Reciprocal()
        # Cycle 1: queue entry. Cycle 2: row. Cycles 3 and 4: its offsets. Cycle 5: addresses.
        m.d.comb += self.target.row.eq(beat.row)
        entry = self.target.entry
        row1 = delay(m, beat.row, 1, name="row")
        output_row = register(m, Mux(c.queue == Queue.SCATTER, entry.token, row1), name="output_row")
        self.output_row = output_row
        pieces = beat.group * self.config.output_chunks  # half chunks if packed
        offset = delay(m, pieces, 4, name="offset")
        place = delay(m, Mux(c.o_packed, pieces >> 1, pieces), 4, name="place")
        chained = (c.residual == Residual.CHAIN) | (c.residual == Residual.CHAIN_ZERO)
        again = register(m, chained & ~entry.first, name="again")
        bits = len(self.write.address)
        walked = walk(
            m, beat.valid, beat.row, c.line, [(c.o_stride, c.o_outer), (c.r_stride, c.r_outer)], bits, late=3,
            name="row",
        )  # fmt: skip
        tokens = [output_row * stride for stride in (c.o_stride, Mux(again, c.o_stride, c.r_stride))]
        scatters = c.queue == Queue.SCATTER
        own_row, other_row = (
            register(m, Mux(scatters, register(m, token, name=f"{name}_token")[:bits], step), name=f"{name}_row")
            for name, token, step in zip(("own", "other"), tokens, walked, strict=True)
        )
        own = register(m, (c.o_address + own_row + place)[:bits], name="own")
        other = Mux(delay(m, again, 2, name="again"), c.o_address, c.r_address)
        residual = register(m, (other + other_row + offset)[:bits], name="other")
        self.multiplies = c.residual == Residual.MULTIPLY
        ahead = self.residual_latency(self.config, Residual.MULTIPLY)
        early = delay(m, residual, ahead - 5, name="early_address")
        late = delay(m, early, self.EARLIER, name="late_address")
        m.d.comb += self.residual.address.eq(Mux(self.multiplies, early, late))
        begins = beat.valid & (c.residual != Residual.NONE)
        if self.config.epilogue_lanes:
            begins &= beat.number == 0
        reads_early = delay(m, begins, ahead, name="early_reads")
        reads_late = delay(m, reads_early, self.EARLIER, name="late_reads")
        m.d.comb += self.reads.eq(Mux(self.multiplies, reads_early, reads_late))
        m.d.comb += self.write.address.eq(delay(m, own, self.LATENCY - 5, name="write_address"))
        adds = (c.residual == Residual.ADD) | (c.residual == Residual.CHAIN) | (c.residual == Residual.CHAIN_ZERO)
        absent = ((c.residual == Residual.CHAIN_ZERO) & ~again) | ~adds
        self.absent = delay(m, absent, self.TOTAL - 3, name="absent")
        # Softmax: exponent after one cycle, mantissa later. Gate: score after one.
        m.d.comb += reciprocal.value.eq(self.row_total)
        softmax = c.row_scale == RowScale.SOFTMAX
        self.exponent = Mux(softmax, delay(m, reciprocal.exponent, 1, name="exponent"), 0)
        score = delay(m, entry.score, self.POST - 2, name="score")
        mantissa = delay(m, reciprocal.mantissa, self.POST - 1 - Reciprocal.LATENCY, name="mantissa")
        self.factor = Mux(softmax, mantissa, Mux(c.row_scale == RowScale.GATE, score, ROW_ONE))  # to be registered

    def _channels(self, m: Module) -> None:
        c, n = self.command, self.config.channels_at_once
        beat = delay(m, self.beat, self.TOTAL - 2, name="beat")
        before = beat.group * self.config.outputs
        if self.config.epilogue_lanes:
            before += beat.number * n
        left = register(m, c.columns - before, name="left")
        valid = delay(m, beat.valid, 1, name="valid")
        second = self._second(m)
        outputs, limited = [], []
        for j in range(n):
            inside = register(m, valid & (left > j), name=f"inside_{j}")  # aligned with the total
            word, clipped = self._requantise(m, j)
            limited.append(delay(m, clipped, self.TOTAL - self.WORD, name=f"clipped_{j}") & inside)
            m.submodules[f"post_{j}"] = post = Activation()
            wiring.connect(m, wiring.flipped(self.table), post.table)
            # Until POST: activation.
            m.d.comb += [post.post.eq(c.post), post.x.eq(word)]
            own = second.word_select(j, ELEMENT_WIDTH).as_signed()
            # Two cycles: factor, the row's or an own one. One: shift; whether to round up is known with the residual.
            factor = register(m, Mux(self.multiplies, own, self.factor), name=f"factor_{j}")
            product = multiply(m, post.value, factor, self.config.limb_width, name=f"scaled_{j}")
            halves = register(
                m,
                (product[15:].as_signed() >> c.post_shift)[: EPILOGUE_WIDTH + 3].as_signed(),
                name=f"halves_{j}",
            )
            # Until TOTAL: residual.
            residual = Mux(self.absent, 0, own).as_signed()
            larger = register(m, (c.residual == Residual.MAXIMUM) & (own << 1 >= halves), name=f"larger_{j}")
            summed = register(m, rounded(halves) + residual, name=f"total_{j}")
            # Last: the larger one, limit, mask.
            total = Mux(larger, register(m, own, name=f"own_{j}"), summed)
            narrow, narrowed = clip(total, -128, 127)
            wide, widened = clip(total, -(1 << 15), (1 << 15) - 1)
            limited.append(inside & Mux(c.o_wide, widened, narrowed))
            outputs.append(register(m, Mux(inside, Mux(c.o_wide, wide, narrow), 0), name=f"output_{j}"))
        ends = delay(m, self._ends(beat), 1, name="ends") if self.config.epilogue_lanes else valid
        passed = self.config.outputs - n  # channels before the last pass
        firsts = [i * self.config.lanes - passed for i in range(self.config.output_chunks)]
        written = [
            register(m, delay(m, ends & (left > first), 1, name=f"chunk_{i}"), name=f"write_{i}")
            for i, first in enumerate(firsts)
        ]
        m.d.comb += self.elements.eq(Cat(out[:ELEMENT_WIDTH] for out in outputs))
        counts, _ = popcount(
            m, [register(m, bit, name=f"limited_{i}") for i, bit in enumerate(limited)], name="limited"
        )
        m.d.comb += self.saturations.eq(counts)

        last = delay(m, beat, 3, name="beat_out")
        self.out_beat, self.out_left = last, delay(m, left, 2, name="left")
        m.d.comb += [
            self.write.valid.eq(self._ends(last)),
            self.gather.eq(self._ends(last) & c.statistics),
            self.gather_begin.eq(last.group == 0),
            self.gather_row.eq(c.o_statistics + delay(m, self.output_row, self.LATENCY - 2, name="output_row")),
        ]
        elements: Value = self.elements
        if self.config.epilogue_lanes:
            m.d.comb += self.gather_first.eq(last.number == 0)
            earlier = Signal(passed * ELEMENT_WIDTH, name="earlier", reset_less=True)  # passes of the row
            elements = Cat(earlier, self.elements)
            m.d.sync += earlier.eq(elements[len(self.elements) :])
        self._pack(m, elements, written)

    def _ends(self, beat: data.View) -> Value:
        """All of the row's group is there."""
        if not self.config.epilogue_lanes:
            return beat.valid
        return beat.valid & (beat.number == self.config.passes - 1)

    def _second(self, m: Module) -> Value:
        """The residual of a beat's channels, a cycle before TOTAL, or their factors, a cycle before POST.

        Those of a row are read once, for all of its passes.
        """
        if not self.config.epilogue_lanes:
            return self.residual.data
        early = delay(m, self.beat.number, self.POST - 2, name="early_number")
        late = delay(m, early, self.EARLIER, name="late_number")
        number = Mux(self.multiplies, early, late)
        held = Signal.like(self.residual.data, name="held", reset_less=True)
        with m.If(number == 0):
            m.d.sync += held.eq(self.residual.data)
        return held.word_select(register(m, number, name="number"), len(self.elements))

    def _pack(self, m: Module, elements: Value, written: list[Signal]) -> None:
        """Chunks as they are, or half as many packed ones, which may begin in the middle of one."""
        c, lanes, count = self.command, self.config.lanes, self.config.output_chunks
        packed = Cat(elements.word_select(j, ELEMENT_WIDTH)[:8] for j in range(self.config.outputs))
        late = self.out_beat.group[0] if count % 2 else Const(0)
        halves, enables = [], []
        for half in range(2 * count):
            early, before = min(half, count - 1), min(max(half - 1, 0), count - 1)
            piece = Mux(late, packed.word_select(before, lanes * 8), packed.word_select(early, lanes * 8))
            taken = Mux(late, written[before] & (0 < half <= count), written[early] & (half < count))
            halves.append(Mux(c.o_packed, piece, elements.word_select(half, lanes * 8)))
            enables.append(Mux(c.o_packed, taken, written[half // 2]))
        m.d.comb += [self.write.data.eq(Cat(halves)), self.write.enable.eq(Cat(enables))]

    def _requantise(self, m: Module, j: int) -> tuple[Signal, Signal]:
        c, width = self.command, self.config.accumulator_width
        stored = c.b_source == Stationary.MEMORY
        # Cycle 1: bias.
        bias = Mux(stored, self.parameters.bias.word_select(j, BIAS_WIDTH).as_signed(), 0)
        total = register(m, self.totals.word_select(j, width).as_signed() + bias, name=f"biased_{j}")
        multiplier = register(
            m,
            Mux(stored, self.parameters.multiplier.word_select(j, MULTIPLIER_WIDTH), c.multiplier),
            name=f"multiplier_{j}",
        )
        # Cycles 2 and 3: multiply.
        product = multiply(m, total, multiplier, self.config.limb_width, name=f"product_{j}")
        shift = delay(m, Mux(stored, self.parameters.shift.word_select(j, SHIFT_WIDTH), c.shift), 2, name=f"shift_{j}")
        # Cycles 4 and 5: shift, the row's exponent included. Cycle 6: round, saturate.
        whole = shift + self.exponent
        amount = register(m, Mux(whole > MAX_SHIFT, MAX_SHIFT, whole)[:SHIFT_WIDTH], name=f"amount_{j}")
        word, clipped = limited_shift(m, product, amount, EPILOGUE_WIDTH, name=f"requantised_{j}")
        return register(m, word, name=f"word_{j}"), register(m, clipped, name=f"clipped_{j}")

    def _maxima(self, m: Module) -> None:
        """The largest score of each row, over all groups of keys."""
        c, config = self.command, self.config
        lowest = Const(-(1 << 15), signed(ELEMENT_WIDTH))
        scores = [
            register(
                m,
                Mux(self.out_left > j, self.elements.word_select(j, ELEMENT_WIDTH).as_signed(), lowest),
                name=f"score_{j}",
            )
            for j in range(config.channels_at_once)
        ]
        highest, latency = tree(m, scores, maximum, name="highest")
        beat = delay(m, self.out_beat, latency, name="beat_maximum")
        if config.epilogue_lanes:
            beat = delay(m, beat, 1, name="beat_running")
            highest = running(m, highest, beat.number == 0, maximum, lowest.shape(), name="running")
        later = delay(m, beat, 1, name="beat_maximum_read")
        m.submodules.maxima = store = block_ram(signed(ELEMENT_WIDTH), config.max_rows)
        write, old = store.write_port(), look_up(m, store, beat.row, name="old")
        m.d.comb += self.maximum.eq(look_up(m, store, self.maximum_row, name="asked"))
        m.d.comb += [
            write.en.eq(register(m, self._ends(later) & c.row_maximum, name="write")),
            write.addr.eq(register(m, later.row, name="write_row")),
            write.data.eq(register(m, Mux((later.group == 0) | (highest > old), highest, old), name="write_data")),
        ]
