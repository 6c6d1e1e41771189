"""Row statistics: gathered as rows are written, turned into mean and scale when they are read.

Layer normalisation from exact integer sums: variance * features**2 = features * sum(x**2) - sum(x)**2.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.commands import Prologue
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import (
    MAX_SHIFT,
    MEAN_GUARD,
    NORMALISED_FEATURES,
    ROW_ONE,
    SHIFT_WIDTH,
    VARIANCE_WIDTH,
)
from patchloom.hw.command import CommandLayout
from patchloom.hw.pipeline import (
    add,
    block_ram,
    delay,
    look_up,
    multiply,
    register,
    rounded,
    running,
    shift_round,
    shifted,
    square,
    tree,
    tree_latency,
)
from patchloom.hw.tables import Rsqrt

TOTAL_WIDTH = ELEMENT_WIDTH + exact_log2(NORMALISED_FEATURES)
SQUARES_WIDTH = 2 * ELEMENT_WIDTH + exact_log2(NORMALISED_FEATURES)
MEAN_WIDTH = ELEMENT_WIDTH + MEAN_GUARD + 1


class Statistics(wiring.Component):
    """One row is read and one gathered each cycle; neither side stalls.

    `mean`, `scale` and `shift` follow `read_row` by `READ_LATENCY` cycles. A row gathered in several pieces
    must not come again within `GATHER_PERIOD` cycles. With `Config.epilogue_lanes` the elements of a piece come in as
    many cycles in a row, from `first` on; `gather`, `begin` and `gather_row` are looked at in the last of them.
    """

    READ_LATENCY = 5 + Rsqrt.LATENCY + 3
    GATHER_PERIOD = 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "command": In(CommandLayout),
                "read_row": In(range(config.statistics_rows)),
                "mean": Out(signed(MEAN_WIDTH)),
                "scale": Out(ROW_ONE.bit_length()),
                "shift": Out(SHIFT_WIDTH),
                "gather": In(1),
                "begin": In(1),  # forget what was gathered for this row
                "gather_row": In(range(config.statistics_rows)),
                "elements": In(config.channels_at_once * ELEMENT_WIDTH),
            }
            | ({"first": In(1)} if config.epilogue_lanes else {})
        )

    @staticmethod
    def gather_latency(config: Config) -> int:
        """Cycles until a gathered row can be read."""
        return tree_latency(config.channels_at_once) + 5 + bool(config.epilogue_lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rows = rows = block_ram(unsigned(TOTAL_WIDTH + SQUARES_WIDTH), self.config.statistics_rows)
        self._read(m, rows)
        self._gather(m, rows)
        return m

    def _read(self, m: Module, rows: memory.Memory) -> None:
        c = self.command
        m.submodules.rsqrt = rsqrt = Rsqrt()

        # Cycles 1 and 2: look up. With a sum of zero the rest yields the root mean square.
        read = look_up(m, rows, self.read_row, name="read")
        total = register(m, Mux(c.prologue == Prologue.RMS, 0, read[:TOTAL_WIDTH]), name="found_total").as_signed()
        squares = register(m, read[TOTAL_WIDTH:], name="found_squares")
        # Cycles 3 and 4: multiply.
        limb = self.config.limb_width
        scaled = multiply(m, total, c.mean_multiplier, limb, name="scaled")
        above = multiply(m, squares, c.depth, limb, name="above")
        below = square(m, total, name="below")
        # Cycle 5: variance. Cycles 5 and 6: mean.
        halves = register(m, shifted(scaled, c.mean_shift), name="halves")
        mean = register(m, rounded(halves)[:MEAN_WIDTH].as_signed(), name="mean")
        variance = register(m, (above - below + c.epsilon)[:VARIANCE_WIDTH], name="variance")
        # Then the reciprocal square root.
        m.d.comb += rsqrt.value.eq(variance)
        # Last three: times the number of features; round; leave.
        product = register(m, rsqrt.mantissa * c.norm_scale, name="product")
        shift = Signal(signed(8))
        m.d.comb += shift.eq(c.norm_shift + rsqrt.exponent)
        limited = Mux(shift < 0, 0, Mux(shift > MAX_SHIFT, MAX_SHIFT, shift))[:SHIFT_WIDTH]
        m.d.comb += [
            self.mean.eq(delay(m, mean, Rsqrt.LATENCY + 2, name="mean")),
            self.scale.eq(delay(m, shift_round(product, 16), 2, name="scale")),
            self.shift.eq(delay(m, limited, 3, name="shift")),
        ]

    def _gather(self, m: Module, rows: memory.Memory) -> None:
        write = rows.write_port()
        lanes = [self.elements.word_select(i, ELEMENT_WIDTH).as_signed() for i in range(self.config.channels_at_once)]
        lanes = [register(m, x, name="element") for x in lanes]

        # Cycle 2: square. Then the trees.
        squares, latency = tree(m, [register(m, x * x, name="square") for x in lanes], add, name="squares")
        total, _ = tree(m, [register(m, x, name="element") for x in lanes], add, name="total")
        if self.config.epilogue_lanes:
            first = delay(m, self.first, latency + 2, name="first")
            squares = running(m, squares, first, add, signed(SQUARES_WIDTH), name="running_squares")
            total = running(m, total, first, add, signed(TOTAL_WIDTH), name="running_total")
            latency += 1
        valid = delay(m, self.gather, latency + 2, name="gather")
        begin = delay(m, self.begin, latency + 2, name="begin")
        row = delay(m, self.gather_row, latency + 1, name="gather_row")
        # Last but one: look up. Last: add and write.
        old = look_up(m, rows, row, name="old")
        old_total, old_squares = old[:TOTAL_WIDTH].as_signed(), old[TOTAL_WIDTH:]
        new_total = (total + Mux(begin, 0, old_total))[:TOTAL_WIDTH]
        new_squares = (squares + Mux(begin, 0, old_squares))[:SQUARES_WIDTH]
        m.d.comb += [
            write.en.eq(register(m, valid, name="write")),
            write.addr.eq(delay(m, row, 2, name="write_row")),
            write.data.eq(register(m, Cat(new_total, new_squares), name="write_data")),
        ]
