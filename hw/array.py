"""The multiplier array and the accumulators behind it.

Weight-stationary: a tile of `inputs` x `outputs` weight digits stands still, one token's slice enters each
cycle, `outputs` sums leave. The next tile is written behind the running one.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import SUM_WIDTH
from patchloom.hw.bundles import TileWrite
from patchloom.hw.command import beat_layout
from patchloom.hw.pipeline import add, block_ram, delay, look_up, register, tree, tree_latency


class Tile(wiring.Component):
    """Two tiles of weight digits, one in use and one being written.

    `swap` puts to use in the next cycle what came at `write` `WRITE_LATENCY` cycles before it, or earlier; the first
    write of the next tile may come a cycle later.
    """

    WRITE_LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        width = config.weight_width
        super().__init__(
            {
                "write": In(TileWrite(config)),
                "swap": In(1),
                "weights": Out(config.inputs * config.outputs * width),  # [output][input]
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, write = self.config, self.write
        width, columns, at_once = c.weight_width, [], c.columns_at_once
        # Registered: what is decoded here goes to all of the array.
        by_column, by_row = write.load & ~write.by_row, write.load & write.by_row
        data = register(m, write.data, name="data")
        for j in range(c.outputs):
            written = Signal(c.inputs * width, name=f"written_{j}", reset_less=True)
            used = Signal(c.inputs * width, name=f"used_{j}", reset_less=True)
            block, place = divmod(j, at_once)
            here = (write.index >> exact_log2(at_once)) == block
            with m.If(register(m, by_column & here & write.columns[place], name=f"column_{j}")):
                m.d.sync += written.eq(data.word_select(place, c.inputs * width))
            with m.If(self.swap):
                m.d.sync += used.eq(written)
            m.d.comb += self.weights.word_select(j, c.inputs * width).eq(used)
            columns.append(written)
        for i in range(c.inputs):
            with m.If(register(m, by_row & (write.index == i), name=f"row_{i}")):
                m.d.sync += Cat(written.word_select(i, width) for written in columns).eq(data)
        return m


def sum_width(config: Config) -> int:
    """Bits of one column's sum of products."""
    return config.activation_width + config.weight_width + tree_latency(config.inputs)


class Multipliers(wiring.Component):
    """`sums[j] = sum over i of digits[i] * weights[i][j]`, `latency` cycles later, every cycle; nothing stalls."""

    def __init__(self, config: Config):
        self.config = config
        self.sum_width = sum_width(config)
        super().__init__(
            {
                "digits": In(config.inputs * config.activation_width),
                "weights": In(config.inputs * config.outputs * config.weight_width),
                "sums": Out(config.outputs * self.sum_width),
            }
        )

    @staticmethod
    def latency(config: Config) -> int:
        return 1 + tree_latency(config.inputs)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        digits = [self.digits.word_select(i, c.activation_width).as_signed() for i in range(c.inputs)]
        columns: list[list[Value]] = [[] for _ in range(c.outputs)]
        # Cycle 1: multiply. Then the trees.
        step = 2 if c.multipliers_packed else 1
        for j in range(0, c.outputs, step):
            for i, digit in enumerate(digits):
                weights = [self._weight(i, j + k) for k in range(step)]
                for column, product in zip(columns[j:], self._products(m, digit, weights, f"{i}_{j}"), strict=False):
                    column.append(product)
        for j, products in enumerate(columns):
            total, _ = tree(m, products, add, name=f"sum_{j}")
            m.d.comb += self.sums.word_select(j, self.sum_width).eq(total)
        return m

    def _weight(self, row: int, column: int) -> Value:
        return self.weights.word_select(column * self.config.inputs + row, self.config.weight_width).as_signed()

    @staticmethod
    def _products(m: Module, digit: Value, weights: list[Value], name: str) -> list[Value]:
        """Each weight times the digit; two 8-bit weights share one 27x18 multiplier.

        `(b << 18) + a` times the digit holds a's product in bits 0 to 15 and b's from bit 18 on, less one if a's
        is negative (Xilinx WP486).
        """
        if len(weights) == 1:
            return [register(m, digit * weights[0], name=f"product_{name}")]
        low, high = weights
        packed = register(m, ((high << 18) + low)[:27].as_signed() * digit, name=f"product_{name}")
        return [packed[:16].as_signed(), (packed[18:34].as_signed() + packed[17])[:16].as_signed()]


class Accumulators(wiring.Component):
    """Adds the partial sums of a row over tiles and digits; finished ones leave `LATENCY` cycles later.

    A beat enters every cycle and nothing stalls, but a row must not come back within `PERIOD` cycles. The softmax row
    sum is kept alongside.
    """

    LATENCY = 2
    PERIOD = 4

    def __init__(self, config: Config):
        self.config = config
        self.sum_width = sum_width(config)
        super().__init__(
            {
                "beat": In(beat_layout(config)),
                "sums": In(config.outputs * self.sum_width),
                "row_sum": In(SUM_WIDTH),
                "done": Out(beat_layout(config)),
                "totals": Out(config.outputs * config.accumulator_width),
                "row_total": Out(SUM_WIDTH),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, beat = self.config, self.beat
        width = c.accumulator_width
        m.submodules.memory = store = block_ram(unsigned(c.outputs * width + SUM_WIDTH), c.max_rows)
        write = store.write_port()

        # Cycle 1: look up the row; weigh the partial sums by their digits.
        found = look_up(m, store, beat.row, name="found")
        later = delay(m, beat, 1, name="beat")
        weighed = []
        for j in range(c.outputs):
            partial = self.sums.word_select(j, self.sum_width).as_signed()
            wide = Signal(signed(width), name=f"partial_{j}", reset_less=True)
            with m.Switch(beat.scale):
                for digits in range(3):
                    with m.Case(digits):
                        m.d.sync += wide.eq(partial << (8 * digits))
            weighed.append(wide)
        row_sum = register(m, Mux(beat.fresh, self.row_sum, 0), name="row_sum")
        # Cycle 2: add.
        old = Mux(later.first, 0, found)
        totals = [(old.word_select(j, width) + partial)[:width] for j, partial in enumerate(weighed)]
        row_total = (old[c.outputs * width :] + row_sum)[:SUM_WIDTH]
        m.d.comb += [
            self.totals.eq(register(m, Cat(totals), name="total")),
            self.row_total.eq(register(m, row_total, name="sum")),
            self.done.eq(delay(m, later, 1, name="done")),
            self.done.valid.eq(register(m, later.valid & later.last, name="done_valid")),
        ]
        # Cycle 3: write back.
        writing = Signal()
        m.d.sync += writing.eq(later.valid)
        m.d.comb += [
            write.en.eq(writing),
            write.addr.eq(self.done.row),
            write.data.eq(Cat(self.totals, self.row_total)),
        ]
        return m
