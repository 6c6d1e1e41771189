"""The streamed operand: a token's slice on its way from the scratchpad into the array.

In the stream it is normalised, or becomes the exponential of a score, is limited to the operand's format
and cut into digits. A whole slice passes each cycle; nothing stalls.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Prologue
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import MEAN_GUARD, ROW_ONE, SHIFT_WIDTH, SUM_WIDTH, operand_limits
from patchloom.hw.command import CommandLayout, beat_layout
from patchloom.hw.pipeline import add, clip, delay, limited_shift, popcount, register, tree, tree_latency
from patchloom.hw.statistics import MEAN_WIDTH
from patchloom.hw.tables import DIFFERENCE_WIDTH, Exp2

NORMAL_WIDTH = ELEMENT_WIDTH + 2  # of a normalised element, before it is limited to its format


class Operand(wiring.Component):
    """Elements and their row's constants in, digits for the array out `LATENCY` cycles later.

    `row_sum`, `sum_latency` cycles after the elements, is the sum of the slice's operands before they were
    cut into digits. `saturations` counts the limited elements of some earlier beat.
    """

    VALUE = 3 + Exp2.LATENCY  # cycles until an element is what its prologue makes of it
    LATENCY = VALUE + 3

    def __init__(self, config: Config):
        self.config = config
        lanes = config.inputs
        super().__init__(
            {
                "command": In(CommandLayout),
                "beat": In(beat_layout(config)),
                "half": In(1),  # of a chunk in which a packed slice begins
                "elements": In(lanes * ELEMENT_WIDTH),
                "mean": In(signed(MEAN_WIDTH)),
                "scale": In(ROW_ONE.bit_length()),
                "shift": In(SHIFT_WIDTH),
                "maximum": In(signed(ELEMENT_WIDTH)),
                "digits": Out(lanes * config.activation_width),
                "row_sum": Out(SUM_WIDTH),
                "saturations": Out(range(lanes + 1)),
            }
        )

    @staticmethod
    def sum_latency(config: Config) -> int:
        return Operand.LATENCY - 1 + tree_latency(config.inputs)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, lanes = self.command, self.config.inputs
        exponentiates = c.prologue == Prologue.EXP
        normalises = (c.prologue == Prologue.NORMALISE) | (c.prologue == Prologue.RMS)

        # Cycle 1: which elements count; without normalisation (x << MEAN_GUARD) >> MEAN_GUARD is x.
        taken = register(m, c.depth - self.beat.slice * lanes, name="taken")
        late = delay(m, taken, self.VALUE - 1, name="taken")
        waits = self.VALUE - 6  # before an element is normalised: exponentials take longer
        mean = delay(m, Mux(normalises, self.mean, 0), 1 + waits, name="mean")
        maximum = register(m, self.maximum, name="maximum")
        scale = delay(m, Mux(normalises, self.scale, 1), 2 + waits, name="scale")
        shift = delay(
            m, register(m, Mux(normalises, self.shift, MEAN_GUARD), name="shift"), self.VALUE - 4, name="shift"
        )
        values, limited = [], []
        for i in range(lanes):
            x = register(m, self._element(i), name=f"element_{i}")
            value = Mux(
                exponentiates,
                self._exponential(m, x, maximum, i),
                self._normal(m, delay(m, x, waits, name=f"waiting_{i}"), mean, scale, shift, i),
            )
            value = register(m, value, name=f"chosen_{i}")
            # Last but one: limit and mask.
            low8, high8 = operand_limits(8)
            low16, high16 = operand_limits(16)
            narrow, narrowed = clip(value, low8, high8)
            wide, widened = clip(value, low16, high16)
            inside = register(m, late > i, name=f"inside_{i}")
            values.append(register(m, Mux(inside, Mux(c.a_wide, wide, narrow), 0), name=f"value_{i}"))
            limited.append(inside & Mux(c.a_wide, widened, narrowed))
        fresh = delay(m, self.beat.valid & self.beat.fresh & (self.beat.group == 0), self.VALUE + 1, name="fresh")
        counts, _ = popcount(
            m, [register(m, bit & fresh, name=f"limited_{i}") for i, bit in enumerate(limited)], name="limited"
        )
        m.d.comb += self.saturations.eq(counts)

        row_sum, _ = tree(m, values, add, name="row_sum")
        m.d.comb += self.row_sum.eq(row_sum)
        # Last: cut.
        digit = delay(m, self.beat.digit, self.VALUE + 2, name="digit")
        m.d.comb += self.digits.eq(register(m, Cat(self._digit(value, digit) for value in values), name="digits"))
        return m

    def _element(self, lane: int) -> Value:
        """One of the slice's; a packed slice fills half as many chunks, and may begin in the middle of one."""
        word = self.elements.word_select(lane, ELEMENT_WIDTH).as_signed()
        byte = self.elements.word_select(lane, 8).as_signed()
        if self.config.input_chunks % 2:
            byte = Mux(self.half, self.elements.word_select(self.config.lanes + lane, 8).as_signed(), byte)
        return Mux(self.command.a_packed, byte, word)

    def _exponential(self, m: Module, x: Signal, maximum: Signal, lane: int) -> Signal:
        m.submodules[f"exp_{lane}"] = exp = Exp2()
        # Cycle 2: distance from the row's maximum. Cycle 3: align. Then exp2.
        difference = register(m, (maximum - x)[: ELEMENT_WIDTH + 1], name=f"difference_{lane}")
        aligned = register(m, (difference << self.command.exp_shift)[:DIFFERENCE_WIDTH], name=f"aligned_{lane}")
        m.d.comb += [exp.wide.eq(self.command.a_wide), exp.difference.eq(aligned)]
        return exp.value.as_signed()

    def _normal(self, m: Module, x: Signal, mean: Signal, scale: Signal, shift: Signal, lane: int) -> Signal:
        # Subtract the mean; multiply; shift in two cycles; round and limit.
        centred = register(m, ((x << MEAN_GUARD) - mean)[:MEAN_WIDTH].as_signed(), name=f"centred_{lane}")
        product = register(m, centred * scale, name=f"product_{lane}")
        limited, _ = limited_shift(m, product, shift, NORMAL_WIDTH, name=f"shifted_{lane}")
        return register(m, limited, name=f"normal_{lane}")

    def _digit(self, value: Signal, digit: Signal) -> Signal:
        """Low or high signed byte on an 8-bit array; the value itself on a 16-bit one."""
        if self.config.activation_width == ELEMENT_WIDTH:
            return value[:ELEMENT_WIDTH]
        high = (value - value[:8].as_signed())[8:16]
        return Mux(digit, high, value[:8])
