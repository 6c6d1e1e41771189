"""A small machine: it copies its input region to its output region."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw import axi
from patchloom.hw.dma import Reader, Writer
from patchloom.hw.registers import Registers


class Copier(wiring.Component):
    """The register `watchdog` says how many beats; errors of either engine are reported, as far as there are any."""

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"bus": Out(axi.Master(config.bus_width)), "control": In(axi.Lite()), "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = Reader(self.config)
        m.submodules.writer = writer = Writer(self.config)
        m.submodules.registers = registers = Registers(self.config)
        axi.forward(m, reader.bus, self.bus)
        axi.forward(m, writer.bus, self.bus)
        axi.forward(m, registers.control, self.control)
        wiring.connect(m, reader.data, writer.data)
        wiring.connect(m, registers.window, reader.window, writer.window)

        busy, settling = Signal(), Signal()
        error = reader.error | writer.error
        with m.If(registers.start):
            m.d.sync += [busy.eq(1), settling.eq(1)]
        with m.Elif(busy & ~settling & reader.idle & writer.idle):
            m.d.sync += busy.eq(0)
            m.d.comb += registers.done.eq(~registers.error_valid)
        with m.Else():
            m.d.sync += settling.eq(0)
        with m.If(registers.soft_reset):
            m.d.sync += busy.eq(0)
        m.d.comb += [
            self.irq.eq(registers.irq),
            reader.request.valid.eq(registers.start),
            reader.request.p.address.eq(registers.bases.input),
            reader.request.p.beats.eq(registers.watchdog_limit),
            writer.request.valid.eq(registers.start),
            writer.request.p.address.eq(registers.bases.output),
            writer.request.p.beats.eq(registers.watchdog_limit),
            reader.flush.eq(registers.soft_reset),
            writer.flush.eq(registers.soft_reset),
            registers.reset_done.eq(reader.idle & writer.idle),
            registers.busy.eq(busy),
            registers.error_valid.eq(error.any()),
            registers.error_code.eq(ErrorCode.READ_SLVERR),
            registers.error_detail.eq(error),
            registers.saturation_increment.eq(writer.data.valid & writer.data.ready),
        ]
        return m
