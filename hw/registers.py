"""The AXI4-Lite slave made of the register map (`compiler.machine.registers`)."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import (
    DIGEST_BITS,
    MAGIC,
    REGISTERS,
    RESET_CYCLES,
    RESET_LIMIT,
    VERSION,
    WINDOW_PAGE,
    Access,
    Control,
    Interrupt,
    parts,
)
from patchloom.hw import axi, pipeline
from patchloom.hw.bundles import Bases, Sizes, Window

PAGE_BITS = exact_log2(WINDOW_PAGE)
DONE_BIT = exact_log2(Interrupt.DONE)


class _LiteSlave(wiring.Component):
    """AXI4-Lite handshakes: address and data of a write may come in any order; one access of each kind at a time.

    A write is offered as `write`, `write_index`, `write_data`, `write_mask` for one cycle, and is answered with
    `write_bad` of that cycle; a read as `read`, `read_index`, answered with `read_data` and `read_bad` of that cycle.
    """

    index_width = axi.LITE_ADDRESS_WIDTH - 2

    def __init__(self):
        super().__init__(
            {
                "bus": In(axi.Lite()),
                "write": Out(1),
                "write_index": Out(self.index_width),
                "write_data": Out(32),
                "write_mask": Out(32),
                "write_bad": In(1),
                "read": Out(1),
                "read_index": Out(self.index_width),
                "read_data": In(32),
                "read_bad": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        has_address, has_data = Signal(), Signal()
        strobe = Signal(4)
        m.d.comb += [
            bus.awready.eq(~has_address),
            bus.wready.eq(~has_data),
            bus.arready.eq(~bus.rvalid),
            self.write.eq(has_address & has_data & ~bus.bvalid),
            self.write_mask.eq(Cat(bit.replicate(8) for bit in strobe)),
            self.read.eq(bus.arvalid & bus.arready),
            self.read_index.eq(bus.araddr[2:]),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [has_address.eq(1), self.write_index.eq(bus.awaddr[2:])]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [has_data.eq(1), self.write_data.eq(bus.wdata), strobe.eq(bus.wstrb)]
        with m.If(self.write):
            m.d.sync += [has_address.eq(0), has_data.eq(0), bus.bvalid.eq(1), bus.bresp.eq(_response(self.write_bad))]
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(self.read):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(self.read_data), bus.rresp.eq(_response(self.read_bad))]
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return m


def _response(bad: Value) -> Value:
    return Mux(bad, axi.Response.SLVERR, axi.Response.OKAY)


class Registers(wiring.Component):
    """AXI4-Lite slave with the machine's registers. Core-side ports:

    `start` pulses for one cycle; `task`, `bases` and `sizes` stand from then on until the next. A start while one runs
    is queued, and pulses when that one has ended well. There is no pulse after an error, during a soft reset, or while
    memory owes answers from before one. `sum` in its place asks for the checksum of the program region. `window` and
    `watchdog_limit` are as the driver has written them last.

    `soft_reset` is a level: the core holds `flush` of the DMA engines and the reset of everything else while it is
    high. It rises when the driver asks and falls once `reset_done` is high, but not before 8 cycles, and after 65,536
    at the latest. `reset_done` is the core's "all DMA engines idle". A soft reset clears status, error, queue and
    epoch, and leaves settings and counters.

    `done` pulses for one cycle when a task has ended well, which an error in the same cycle denies. The driver is told
    of it once it has taken note of the end before; only then does the next task begin. `error_valid` (a pulse or a
    level) takes `error_code` and `error_detail`: the first error is kept. The core should then fall silent (`busy` and
    `summing` low) until the soft reset. Both are ignored during a soft reset.

    Cycles are counted while `busy`, those of `stall_weights` and `stall_writes` and beats while these are high;
    `saturation_increment` is added in every cycle. The driver sees the counts of the last task whose end was told.
    """

    def __init__(self, config: Config, *, saturation_width: int = 16):
        self.config = config
        super().__init__(
            {
                "control": In(axi.Lite()),
                "irq": Out(1),
                "digest": In(DIGEST_BITS),  # constant
                "clock_hz": In(32),  # constant
                "start": Out(1),
                "sum": Out(1),
                "soft_reset": Out(1),
                "reset_done": In(1),
                "task": Out(8),
                "bases": Out(Bases()),
                "sizes": Out(Sizes()),
                "window": Out(Window()),
                "watchdog_limit": Out(32),  # cycles of one command; 0 = off
                "busy": In(1),
                "summing": In(1),
                "checksum": In(32),
                "done": In(1),
                "error_valid": In(1),
                "error_code": In(8),
                "error_detail": In(32),
                "stall_weights": In(1),
                "stall_writes": In(1),
                "beat_read": In(1),
                "beat_written": In(1),
                "saturation_increment": In(saturation_width),
                "command_index": In(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.slave = slave = _LiteSlave()
        wiring.connect(m, wiring.flipped(self.control), slave.bus)
        queued = Signal()
        written = self._writes(m, slave, queued)
        settings = self._settings(m, slave, written)
        irq_enable = Signal()
        with m.If(written["control"] & slave.write_mask[0]):
            m.d.sync += irq_enable.eq((slave.write_data & Control.IRQ_ENABLE).any())
        irq_status = Signal(len(Interrupt))
        status, error_code, error_detail, do_done = self._run(m, slave, written, queued, irq_status)
        m.d.sync += self.irq.eq(irq_enable & irq_status.any())
        with m.If(self.soft_reset):
            m.d.sync += settings["epoch"].eq(0)
        self._lead_out(m, settings)
        frames = Signal(32)
        m.d.sync += frames.eq(frames + do_done)
        values = {
            "magic": Const(MAGIC, 32),
            "version": Const(VERSION, 32),
            "fingerprint": Const(self.config.fingerprint, 32),
            **_words("digest", self.digest),
            "clock_hz": self.clock_hz,
            "control": Cat(Const(0, 2), irq_enable),
            "status": status,
            "irq_status": irq_status,
            "error_code": error_code,
            "error_detail": error_detail,
            "frames": frames,
            "checksum": self.checksum,
            **self._counts(m, do_done),
            "command_index": self.command_index,
        }
        self._reads(m, slave, values | settings)
        return m

    def _reads(self, m, slave, values: dict[str, Value]) -> None:
        with m.Switch(slave.read_index):
            for name, register in REGISTERS.items():
                with m.Case(register.offset // 4):
                    m.d.comb += slave.read_data.eq(values[name])
            with m.Default():
                m.d.comb += slave.read_bad.eq(1)

    def _writes(self, m, slave, queued: Signal) -> dict[str, Signal]:
        """A strobe per register that can be written, while it can."""
        written = {n: Signal(name=f"{n}_written") for n, r in REGISTERS.items() if r.access != Access.READ}
        with m.Switch(slave.write_index):
            for name, strobe in written.items():
                locked = queued & (REGISTERS[name].access == Access.LATCHED)
                with m.Case(REGISTERS[name].offset // 4):
                    m.d.comb += [strobe.eq(slave.write & ~locked), slave.write_bad.eq(locked)]
            with m.Default():
                m.d.comb += slave.write_bad.eq(1)
        return written

    def _settings(self, m, slave, written: dict[str, Signal]) -> dict[str, Signal]:
        """Registers that keep what is written, by name."""
        kept: dict[str, Signal] = {}
        for name, strobe in written.items():
            register = REGISTERS[name]
            if register.access == Access.CLEAR or name == "control":
                continue
            kept[name] = Signal(register.width, init=register.reset, name=name)
            for low in range(0, register.width, 8):  # bytes with an enable of their own take no logic
                with m.If(strobe & slave.write_mask[low]):
                    m.d.sync += kept[name][low : low + 8].eq(slave.write_data[low : low + 8])
        return kept

    def _lead_out(self, m, settings: dict[str, Signal]) -> None:
        """Those that a task takes with it, and those that hold at once."""
        with m.If(self._begins | self._sums):
            m.d.sync += self.task.eq(settings["task"])
            for name in self.bases.signature.members:
                m.d.sync += getattr(self.bases, name).eq(_joined(f"{name}_base", settings))
                m.d.sync += getattr(self.sizes, name).eq(settings[f"{name}_bytes"])
        m.d.comb += self.watchdog_limit.eq(settings["watchdog"])
        for name in self.window.signature.members:
            m.d.comb += getattr(self.window, name).eq(_joined(f"window_{name}", settings)[PAGE_BITS:])

    def _run(self, m, slave, written, queued: Signal, irq_status: Signal) -> tuple[Value, Signal, Signal, Value]:
        """Start, soft reset and how the task ended. Returns status, error code and detail, and whether it ends well."""
        started, ended, done, error, owed = Signal(), Signal(), Signal(), Signal(), Signal()
        code, detail = Signal(8), Signal(32)
        asked = (slave.write_data & slave.write_mask) & written["control"].replicate(32)
        ask_start, ask_reset, ask_sum = (
            (asked & bit).any() for bit in (Control.START, Control.SOFT_RESET, Control.CHECKSUM)
        )
        busy = self.busy | self.summing | started | self.start | self.sum
        allowed = ~ask_reset & ~error & ~self.soft_reset & ~owed
        self._begins, self._sums = Signal(), Signal()  # in this cycle
        is_told = ~irq_status[DONE_BIT]
        do_done = (self.done | ended) & is_told & ~self.error_valid & ~self.soft_reset
        do_error = self.error_valid & ~error & ~self.soft_reset
        m.d.comb += [
            self._begins.eq((ask_start | queued) & ~busy & allowed),
            self._sums.eq(ask_sum & ~ask_start & ~queued & ~busy & allowed),
        ]
        m.d.sync += [
            self.start.eq(self._begins),
            self.sum.eq(self._sums),
            queued.eq((queued | (ask_start & allowed)) & ~self._begins),
            ended.eq((self.done | ended) & ~do_done),
        ]
        with m.If(self._begins):
            m.d.sync += [started.eq(1), done.eq(0)]
        with m.If(do_done):
            m.d.sync += [started.eq(0), done.eq(~queued)]
        with m.If(do_error):
            m.d.sync += [error.eq(1), code.eq(self.error_code), detail.eq(self.error_detail)]
        with m.If(do_error | self.soft_reset):
            m.d.sync += [started.eq(0), queued.eq(0), ended.eq(0), done.eq(0)]
        with m.If(self.soft_reset):
            m.d.sync += [error.eq(0), code.eq(0), detail.eq(0)]
        self._soft_reset(m, ask_reset, owed)
        cleared = Mux(written["irq_status"], slave.write_data & slave.write_mask, 0)
        m.d.sync += irq_status.eq(Mux(self.soft_reset, 0, (irq_status & ~cleared) | Cat(do_done, do_error)))
        return Cat(busy, done, error, self.soft_reset, queued, owed), code, detail, do_done

    def _soft_reset(self, m, asked: Value, owed: Signal) -> None:
        passed = Signal(range(RESET_LIMIT))
        is_last = passed == RESET_LIMIT - 1
        with m.If(self.reset_done):
            m.d.sync += owed.eq(0)
        with m.If(self.soft_reset):
            m.d.sync += passed.eq(passed + 1)
            with m.If(((passed >= RESET_CYCLES - 1) & self.reset_done) | is_last):
                m.d.sync += [self.soft_reset.eq(0), owed.eq(~self.reset_done)]
        with m.If(asked):
            m.d.sync += [self.soft_reset.eq(1), passed.eq(0)]

    def _counts(self, m, do_done: Value) -> dict[str, Value]:
        """Of the last task whose end was told, by register."""
        cycles = Signal(64)
        m.d.sync += cycles.eq(Mux(self.start, 0, cycles + self.busy))
        counts = {"cycles": cycles, "saturations": self._saturations(m)} | {
            name: self._counter(m, name, event)
            for name, event in {
                "stall_weights": self.stall_weights,
                "stall_writes": self.stall_writes,
                "beats_read": self.beat_read,
                "beats_written": self.beat_written,
            }.items()
        }
        told: dict[str, Value] = {}
        for name, count in counts.items():
            kept = Signal.like(count, name=f"told_{name}")
            with m.If(do_done):
                m.d.sync += kept.eq(count)
            told |= _words(name, kept)
        return told

    def _counter(self, m, name: str, event: Value) -> Signal:
        """Cycles of `event` since start."""
        counter = Signal(32, name=name)
        m.d.sync += counter.eq(Mux(self.start, 0, counter + pipeline.register(m, event, name=f"{name}_event")))
        return counter

    def _saturations(self, m) -> Signal:
        """Added up since start; stays at its highest value rather than wrap."""
        counter, total = Signal(32, name="saturations"), Signal(33, name="saturations_total")
        m.d.comb += total.eq(counter + pipeline.register(m, self.saturation_increment, name="saturations_increment"))
        m.d.sync += counter.eq(Mux(self.start, 0, Mux(total[32], 0xFFFF_FFFF, total)))
        return counter


def _words(name: str, value: Value) -> dict[str, Value]:
    """A value in its registers."""
    return {part: value.word_select(i, 32) for i, part in enumerate(parts(name, len(value)))}


def _joined(name: str, settings: dict[str, Signal]) -> Value:
    """An address from its registers."""
    return Cat(settings[part] for part in parts(name, axi.ADDRESS_WIDTH))
