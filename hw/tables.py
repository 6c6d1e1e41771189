"""Function units: tables with linear interpolation, the integers of `compiler.machine.fixed` in ROMs, or loaded.

All of them are pipelines of fixed latency that take and give a value every cycle and never stall.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.fixed import (
    EPILOGUE_WIDTH,
    EXP2_GUARD,
    EXP2_TABLE,
    RECIPROCAL_TABLE,
    ROW_ONE,
    RSQRT_TABLE,
    SCORE_FRACTION,
    SUM_WIDTH,
    VARIANCE_WIDTH,
    Table,
)
from patchloom.compiler.machine.tables import (
    CODE_BITS,
    ENTRIES,
    ENTRY,
    ENTRY_BITS,
    FRACTION_BITS,
    WITH_TABLE,
)
from patchloom.hw.bundles import TableWrite
from patchloom.hw.pipeline import block_ram, delay, look_up, register, shift_round

DIFFERENCE_WIDTH = 17 + SCORE_FRACTION  # score difference, aligned


class Interpolator(wiring.Component):
    """`table(index, fraction)`, four cycles later. Small tables get no multiplier: there is one a lane of them."""

    LATENCY = 4

    def __init__(self, table: Table):
        self.table = table
        super().__init__(
            {
                "index": In(range(len(table.base))),
                "fraction": In(table.fraction_bits),
                "value": Out(table.base_width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self.table
        words = [b | (s & ((1 << t.slope_width) - 1)) << t.base_width for b, s in zip(t.base, t.slope, strict=True)]
        m.submodules.rom = rom = memory.Memory(
            shape=unsigned(t.base_width + t.slope_width), depth=len(words), init=words
        )
        read = rom.read_port()

        # Cycles 1 and 2: look up.
        m.d.comb += read.addr.eq(self.index)
        found = register(m, read.data, name="found")
        base, slope = found[: t.base_width], found[t.base_width :].as_signed()
        # Cycles 3 and 4.
        fraction = delay(m, self.fraction, 2, name="fraction")
        total = _interpolated(m, base, slope, fraction, small=len(words) <= 64)
        m.d.comb += self.value.eq(register(m, total[: t.base_width], name="total"))
        return m


def _interpolated(m: Module, base: Value, slope: Value, fraction: Value, *, small: bool = False) -> Value:
    """A cycle later, before a register. Cycle 1: multiply. Cycle 2: round and add."""
    product = register(m, _product_of_logic(slope, fraction) if small else slope * fraction, name="product")
    return register(m, base, name="base") + shift_round(product, len(fraction))


def _product_of_logic(value: Value, factor: Value) -> Value:
    """`value * factor` for a short unsigned `factor`, from adders: such products are not worth a multiplier."""
    terms: list[Value] = [Mux(bit, value << i, 0) for i, bit in enumerate(factor)]
    terms = [term.as_signed() for term in terms] if value.shape().signed else terms
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


class Exp2(wiring.Component):
    """`compiler.machine.fixed.exp2_negative`: an operand of 16 bits if `wide`, else 8, `LATENCY` cycles later."""

    LATENCY = Interpolator.LATENCY + 2

    difference: In(DIFFERENCE_WIDTH)
    wide: In(1)
    value: Out(16)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Interpolator(EXP2_TABLE)

        # Cycle 1: split.
        code = register(m, self.difference[:SCORE_FRACTION], name="code")
        above = self.difference[SCORE_FRACTION:]
        whole = register(m, Mux(above > 31, 31, above[:5]), name="whole")
        m.d.comb += [table.index.eq(code[6:]), table.fraction.eq(code[:6])]
        # Then interpolate.
        whole = delay(m, whole, Interpolator.LATENCY - 1, name="whole")
        wide = delay(m, self.wide, Interpolator.LATENCY, name="wide")
        amount = register(m, whole + EXP2_GUARD + Mux(wide, 0, 8), name="amount")
        # Last: shift by exponent and format, rounding once.
        m.d.comb += self.value.eq(register(m, shift_round(table.value, amount)[:16], name="rounded"))
        return m


class Activation(wiring.Component):
    """What `post` says of an epilogue word, `LATENCY` cycles later: `compiler.machine.tables.activate`.

    `post` and the table must not change while words that they apply to are on their way.
    """

    LATENCY = 6

    table: In(TableWrite())
    post: In(Post)
    x: In(signed(EPILOGUE_WIDTH))
    value: Out(signed(EPILOGUE_WIDTH))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = block_ram(unsigned(ENTRY_BITS), ENTRIES)
        write = store.write_port()
        m.d.comb += [write.en.eq(self.table.load), write.addr.eq(self.table.index), write.data.eq(self.table.entry)]
        even, negative = self.post == Post.EVEN, self.x[-1]

        # Cycle 1: the magnitude, or the distance from the table's first word; what is kept of the word.
        folds = even & negative
        place = (self.x ^ folds.replicate(EPILOGUE_WIDTH)) + Cat(folds, Const(0, CODE_BITS - 2), ~even)
        place = register(m, place[:EPILOGUE_WIDTH], name="place")
        dropped = (self.post == Post.ALONE) | (negative & (self.post != Post.NONE))
        kept = register(m, Mux(dropped, 0, self.x), name="kept")
        below = register(m, negative & ~even, name="below")
        # Cycles 2 and 3: look up; beyond the table, its ends.
        beyond = place[CODE_BITS:].any()
        code = Mux(beyond, (~below).replicate(CODE_BITS), place[:CODE_BITS])
        found = register(m, look_up(m, store, code[FRACTION_BITS:], name="looked_up"), name="found")
        fraction = delay(m, code[:FRACTION_BITS], 2, name="fraction")
        base, slope = found[: ENTRY["base"].width].as_signed(), found[ENTRY["base"].width :].as_signed()
        # Cycles 4 and 5: interpolate.
        has_table = reduce(or_, (self.post == post for post in WITH_TABLE))
        total = _interpolated(m, base, slope, fraction)[: ENTRY["base"].width].as_signed()
        taken = register(m, Mux(has_table, total, 0), name="taken")
        # Cycle 6: what is kept less that.
        activated = (delay(m, kept, 4, name="kept") - taken)[:EPILOGUE_WIDTH].as_signed()
        m.d.comb += self.value.eq(register(m, activated, name="activated"))
        return m


def floor_log2(value: Value) -> Value:
    """Position of the highest set bit of a non-zero value, half by half."""
    if len(value) == 1:
        return Const(0, 0)
    half = 1 << ((len(value) - 1).bit_length() - 1)
    high = value[half:].any()
    lower = floor_log2(value[:half])
    return Cat(Mux(high, floor_log2(value[half:]), lower)[: len(lower)], high)


class Reciprocal(wiring.Component):
    """`compiler.machine.fixed.reciprocal`; the exponent one cycle later, the mantissa after `LATENCY`."""

    LATENCY = Interpolator.LATENCY + 2

    value: In(SUM_WIDTH)
    exponent: Out(range(SUM_WIDTH))
    mantissa: Out(ROW_ONE.bit_length())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Interpolator(RECIPROCAL_TABLE)

        # Cycle 1: exponent. Cycle 2: normalise. Then interpolate.
        m.d.comb += self.exponent.eq(register(m, floor_log2(self.value), name="log2"))
        value = register(m, self.value, name="raw")
        normal = register(m, (value << (SUM_WIDTH - 1 - self.exponent)[:5])[:SUM_WIDTH], name="normal")
        m.d.comb += [table.index.eq(normal[-8:-1]), table.fraction.eq(normal[-18:-8]), self.mantissa.eq(table.value)]
        return m


class Rsqrt(wiring.Component):
    """`compiler.machine.fixed.rsqrt`; the exponent and the mantissa both `LATENCY` cycles later."""

    LATENCY = Interpolator.LATENCY + 2

    value: In(VARIANCE_WIDTH)
    exponent: Out(range(VARIANCE_WIDTH // 2))
    mantissa: Out(ROW_ONE.bit_length())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Interpolator(RSQRT_TABLE)

        # Cycle 1: half the exponent. Cycle 2: normalise by an even shift. Then interpolate.
        half = register(m, floor_log2(self.value) >> 1, name="half")
        value = register(m, self.value, name="raw")
        shift = Cat(Const(0, 1), (VARIANCE_WIDTH // 2 - 1 - half)[:5])
        normal = register(m, (value << shift)[:VARIANCE_WIDTH], name="normal")
        m.d.comb += [table.index.eq(normal[-8:]), table.fraction.eq(normal[-18:-8]), self.mantissa.eq(table.value)]
        m.d.comb += self.exponent.eq(delay(m, half, Interpolator.LATENCY + 1, name="half"))
        return m
