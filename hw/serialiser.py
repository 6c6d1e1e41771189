"""Between the accumulators and an epilogue of few lanes: rows' sums wait for their turn, and parameters for theirs."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.commands import Residual
from patchloom.compiler.machine.config import BIAS_WIDTH, PARAMETER_BITS, Config
from patchloom.compiler.machine.fixed import SHIFT_WIDTH, SUM_WIDTH
from patchloom.hw.buffer import Buffer
from patchloom.hw.bundles import MULTIPLIER_WIDTH, ParameterSet, ParameterWrite, Turn, parameters_at_once
from patchloom.hw.command import STEPS_WIDTH, beat_layout, pass_layout
from patchloom.hw.epilogue import Epilogue
from patchloom.hw.pipeline import block_ram, delay, look_up, register
from patchloom.hw.scratchpad import Scratchpad

WIDTH = BIAS_WIDTH + MULTIPLIER_WIDTH + SHIFT_WIDTH  # of a channel's parameters


class Serialiser(wiring.Component):
    """Rows' sums in, all channels of a group at once; out the same rows in `Config.passes` cycles each, in order.

    A row comes in every cycle in which `beat` is valid, and nothing holds it up: whoever sends rows sends no more
    than `depth` beyond those that were `taken`, which pulses in a row's last pass. `now` is the pass that is made in a
    cycle, `pass_` and its sums leave `LATENCY` cycles later: block RAMs are slow, and parameters far. The passes of a
    row follow one another without a gap, and rows too, but for three reasons to wait: the first row of a group for the
    group's parameters, until they are `there`, when it begins with `swap`; a row that has a `residual` for the
    scratchpad's port, where that cannot read the residual in the cycle in which an earlier row is written; and a row
    that comes again until it may.
    """

    LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        width = config.accumulator_width
        super().__init__(
            {
                "residual": In(Residual),
                "beat": In(beat_layout(config)),
                "totals": In(config.outputs * width),
                "row_total": In(SUM_WIDTH),
                "there": In(1),
                "swap": Out(1),
                "now": Out(range(config.passes)),
                "taken": Out(1),
                "pass_": Out(pass_layout(config)),
                "pass_totals": Out(config.channels_at_once * width),
                "pass_row_total": Out(SUM_WIDTH),
            }
        )

    @staticmethod
    def depth(config: Config) -> int:
        """Rows that may wait: all of a command's, so that the array goes on to the next group of channels at once."""
        return 1 << (config.max_rows - 1).bit_length()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, passes, now = self.beat, self.config.passes, self.now
        row = data.StructLayout(
            {
                "row": range(self.config.max_rows),
                "group": STEPS_WIDTH,
                "channels": 1,
                "row_total": SUM_WIDTH,
                "totals": len(self.totals),
            }
        )
        m.submodules.buffer = buffer = Buffer(row.size, self.depth(self.config), 1)
        head = data.View(row, buffer.data.payload)
        at_first, at_last = now == 0, now == passes - 1
        # A residual that is read now would be read in the cycle of a write that is on its way.
        late = delay(m, self.taken, Epilogue.residual_lead(self.config, Residual.ADD), name="taken")
        early = delay(m, late, Epilogue.EARLIER, name="taken_earlier")
        meets = Mux(self.residual == Residual.MULTIPLY, early, late) & (self.residual != Residual.NONE)
        port = meets if Scratchpad.shares_port(self.config) else 0
        row_before = register(m, head.row, name="row_before")
        soon = (head.row == row_before) & self._lately(m)
        do_pass = buffer.data.valid & ~(at_first & ((head.channels & ~self.there) | port | soon))
        m.d.comb += [
            buffer.push.eq(beat.valid),
            buffer.beat.eq(Cat(beat.row, beat.group, beat.channels, self.row_total, self.totals)),
            buffer.data.ready.eq(self.taken),
            self.taken.eq(buffer.data.valid & at_last),  # only the first of several passes ever waits
            self.swap.eq(do_pass & at_first & head.channels),
            self.pass_.valid.eq(delay(m, do_pass, self.LATENCY, name="valid")),
            self.pass_.row.eq(register(m, row_before, name="row")),
            self.pass_.group.eq(delay(m, head.group, self.LATENCY, name="group")),
            self.pass_.number.eq(delay(m, now, self.LATENCY, name="number")),
            self.pass_totals.eq(
                delay(m, head.totals.word_select(now, len(self.pass_totals)), self.LATENCY, name="totals")
            ),
            self.pass_row_total.eq(delay(m, head.row_total, self.LATENCY, name="row_total")),
        ]
        with m.If(do_pass):
            m.d.sync += now.eq(Mux(at_last, 0, now + 1))
        return m

    def _lately(self, m: Module) -> Value:
        """A row was taken in one of the cycles in which it must not come again."""
        ages = range(1, Epilogue.PERIOD - self.config.passes + 1)
        return Cat(delay(m, self.taken, age, name=f"taken_{age}") for age in ages).any()


class ParameterQueue(wiring.Component):
    """Bias, multiplier and shift of a group of channels: one set in use, up to `SETS` - 1 written ahead.

    `turn.free` while there is room for a set, `there` while one is written that is not in use. With `swap` it comes to
    use, in the same cycle; those of the channels of pass `now` leave `Serialiser.LATENCY` cycles later.
    """

    SETS = 4

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "write": In(ParameterWrite(config)),
                "turn": In(Turn()),
                "there": Out(1),
                "swap": In(1),
                "now": In(range(config.passes)),
                "used": Out(ParameterSet(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, n = self.config, self.config.channels_at_once
        at_once = parameters_at_once(config)  # channels that are written in a cycle
        wide = max(n, min(at_once, config.outputs))  # channels of a word: all of a set, or a power of two
        rows = -(-config.outputs // wide)  # words of a set
        m.submodules.store = store = block_ram(unsigned(wide * WIDTH), self.SETS << (rows - 1).bit_length())
        ahead, following = Signal(range(self.SETS)), Signal(range(self.SETS))  # sets; the one to write
        in_use = Signal(range(self.SETS), init=self.SETS - 1)
        m.d.sync += ahead.eq(ahead + self.turn.done - self.swap)
        m.d.sync += [in_use.eq(in_use + self.swap), following.eq(following + self.turn.done)]
        m.d.comb += [self.turn.free.eq(ahead != self.SETS - 1), self.there.eq(ahead != 0)]

        def place(number: Value, size: int) -> tuple[Value, Value]:
            """(the word, where in it), counted in parts of which a word has `size`."""
            bits = exact_log2(size) if rows > 1 else len(number)
            return number[bits:], number[:bits]

        write, (word, channel) = store.write_port(granularity=WIDTH), place(self.write.index, wide)
        parts = [self.write.words.word_select(i % at_once, PARAMETER_BITS)[:WIDTH] for i in range(wide)]
        here = [channel[exact_log2(at_once) :] == i // at_once for i in range(wide)]
        m.d.comb += [
            write.addr.eq(Cat(word, following)),
            write.data.eq(Cat(parts)),
            write.en.eq(Mux(self.write.load, Cat(here), 0)),
        ]
        word, part = place(register(m, self.now, name="now"), wide // n)
        found = look_up(m, store, Cat(word, in_use), name="found")
        chosen = found.word_select(register(m, part, name="part"), n * WIDTH)
        fields = [chosen.word_select(i, WIDTH) for i in range(n)]
        m.d.comb += [
            self.used.bias.eq(Cat(f[:BIAS_WIDTH] for f in fields)),
            self.used.multiplier.eq(Cat(f[BIAS_WIDTH:-SHIFT_WIDTH] for f in fields)),
            self.used.shift.eq(Cat(f[-SHIFT_WIDTH:] for f in fields)),
        ]
        return m
