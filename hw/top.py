"""The machine: registers, DMA engines, sequencer, loader, router and the shared compute unit."""

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import DIGEST_BITS, ErrorCode
from patchloom.hw import axi
from patchloom.hw.datapath import Datapath
from patchloom.hw.dma import Reader, Writer
from patchloom.hw.loader import Loader
from patchloom.hw.registers import Registers
from patchloom.hw.router import Queues, Router
from patchloom.hw.sequencer import Sequencer
from patchloom.hw.storer import Storer


def interface(config: Config) -> wiring.Signature:
    """The machine's ports; `axi.port_map(interface(config).create())` names them."""
    return wiring.Signature(
        {
            "bus": Out(axi.Master(config.bus_width)),
            "control": In(axi.Lite()),
            "irq": Out(1),
            "digest": In(DIGEST_BITS),
            "clock_hz": In(32),
        }
    )


class Top(wiring.Component):
    """One clock, one AXI4 master for weights and tensors, one AXI4-Lite slave, one interrupt.

    Whoever instantiates it ties `digest` to what tells this build from any other, `verilog.digest` say, and `clock_hz`
    to the clock; both may be 0.

    After an error everything but the registers is held in reset and the DMA engines finish what AXI makes
    them finish; a soft reset makes the machine as new. What is reset is so a cycle later, also at power-on.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(interface(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        hold = Signal()  # soft reset, or after an error
        reset = Signal(init=1)  # a register drives the whole net, which is the longest there is
        m.domains += (core := ClockDomain("core", local=True))
        m.d.comb += [core.clk.eq(ClockSignal()), core.rst.eq(reset)]
        m.d.sync += reset.eq(hold)
        datapath, sequencer, loader = Datapath(config), Sequencer(config), Loader(config)
        router, queues, storer = Router(config), Queues(config), Storer(config)
        m.submodules.registers = registers = Registers(config, saturation_width=len(datapath.saturations))
        m.submodules.reader = reader = Reader(config)
        m.submodules.writer = writer = Writer(config)
        for name, part in {
            "datapath": datapath,
            "sequencer": sequencer,
            "loader": loader,
            "router": router,
            "queues": queues,
            "storer": storer,
        }.items():
            m.submodules[name] = DomainRenamer("core")(part)

        axi.forward(m, reader.bus, self.bus)
        axi.forward(m, writer.bus, self.bus)
        axi.forward(m, registers.control, self.control)
        for one, other in (
            (registers.bases, sequencer.bases),
            (registers.sizes, sequencer.sizes),
            (sequencer.read_request, reader.request),
            (reader.data, sequencer.read_data),
            (sequencer.weights, loader.weights),
            (sequencer.loader, loader.order),
            (loader.tile_turn, sequencer.tile),
            (loader.parameters_turn, datapath.parameters_turn if config.epilogue_lanes else sequencer.parameters),
            (loader.tile, datapath.tile),
            (loader.parameters, datapath.parameters),
            (loader.table, datapath.table),
            (loader.stationary, datapath.stationary),
            (loader.write, datapath.write),
            (sequencer.beats, datapath.beats),
            (datapath.source, queues.source),
            (datapath.target, queues.target),
            (sequencer.router, router.order),
            (router.push, queues.push),
            (sequencer.storer, storer.order),
            (sequencer.write_request, writer.request),
            (storer.beats, writer.data),
        ):
            wiring.connect(m, one, other)
        wiring.connect(m, registers.window, reader.window, writer.window)
        self._share_scratchpad(m, datapath, router, storer)
        m.d.comb += [
            reader.flush.eq(hold),
            writer.flush.eq(hold),
            self.irq.eq(registers.irq),
            registers.digest.eq(self.digest),
            registers.clock_hz.eq(self.clock_hz),
            registers.busy.eq(sequencer.busy),
            registers.summing.eq(sequencer.summing),
            registers.checksum.eq(sequencer.checksum),
            registers.beat_read.eq(reader.bus.rvalid & reader.bus.rready),
            registers.beat_written.eq(writer.bus.wvalid & writer.bus.wready),
            registers.stall_weights.eq(sequencer.stall_weights),
            registers.stall_writes.eq(sequencer.stall_writes),
            registers.saturation_increment.eq(datapath.saturations),
            registers.reset_done.eq(reader.idle & writer.idle),
            sequencer.start.eq(registers.start),
            sequencer.sum.eq(registers.sum),
            sequencer.task.eq(registers.task),
            sequencer.lengths.eq(queues.lengths),
            sequencer.reader_idle.eq(reader.idle),
            sequencer.reader_empty.eq(reader.empty),
            sequencer.writer_idle.eq(writer.idle),
            queues.clear.eq(sequencer.router.start),
            queues.expert.eq(sequencer.beats.command.expert),
        ]
        if config.epilogue_lanes:
            m.d.comb += sequencer.taken.eq(datapath.taken)
        self._supervise(m, registers, sequencer, reader, writer, hold)
        return m

    def _supervise(self, m: Module, registers, sequencer, reader, writer, hold) -> None:
        """Errors and the watchdog stop the machine until the soft reset.

        Progress is a command that has ended: beats move in a livelock, too.
        """
        failed, passed = Signal(), Signal(32)  # cycles of this command
        moved = sequencer.command_index != registers.command_index
        late = sequencer.busy & (registers.watchdog_limit != 0) & (passed >= registers.watchdog_limit)
        m.d.sync += passed.eq(Mux(moved | ~sequencer.busy, 0, passed + 1))

        fail = Signal()
        code, detail = Signal.like(registers.error_code), Signal.like(registers.error_detail)
        m.d.comb += hold.eq(failed | registers.soft_reset)
        # What ends a task, well or not, is told a cycle later.
        m.d.sync += [
            registers.done.eq(sequencer.done),
            registers.error_valid.eq(fail),
            registers.error_code.eq(code),
            registers.error_detail.eq(detail),
        ]
        index = sequencer.command_index
        # Of several the last one is told.
        for event, its_code, its_detail in (
            (reader.outside, ErrorCode.READ_OUTSIDE, index),
            (writer.outside, ErrorCode.WRITE_OUTSIDE, index),
            (reader.error[1], ErrorCode.READ_SLVERR + reader.error[0], index),
            (writer.error[1], ErrorCode.WRITE_SLVERR + writer.error[0], index),
            (late, ErrorCode.WATCHDOG, registers.watchdog_limit),
            (sequencer.failure.valid, sequencer.failure.code, sequencer.failure.detail),
        ):
            with m.If(event & ~hold):
                m.d.comb += [fail.eq(1), code.eq(its_code), detail.eq(its_detail)]
        # After an error the register still tells where, though the sequencer is in reset.
        with m.If(~hold):
            m.d.sync += registers.command_index.eq(sequencer.command_index)
        with m.If(fail):
            m.d.sync += failed.eq(1)
        with m.If(registers.soft_reset):
            m.d.sync += failed.eq(0)

    @staticmethod
    def _share_scratchpad(m: Module, datapath: Datapath, router: Router, storer: Storer) -> None:
        """Router and storer read it, never at the same time, while no beat is on its way."""
        m.d.comb += [
            datapath.external.eq(router.order.busy | storer.order.busy),
            datapath.read.address.eq(Mux(router.order.busy, router.read.address, storer.read.address)),
            *(unit.read.data.eq(datapath.read.data) for unit in (router, storer)),
        ]
