"""Top-k of gate logits into expert queues: patch reordering, so that experts run one by one."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import SUM_WIDTH
from patchloom.hw.bundles import (
    FACTOR_WIDTH,
    Execution,
    QueuePush,
    QueueRead,
    ScratchpadRead,
    chunk_width,
    lengths_width,
    queue_entry,
)
from patchloom.hw.pipeline import block_ram, delay, look_up, register, shift_round
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.tables import DIFFERENCE_WIDTH, Exp2, Reciprocal


class Queues(wiring.Component):
    """One queue per expert, written at its end, read anywhere by two ports; `clear` empties all.

    Each port serves a row or an entry a cycle; nothing stalls, and no queue is longer than `Config.max_rows`. Lengths
    count an entry a cycle after its push, reads see it `WRITE_LATENCY` cycles after.
    """

    WRITE_LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "clear": In(1),
                "push": In(QueuePush(config)),
                "expert": In(range(config.max_experts)),  # whose entries are read
                "source": In(QueueRead(config)),
                "target": In(QueueRead(config)),
                "lengths": Out(lengths_width(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        width = c.max_rows.bit_length()
        bits, push = len(self.source.row), self.push
        m.submodules.entries = store = block_ram(queue_entry(c), c.max_experts << bits)
        write = store.write_port()
        lengths = Array(Signal(width, name=f"length_{e}") for e in range(c.max_experts))

        # Registered: the way from an expert over its queue's length to the block RAM is the machine's longest.
        end = Cat(lengths[push.expert][:bits], push.expert)
        m.d.comb += [
            write.en.eq(delay(m, push.valid, 1, name="write")),
            write.addr.eq(register(m, end, name="end")),
            write.data.eq(register(m, push.entry.as_value(), name="entry")),
            self.source.entry.eq(look_up(m, store, Cat(self.source.row, self.expert), name="source")),
            self.target.entry.eq(look_up(m, store, Cat(self.target.row, self.expert), name="target")),
            self.lengths.eq(Cat(lengths)),
        ]
        with m.If(push.valid):
            m.d.sync += lengths[push.expert].eq(lengths[push.expert] + 1)
        with m.If(self.clear):
            m.d.sync += [length.eq(0) for length in lengths]
        return m


class Router(wiring.Component):
    """Executes ROUTE; busy until the last entry is pushed. Nothing stalls it.

    `ROWS` rows are read and scanned at once, an expert a cycle. Then their experts take turns in a pipeline that
    scores them, while the next rows are scanned: `ROWS` rows take as long as it takes to read and scan them (a cycle
    an expert, and `ROWS` + `Scratchpad.READ_LATENCY` for each chunk of their logits) or, if that is more, `max_top_k`
    cycles each. With the softmax over all experts a row is read again and nothing overlaps.
    """

    ROWS = 4

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "order": In(Execution()),
                "read": Out(ScratchpadRead(config)),
                "push": Out(QueuePush(config)),
            }
        )

    @staticmethod
    def scored_at(config: Config) -> int:
        """Cycles from a turn until the sum of its row, of `max_top_k` turns, has its reciprocal."""
        return config.max_top_k + Exp2.LATENCY + Reciprocal.LATENCY + 3

    @staticmethod
    def latency(config: Config) -> int:
        """Cycles from a turn until its push."""
        return Router.scored_at(config) + 2

    @staticmethod
    def settle(config: Config) -> int:
        """Cycles from a turn until its entry can be read."""
        return Router.latency(config) + Queues.WRITE_LATENCY

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        self.row, self.row_address = Signal(range(config.max_rows + self.ROWS)), Signal.like(self.read.address)
        self.hand, self.free = Signal(), Signal()  # scanner to scorer
        # The selected of each row, best first: being gathered by the scanner, then taking turns.
        self.found, self.found_experts = self._selected("found")
        self.logits, self.experts = self._selected("turn")
        scanning, scan_address = self._scan(m)
        reading, again_address = self._turns(m)
        self._score(m)
        settle = Signal(range(self.settle(config) + 1))
        with m.If(self.turn):
            m.d.sync += settle.eq(self.settle(config))
        with m.Elif(settle != 0):
            m.d.sync += settle.eq(settle - 1)
        m.d.comb += [
            self.read.address.eq(Mux(reading, again_address, scan_address)),
            self.order.busy.eq(scanning | ~self.free | (settle != 0)),
        ]
        return m

    def _selected(self, name: str) -> tuple[list[list[Signal]], list[list[Signal]]]:
        """Logits and experts, [ROWS][max_top_k]."""
        places = [f"{r}_{i}" for r in range(self.ROWS) for i in range(self.config.max_top_k)]
        logits = [Signal(signed(ELEMENT_WIDTH), name=f"{name}_logit_{place}", reset_less=True) for place in places]
        experts = [
            Signal(range(self.config.max_experts), name=f"{name}_expert_{place}", reset_less=True) for place in places
        ]
        rows = range(0, len(places), self.config.max_top_k)
        return [[x[r : r + self.config.max_top_k] for r in rows] for x in (logits, experts)]

    def _scan(self, m: Module) -> tuple[Signal, Signal]:
        """Select from `ROWS` rows at once; returns whether there is a row left, and the address to read."""
        c, config = self.order.command, self.config
        address, chunk_address = Signal.like(self.read.address), Signal.like(self.read.address)
        expert, lane = Signal(range(config.max_experts + 1)), Signal(range(config.lanes))
        asked, filled = Signal(range(self.ROWS + 1)), Signal(config.max_top_k)
        elements = [Signal(chunk_width(config), name=f"elements_{r}", reset_less=True) for r in range(self.ROWS)]
        scanning, reading = Signal(), Signal()
        following, after = self.row + self.ROWS, self.row_address + c.a_stride * self.ROWS

        def ask(first: Signal) -> list:
            return [address.eq(first), chunk_address.eq(first), asked.eq(0)]

        begin_row = [expert.eq(0), lane.eq(0), filled.eq(0)]
        arrived = delay(m, reading, Scratchpad.READ_LATENCY, name="arrived")
        all_arrived = delay(m, reading & (asked == self.ROWS - 1), Scratchpad.READ_LATENCY, name="all_arrived")
        with m.If(arrived):  # rows move up until the first is at the front
            m.d.sync += Cat(elements).eq(Cat(*elements[1:], self.read.data))
        m.d.comb += scanning.eq(1)
        with m.FSM(name="scan"):
            with m.State("IDLE"):
                m.d.comb += scanning.eq(0)
                m.d.sync += [self.row.eq(0), self.row_address.eq(c.a_address), *ask(c.a_address), *begin_row]
                with m.If(self.order.start):
                    m.next = "READ"
            with m.State("READ"):
                with m.If(asked != self.ROWS):
                    m.d.comb += reading.eq(1)
                    m.d.sync += [asked.eq(asked + 1), address.eq(address + c.a_stride)]
                with m.If(all_arrived):
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.sync += [expert.eq(expert + 1), lane.eq(lane + 1), filled.eq(Cat(1, filled))]
                for row, chunk in enumerate(elements):
                    self._insert(m, row, chunk.word_select(lane, ELEMENT_WIDTH).as_signed(), expert, filled)
                with m.If(expert + 1 == c.columns):
                    m.next = "HAND"
                with m.Elif(lane == config.lanes - 1):
                    m.d.sync += ask(chunk_address + 1)
                    m.next = "READ"
            with m.State("HAND"):
                with m.If(self.free):
                    m.d.comb += self.hand.eq(1)
                    m.d.sync += [self.row.eq(following), self.row_address.eq(after), *ask(after), *begin_row]
                    m.next = "READ"
                    with m.If(c.score_all | (following >= c.rows)):
                        m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(self.free):
                    m.next = "READ"
                    with m.If(self.row >= c.rows):
                        m.next = "IDLE"
        return scanning, address

    def _insert(self, m: Module, row: int, logit: Signal, expert: Signal, filled: Signal) -> None:
        """Keep the largest first; of equals the earlier expert."""
        found, experts = self.found[row], self.found_experts[row]
        above = [filled[i] & (found[i] >= logit) for i in range(len(found))]  # stays in front of the new one
        for i, stays in enumerate(above):
            before = above[i - 1] if i else 1
            with m.If(~stays & before):
                m.d.sync += [found[i].eq(logit), experts[i].eq(expert)]
            if i:
                with m.If(~stays & ~before):
                    m.d.sync += [found[i].eq(found[i - 1]), experts[i].eq(experts[i - 1])]

    def _turns(self, m: Module) -> tuple[Signal, Signal]:
        """Whose turn it is to be scored; returns whether the scratchpad is read for that, and where."""
        c, config = self.order.command, self.config
        address, row_address = Signal.like(self.read.address), Signal.like(self.read.address)
        expert, lane = Signal(range(config.max_experts + 1)), Signal(range(config.lanes))
        age, left = Signal(range(Scratchpad.READ_LATENCY + 1)), Signal(range(self.ROWS + 1))
        elements, reading = Signal(chunk_width(config)), Signal()
        self.place, self.token = Signal(range(config.max_top_k)), Signal(range(config.max_rows))
        self.turn = Signal()  # of the selected expert at `place`
        self.feed, self.other = Signal(), elements.word_select(lane, ELEMENT_WIDTH).as_signed()  # any, for the sum
        self.begins = Mux(c.score_all, self.feed & (expert == 0), self.turn & (self.place == 0))  # a sum
        self.ends = self.turn & (self.place == config.max_top_k - 1)
        after = row_address + c.a_stride
        begin_row = [expert.eq(0), lane.eq(0), age.eq(0)]

        with m.FSM(name="turns"):
            with m.State("IDLE"):
                m.d.comb += self.free.eq(1)
                m.d.sync += [self.place.eq(0), self.token.eq(self.row), *begin_row]
                m.d.sync += [address.eq(self.row_address), row_address.eq(self.row_address)]
                m.d.sync += left.eq(Mux(c.rows - self.row > self.ROWS, self.ROWS, c.rows - self.row))
                with m.If(self.hand):
                    m.next = "TURN"
                    with m.If(c.score_all):
                        m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += reading.eq(1)
                m.d.sync += age.eq(age + 1)
                with m.If(age == Scratchpad.READ_LATENCY):
                    m.d.sync += elements.eq(self.read.data)
                    m.next = "FEED"
            with m.State("FEED"):
                m.d.comb += self.feed.eq(1)
                m.d.sync += [expert.eq(expert + 1), lane.eq(lane + 1)]
                with m.If(expert + 1 == c.columns):
                    m.next = "TURN"
                with m.Elif(lane == config.lanes - 1):
                    m.d.sync += [address.eq(address + 1), age.eq(0)]
                    m.next = "ASK"
            with m.State("TURN"):
                m.d.comb += self.turn.eq(1)
                m.d.sync += self.place.eq(self.place + 1)
                with m.If(self.ends):
                    m.d.sync += [self.place.eq(0), self.token.eq(self.token + 1), left.eq(left - 1), *begin_row]
                    m.d.sync += [address.eq(after), row_address.eq(after)]
                    with m.If(left == 1):
                        m.next = "IDLE"
                    with m.Elif(c.score_all):
                        m.next = "ASK"
        for kept, new in ((self.logits, self.found), (self.experts, self.found_experts)):
            for row in range(self.ROWS):
                with m.If(self.hand):
                    m.d.sync += Cat(kept[row]).eq(Cat(new[row]))
                with m.Elif(self.ends & (row + 1 < self.ROWS)):  # the next row moves to the front
                    m.d.sync += Cat(kept[row]).eq(Cat(kept[min(row + 1, self.ROWS - 1)]))
        return reading, address

    def _score(self, m: Module) -> None:
        """Exponentials, their sum, its reciprocal, and an entry for each selected expert."""
        c, config = self.order.command, self.config
        m.submodules.exp = exp = Exp2()
        m.submodules.reciprocal = reciprocal = Reciprocal()
        logits, experts = Array(self.logits[0]), Array(self.experts[0])
        selected = self.turn & (self.place < c.top_k)
        counts = Mux(c.score_all, self.feed, selected)
        exp_at, scored_at = Exp2.LATENCY + 2, self.scored_at(config)

        # The sum is complete a cycle after its last exponential; its reciprocal stands until the next row's.
        fed = Mux(self.turn, logits[self.place], self.other)
        difference = register(m, (logits[0] - fed)[: ELEMENT_WIDTH + 1], name="difference")
        aligned = register(m, (difference << c.exp_shift)[:DIFFERENCE_WIDTH], name="aligned")
        m.d.comb += [exp.wide.eq(1), exp.difference.eq(aligned)]
        total = Signal(SUM_WIDTH)
        before = Mux(delay(m, self.begins, exp_at, name="begins"), 0, total)
        with m.If(delay(m, counts, exp_at, name="counts")):
            m.d.sync += total.eq(before + exp.value)
        m.d.comb += reciprocal.value.eq(total)
        exponent = delay(m, reciprocal.exponent, Reciprocal.LATENCY - 1, name="exponent")
        mantissa_kept, exponent_kept = Signal.like(reciprocal.mantissa), Signal.like(reciprocal.exponent)
        with m.If(delay(m, self.ends, exp_at + 1 + Reciprocal.LATENCY, name="ends")):
            m.d.sync += [mantissa_kept.eq(reciprocal.mantissa), exponent_kept.eq(exponent)]

        lowest = self.experts[0][0]
        for i in range(1, config.max_top_k):
            other = self.experts[0][i]
            lowest = Mux((i < c.top_k) & (other < lowest), other, lowest)
        entry = data.StructLayout({"expert": range(config.max_experts), "token": range(config.max_rows), "first": 1})
        turn = Signal(entry)
        m.d.comb += [
            turn.expert.eq(experts[self.place]),
            turn.token.eq(self.token),
            turn.first.eq(turn.expert == lowest),
        ]
        pushed = delay(m, turn, scored_at + 2, name="turn")
        # Cycle 1: multiply. Cycle 2: shift. Then push.
        exponential = delay(m, exp.value, scored_at - exp_at, name="exponential")
        product = register(m, exponential * mantissa_kept, name="product")
        shift = register(m, exponent_kept, name="shift")
        m.d.comb += [
            self.push.valid.eq(delay(m, selected, scored_at + 2, name="push")),
            self.push.expert.eq(pushed.expert),
            self.push.entry.token.eq(pushed.token),
            self.push.entry.score.eq(register(m, shift_round(product, shift)[:FACTOR_WIDTH], name="score")),
            self.push.entry.first.eq(pushed.first),
        ]
