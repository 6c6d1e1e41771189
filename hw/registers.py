"""The AXI4-Lite slave made of the register map (`compiler.machine.registers`)."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import (
    DIGEST_BITS,
    MAGIC,
    REGISTERS,
    RESET_CYCLES,
    VERSION,
    Access,
    Control,
    parts,
)
from patchloom.hw import axi, pipeline
from patchloom.hw.bundles import Bases


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

    `start` pulses for one cycle; `task`, the bases and `watchdog_limit` are stable from then on while the driver
    leaves them alone. There is no pulse while busy, after an error, or during a soft reset.

    `soft_reset` is a level: the core holds `flush` of the DMA engines and the reset of everything else while it is
    high. It rises when the driver asks and falls once `reset_done` is high, but not before 8 cycles. `reset_done`
    is the core's "all DMA engines idle"; it is looked at only then. A soft reset clears status and error, and leaves
    settings and counters.

    `done` pulses for one cycle when a task has ended well, which an error in the same cycle denies. `error_valid`
    (a pulse or a level) takes `error_code` and `error_detail`: the first error is kept. The core should then fall
    silent (`busy` low) until the soft reset. Both are ignored during a soft reset.

    `cycles` counts while `busy`; `stall_weights` and `stall_writes` are counted while high; `saturation_increment`
    is added in every cycle. All are cleared by `start`.
    """

    def __init__(self, config: Config, *, saturation_width: int = 16):
        self.config = config
        super().__init__(
            {
                "control": In(axi.Lite()),
                "irq": Out(1),
                "digest": In(DIGEST_BITS),  # constant
                "start": Out(1),
                "soft_reset": Out(1),
                "reset_done": In(1),
                "task": Out(8),
                "bases": Out(Bases()),
                "watchdog_limit": Out(32),  # cycles without progress; 0 = off
                "busy": In(1),
                "done": In(1),
                "error_valid": In(1),
                "error_code": In(8),
                "error_detail": In(32),
                "stall_weights": In(1),
                "stall_writes": In(1),
                "saturation_increment": In(saturation_width),
                "command_index": In(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.slave = slave = _LiteSlave()
        wiring.connect(m, wiring.flipped(self.control), slave.bus)
        written = self._writes(m, slave)
        irq_enable = self._settings(m, slave, written)
        status, error_code, error_detail, events = self._run(m, slave, written)
        irq_status = self._interrupts(m, slave, written, events)
        m.d.sync += self.irq.eq(irq_enable & irq_status.any())
        cycles, upper = self._cycles(m)
        values = {
            "magic": Const(MAGIC, 32),
            "version": Const(VERSION, 32),
            "fingerprint": Const(self.config.fingerprint, 32),
            **{name: self.digest.word_select(i, 32) for i, name in enumerate(parts("digest", DIGEST_BITS))},
            "control": Cat(Const(0, 2), irq_enable),
            "status": status,
            "irq_status": irq_status,
            "error_code": error_code,
            "error_detail": error_detail,
            "task": self.task,
            "watchdog": self.watchdog_limit,
            "cycles_lo": cycles[:32],
            "cycles_hi": upper,
            "stall_weights": self._counter(m, "stall_weights", self.stall_weights),
            "stall_writes": self._counter(m, "stall_writes", self.stall_writes),
            "saturations": self._counter(m, "saturations", self.saturation_increment),
            "command_index": self.command_index,
        }
        values |= self._bases()
        self._reads(m, slave, values)
        with m.If(slave.read & (slave.read_index == REGISTERS["cycles_lo"].offset // 4)):
            m.d.sync += upper.eq(cycles[32:])
        return m

    def _bases(self) -> dict[str, Value]:
        """Halves of the addresses by their register."""
        bases = {name: getattr(self.bases, name) for name in self.bases.signature.members}
        lower = {f"{name}_base_lo": base[:32] for name, base in bases.items()}
        return lower | {f"{name}_base_hi": base[32:] for name, base in bases.items()}

    def _reads(self, m, slave, values: dict[str, Value]) -> None:
        with m.Switch(slave.read_index):
            for name, register in REGISTERS.items():
                with m.Case(register.offset // 4):
                    m.d.comb += slave.read_data.eq(values[name])
            with m.Default():
                m.d.comb += slave.read_bad.eq(1)

    def _writes(self, m, slave) -> dict[str, Signal]:
        """A strobe per register that can be written."""
        written = {n: Signal(name=f"{n}_written") for n, r in REGISTERS.items() if r.access != Access.READ}
        with m.Switch(slave.write_index):
            for name, strobe in written.items():
                with m.Case(REGISTERS[name].offset // 4):
                    m.d.comb += strobe.eq(slave.write)
            with m.Default():
                m.d.comb += slave.write_bad.eq(1)
        return written

    def _settings(self, m, slave, written) -> Signal:
        """Registers that keep what is written; returns the interrupt's enable."""
        irq_enable = Signal()
        kept = {"task": self.task, "watchdog": self.watchdog_limit} | self._bases()
        mask = slave.write_mask
        for name, value in kept.items():
            with m.If(written[name]):
                m.d.sync += value.eq((slave.write_data & mask) | (value & ~mask))
        with m.If(written["control"] & mask[0]):
            m.d.sync += irq_enable.eq((slave.write_data & Control.IRQ_ENABLE).any())
        return irq_enable

    def _run(self, m, slave, written) -> tuple[Value, Signal, Signal, Value]:
        """Start, soft reset and how the task ended. Returns status, error code and detail, and what happens now."""
        started, done, error = Signal(), Signal(), Signal()
        code, detail = Signal(8), Signal(32)
        hold = Signal(range(RESET_CYCLES))
        commanded = (slave.write_data & slave.write_mask)[:2] & written["control"].replicate(2)
        ask_start, ask_reset = commanded
        busy = self.busy | started | self.start
        do_done = self.done & ~self.error_valid & ~self.soft_reset
        do_error = self.error_valid & ~error & ~self.soft_reset
        m.d.sync += self.start.eq(ask_start & ~ask_reset & ~busy & ~error & ~self.soft_reset)
        with m.If(self.start):
            m.d.sync += [started.eq(1), done.eq(0)]
        with m.If(do_done):
            m.d.sync += [started.eq(0), done.eq(1)]
        with m.If(do_error):
            m.d.sync += [started.eq(0), error.eq(1), code.eq(self.error_code), detail.eq(self.error_detail)]
        with m.If(self.soft_reset):
            m.d.sync += [started.eq(0), done.eq(0), error.eq(0), code.eq(0), detail.eq(0)]
            with m.If(hold != 0):
                m.d.sync += hold.eq(hold - 1)
            with m.Elif(self.reset_done):
                m.d.sync += self.soft_reset.eq(0)
        with m.If(ask_reset):
            m.d.sync += [self.soft_reset.eq(1), hold.eq(RESET_CYCLES - 1)]
        return Cat(busy, done, error, self.soft_reset), code, detail, Cat(do_done, do_error)

    def _interrupts(self, m, slave, written, events: Value) -> Signal:
        pending = Signal(len(events))
        cleared = Mux(written["irq_status"], slave.write_data & slave.write_mask, 0)
        m.d.sync += pending.eq(Mux(self.soft_reset, 0, (pending & ~cleared) | events))
        return pending

    def _cycles(self, m) -> tuple[Signal, Signal]:
        cycles, upper = Signal(64), Signal(32)
        with m.If(self.start):
            m.d.sync += cycles.eq(0)
        with m.Elif(self.busy):
            m.d.sync += cycles.eq(cycles + 1)
        return cycles, upper

    def _counter(self, m, name: str, increment: Value) -> Signal:
        """Adds up since start; stays at its highest value rather than wrap."""
        counter, total = Signal(32, name=name), Signal(33, name=f"{name}_total")
        m.d.comb += total.eq(counter + pipeline.register(m, increment, name=f"{name}_increment"))
        m.d.sync += counter.eq(Mux(self.start, 0, Mux(total[32], 0xFFFF_FFFF, total)))
        return counter
