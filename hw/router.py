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

    Scans one logit a cycle; a row's scores are made while the next row is scanned, about `experts + 1` or
    `2 * top_k + 18` cycles a row, whichever is more. With the softmax over all experts a row is scanned twice
    and nothing overlaps.
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
        k = self.config.max_top_k
        # The selected of a row: being gathered by the scanner, then being scored.
        self.found = [Signal(signed(ELEMENT_WIDTH), name=f"found_{i}") for i in range(k)]
        self.found_experts = [Signal(range(self.config.max_experts), name=f"found_expert_{i}") for i in range(k)]
        self.logits = Array(Signal(signed(ELEMENT_WIDTH), name=f"logit_{i}") for i in range(k))
        self.experts = Array(Signal(range(self.config.max_experts), name=f"expert_{i}") for i in range(k))
        self.row = Signal(range(self.config.max_rows + 1))  # being scored
        self.hand, self.free = Signal(), Signal()  # scanner to scorer
        self.sum_logit, self.sum_feed = Signal(signed(ELEMENT_WIDTH)), Signal()  # second scan
        scanning = self._scan(m)
        m.d.comb += self.busy.eq(scanning | ~self.free)
        self._score(m)
        return m

    def _scan(self, m: Module) -> Signal:
        """Walk over the rows' logits; returns whether there is one left."""
        c, config = self.command, self.config
        row, row_address = Signal(range(config.max_rows + 1)), Signal.like(self.read_address)
        expert, lane = Signal(range(config.max_experts + 1)), Signal(range(config.lanes))
        age = Signal(range(Scratchpad.READ_LATENCY + 1))  # cycles since the address was given
        elements = Signal(config.lanes * ELEMENT_WIDTH)
        again, filled, scanning = Signal(), Signal(self.config.max_top_k), Signal()
        logit = elements.word_select(lane, ELEMENT_WIDTH).as_signed()
        final = expert + 1 == c.columns

        def ask(address: Signal) -> list:
            return [self.read_address.eq(address), age.eq(0)]

        m.d.comb += [self.sum_logit.eq(logit), scanning.eq(1)]
        with m.If(age != Scratchpad.READ_LATENCY):
            m.d.sync += age.eq(age + 1)
        with m.FSM(name="scan"):
            with m.State("IDLE"):
                m.d.comb += scanning.eq(0)
                m.d.sync += [row.eq(0), row_address.eq(c.a_address), again.eq(0), filled.eq(0)]
                m.d.sync += [expert.eq(0), lane.eq(0), *ask(c.a_address)]
                with m.If(self.start):
                    m.next = "READ"
            with m.State("READ"):
                with m.If(age == Scratchpad.READ_LATENCY):
                    m.d.sync += [elements.eq(self.read_data), *ask(self.read_address + 1)]
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.comb += self.sum_feed.eq(again)
                m.d.sync += [expert.eq(expert + 1), lane.eq(lane + 1)]
                with m.If(~again):
                    self._insert(m, logit, expert, filled)
                with m.If(final):
                    m.next = "HAND"
                with m.Elif(lane == config.lanes - 1):
                    m.next = "READ"
            with m.State("HAND"):
                # Only now may the largest logit change that exponentials refer to.
                with m.If(self.free | again):
                    m.d.comb += self.hand.eq(~again)
                    m.d.sync += [expert.eq(0), lane.eq(0), filled.eq(0)]
                    with m.If(c.score_all & ~again):
                        m.d.sync += [again.eq(1), *ask(row_address)]
                        m.next = "READ"
                    with m.Else():
                        m.d.sync += [again.eq(0), row.eq(row + 1)]
                        m.d.sync += [row_address.eq(row_address + c.a_stride), *ask(row_address + c.a_stride)]
                        m.next = "READ"
                        with m.If(row + 1 == c.rows):
                            m.next = "IDLE"
        with m.If(self.hand):
            m.d.sync += self.row.eq(row)
            m.d.sync += [kept.eq(new) for kept, new in zip(self.logits, self.found, strict=True)]
            m.d.sync += [kept.eq(new) for kept, new in zip(self.experts, self.found_experts, strict=True)]
        over = Signal()  # the second scan, of the row being scored
        with m.If(self.hand):
            m.d.sync += over.eq(0)
        with m.If(self.sum_feed & final):
            m.d.sync += over.eq(1)
        self.summed = ~c.score_all | over
        return scanning

    def _insert(self, m: Module, logit: Signal, expert: Signal, filled: Signal) -> None:
        """Keep the largest first; of equals the earlier expert."""
        found, experts = self.found, self.found_experts
        above = [filled[i] & (found[i] >= logit) for i in range(len(found))]  # stays in front of the new one
        for i, stays in enumerate(above):
            before = above[i - 1] if i else 1
            with m.If(~stays & before):
                m.d.sync += [found[i].eq(logit), experts[i].eq(expert), filled[i].eq(1)]
            if i:
                with m.If(~stays & ~before):
                    m.d.sync += [found[i].eq(found[i - 1]), experts[i].eq(experts[i - 1]), filled[i].eq(filled[i - 1])]

    def _score(self, m: Module) -> None:
        """Exponentials, their sum, its reciprocal, and an entry for each selected expert."""
        c, k = self.command, self.config.max_top_k
        m.submodules.exp = exp = Exp2()
        m.submodules.reciprocal = reciprocal = Reciprocal()
        place, wait = Signal(range(k + 1)), Signal(range(Reciprocal.LATENCY + 2))
        stored, total = Signal(range(k + 1)), Signal(SUM_WIDTH)
        exponentials = Array(Signal(16, name=f"exponential_{i}") for i in range(k))
        feeding, scoring = Signal(), Signal()

        # Exponentials come back in order; those of the second scan only count for the sum.
        fed = Mux(feeding, self.logits[place], self.sum_logit)
        m.d.comb += exp.wide.eq(1)
        m.d.sync += exp.difference.eq(((self.logits[0] - fed)[: ELEMENT_WIDTH + 1] << c.exp_shift)[:DIFFERENCE_WIDTH])
        kept = delay(m, feeding, Exp2.LATENCY + 1, name="kept")
        arrived = delay(m, feeding | self.sum_feed, Exp2.LATENCY + 1, name="arrived")
        with m.If(kept):
            m.d.sync += [exponentials[stored].eq(exp.value), stored.eq(stored + 1)]
        with m.If(arrived & (~kept | ~c.score_all)):
            m.d.sync += total.eq(total + exp.value)

        with m.FSM(name="score"):
            with m.State("IDLE"):
                m.d.comb += self.free.eq(1)
                m.d.sync += [place.eq(0), wait.eq(0), stored.eq(0), total.eq(0)]
                with m.If(self.hand):
                    m.next = "EXP"
            with m.State("EXP"):
                with m.If(self.summed):
                    m.d.comb += feeding.eq(1)
                    m.d.sync += place.eq(place + 1)
                    with m.If(place + 1 == c.top_k):
                        m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += place.eq(0)
                with m.If(stored == c.top_k):
                    m.d.sync += wait.eq(wait + 1)
                with m.If(wait == Reciprocal.LATENCY):
                    m.next = "SCORE"
            with m.State("SCORE"):
                m.d.comb += scoring.eq(1)
                m.d.sync += [place.eq(place + 1), wait.eq(0)]
                with m.If(place + 1 == c.top_k):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == 2):
                    m.next = "IDLE"

        lowest = self.experts[0]
        for i in range(1, k):
            lowest = Mux((i < c.top_k) & (self.experts[i] < lowest), self.experts[i], lowest)
        lowest = register(m, lowest, name="lowest")
        m.d.comb += reciprocal.value.eq(total)
        # Cycle 1: multiply. Cycle 2: shift. Cycle 3: push.
        product = register(m, exponentials[place] * reciprocal.mantissa, name="product")
        chosen = register(m, self.experts[place], name="chosen")
        score = register(m, shift_round(product, reciprocal.exponent)[:FACTOR_WIDTH], name="score")
        m.d.comb += [
            self.push.eq(delay(m, scoring, 2, name="push")),
            self.push_expert.eq(delay(m, chosen, 1, name="chosen")),
            self.push_entry.token.eq(self.row),
            self.push_entry.score.eq(score),
            self.push_entry.first.eq(self.push_expert == lowest),
        ]
