"""Top-k of gate logits into expert queues: patch reordering, so that experts run one by one."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.config import ELEMENT_WIDTH, Config
from compiler.fixed import SUM_WIDTH
from hw.command import CommandLayout
from hw.epilogue import FACTOR_WIDTH, queue_entry
from hw.pipeline import delay, register, shift_round
from hw.scratchpad import Scratchpad
from hw.tables import DIFFERENCE_WIDTH, Exp2, Reciprocal


class Queues(wiring.Component):
    """One queue per expert, written at its end, read anywhere by two ports, one cycle later."""

    def __init__(self, config: Config):
        self.config = config
        expert, row, entry = range(config.max_experts), range(config.max_rows), queue_entry(config)
        super().__init__(
            {
                "clear": In(1),
                "push": In(1),
                "push_expert": In(expert),
                "push_entry": In(entry),
                "expert": In(expert),  # whose entries are read
                "source_row": In(row),
                "source_entry": Out(entry),
                "target_row": In(row),
                "target_entry": Out(entry),
                "lengths": Out(config.max_experts * config.max_rows.bit_length()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        width = c.max_rows.bit_length()
        layout = queue_entry(c)
        bits = len(self.source_row)
        m.submodules.entries = store = memory.Memory(shape=layout, depth=c.max_experts << bits, init=[])
        write, source, target = store.write_port(), store.read_port(), store.read_port()
        lengths = Array(Signal(width, name=f"length_{e}") for e in range(c.max_experts))

        m.d.comb += [
            write.en.eq(self.push),
            write.addr.eq(Cat(lengths[self.push_expert][:bits], self.push_expert)),
            write.data.eq(self.push_entry),
            source.addr.eq(Cat(self.source_row, self.expert)),
            target.addr.eq(Cat(self.target_row, self.expert)),
            self.source_entry.eq(source.data),
            self.target_entry.eq(target.data),
            self.lengths.eq(Cat(lengths)),
        ]
        with m.If(self.push):
            m.d.sync += lengths[self.push_expert].eq(lengths[self.push_expert] + 1)
        with m.If(self.clear):
            m.d.sync += [length.eq(0) for length in lengths]
        return m


class Router(wiring.Component):
    """Executes ROUTE: `start` for one cycle, `busy` until the last entry is pushed.

    Reads one logit a cycle, row after row; a row takes about `experts + 3 * top_k + 25` cycles, twice the
    experts if the softmax is over all of them.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "command": In(CommandLayout),
                "start": In(1),
                "busy": Out(1),
                "read_address": Out(range(config.scratchpad_chunks)),
                "read_data": In(config.lanes * ELEMENT_WIDTH),  # Scratchpad.READ_LATENCY later
                "push": Out(1),
                "push_expert": Out(range(config.max_experts)),
                "push_entry": Out(queue_entry(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, c, k = self.config, self.command, self.config.max_top_k
        m.submodules.exp = exp = Exp2()
        m.submodules.reciprocal = reciprocal = Reciprocal()

        row, row_address = Signal(range(config.max_rows + 1)), Signal.like(self.read_address)
        expert = Signal(range(config.max_experts + 1))
        lane, chunk, wait = Signal(range(config.lanes)), Signal.like(self.read_address), Signal(3)
        elements = Signal(config.lanes * ELEMENT_WIDTH)
        summing = Signal()  # second pass over the row: the sum of all exponentials
        logits = Array(Signal(signed(ELEMENT_WIDTH), name=f"logit_{i}") for i in range(k))
        experts = Array(Signal(range(config.max_experts), name=f"expert_{i}") for i in range(k))
        filled = Signal(k)
        place = Signal(range(k + 1))

        logit = elements.word_select(lane, ELEMENT_WIDTH).as_signed()
        m.d.comb += [self.read_address.eq(row_address + chunk), self.busy.eq(1), exp.wide.eq(1)]

        def begin_pass() -> list:
            return [expert.eq(0), lane.eq(0), chunk.eq(0), wait.eq(0)]

        # Exponentials come back in order; those of the second pass only count for the sum.
        feeding, keeping, scoring = Signal(), Signal(), Signal()
        kept = delay(m, keeping, Exp2.LATENCY + 1, name="kept")
        arrived = delay(m, feeding, Exp2.LATENCY + 1, name="arrived")
        fed = Signal(signed(ELEMENT_WIDTH))
        exponentials = Array(Signal(16, name=f"exponential_{i}") for i in range(k))
        stored, total = Signal(range(k + 1)), Signal(SUM_WIDTH)
        m.d.sync += exp.difference.eq(((logits[0] - fed)[: ELEMENT_WIDTH + 1] << c.exp_shift)[:DIFFERENCE_WIDTH])
        with m.If(arrived & kept):
            m.d.sync += [exponentials[stored].eq(exp.value), stored.eq(stored + 1)]
        with m.If(arrived & (~kept | ~c.score_all)):
            m.d.sync += total.eq(total + exp.value)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                m.d.sync += [row.eq(0), row_address.eq(c.a_address), summing.eq(0), *begin_pass()]
                with m.If(self.start):
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.sync += [filled.eq(0), stored.eq(0), total.eq(0)]
                with m.If(row == c.rows):
                    m.next = "IDLE"
                with m.Else():
                    m.next = "READ"
            with m.State("READ"):
                m.d.sync += [wait.eq(wait + 1), elements.eq(self.read_data)]
                with m.If(wait == Scratchpad.READ_LATENCY):
                    m.d.sync += [wait.eq(0), chunk.eq(chunk + 1)]
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.sync += [expert.eq(expert + 1), lane.eq(lane + 1)]
                with m.If(~summing):
                    self._insert(m, logit, expert, logits, experts, filled)
                m.d.comb += [feeding.eq(summing), fed.eq(logit)]
                with m.If(expert + 1 == c.columns):
                    m.d.sync += place.eq(0)
                    with m.If(c.score_all & ~summing):
                        m.d.sync += [summing.eq(1), *begin_pass()]
                        m.next = "READ"
                    with m.Else():
                        m.next = "EXP"
                with m.Elif(lane == config.lanes - 1):
                    m.next = "READ"
            with m.State("EXP"):
                m.d.comb += [feeding.eq(1), keeping.eq(1), fed.eq(logits[place])]
                m.d.sync += [place.eq(place + 1), wait.eq(0)]
                with m.If(place + 1 == c.top_k):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += place.eq(0)
                with m.If(stored == c.top_k):
                    m.d.sync += wait.eq(wait + 1)
                with m.If(wait == Reciprocal.LATENCY + 1):
                    m.next = "SCORE"
            with m.State("SCORE"):
                m.d.comb += scoring.eq(1)
                m.d.sync += [place.eq(place + 1), wait.eq(0)]
                with m.If(place + 1 == c.top_k):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                m.d.sync += [wait.eq(wait + 1), summing.eq(0)]
                with m.If(wait == 3):
                    m.d.sync += [row.eq(row + 1), row_address.eq(row_address + c.a_stride), *begin_pass()]
                    m.next = "ROW"

        self._push(m, scoring, row, place, total, exponentials, experts, reciprocal)
        return m

    def _insert(self, m: Module, logit, expert, logits, experts, filled) -> None:
        """Keep the largest first; of equals the earlier expert."""
        k = self.config.max_top_k
        above = [filled[i] & (logits[i] >= logit) for i in range(k)]  # stays in front of the new one
        for i in range(k):
            before = above[i - 1] if i else 1
            with m.If(~above[i] & before):
                m.d.sync += [logits[i].eq(logit), experts[i].eq(expert), filled[i].eq(1)]
            if i:
                with m.If(~above[i] & ~before):
                    m.d.sync += [
                        logits[i].eq(logits[i - 1]),
                        experts[i].eq(experts[i - 1]),
                        filled[i].eq(filled[i - 1]),
                    ]

    def _push(self, m: Module, scoring, row, place, total, exponentials, experts, reciprocal) -> None:
        """Scores of the selected experts, one a cycle: exponential over sum."""
        c, k = self.command, self.config.max_top_k
        lowest = experts[0]
        for i in range(1, k):
            lowest = Mux((i < c.top_k) & (experts[i] < lowest), experts[i], lowest)
        lowest = register(m, lowest, name="lowest")
        m.d.comb += reciprocal.value.eq(total)
        # Cycle 1: multiply. Cycle 2: shift. Cycle 3: push.
        product = register(m, exponentials[place] * reciprocal.mantissa, name="product")
        chosen = register(m, experts[place], name="chosen")
        score = register(m, shift_round(product, reciprocal.exponent)[:FACTOR_WIDTH], name="score")
        m.d.comb += [
            self.push.eq(delay(m, scoring, 2, name="push")),
            self.push_expert.eq(delay(m, chosen, 1, name="chosen")),
            self.push_entry.token.eq(row),
            self.push_entry.score.eq(score),
            self.push_entry.first.eq(self.push_expert == lowest),
        ]
