"""The machine: registers, DMA engines, sequencer, loader, router and the shared compute unit."""

from amaranth.hdl import Module, Mux, ResetInserter, Signal
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


class Top(wiring.Component):
    """One clock, one AXI4 master for weights and tensors, one AXI4-Lite slave, one interrupt.

    Whoever instantiates it ties `digest` to what tells this build from any other, `verilog.digest` say, or to 0.

    After an error everything but the registers is held in reset and the DMA engines finish what AXI makes
    them finish; a soft reset makes the machine as new.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "bus": Out(axi.Master(config.bus_width)),
                "control": In(axi.Lite()),
                "irq": Out(1),
                "digest": In(DIGEST_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        hold = Signal()  # soft reset, or after an error
        core = ResetInserter(hold)
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
            m.submodules[name] = core(part)

        axi.forward(m, reader.bus, self.bus)
        axi.forward(m, writer.bus, self.bus)
        axi.forward(m, registers.control, self.control)
        wiring.connect(m, sequencer.read_request, reader.request)
        wiring.connect(m, reader.data, sequencer.read_data)
        wiring.connect(m, sequencer.write_request, writer.request)
        wiring.connect(m, storer.beats, writer.data)
        wiring.connect(m, sequencer.weights, loader.weights)

        m.d.comb += [
            reader.flush.eq(hold),
            writer.flush.eq(hold),
            self.irq.eq(registers.irq),
            registers.digest.eq(self.digest),
            registers.busy.eq(sequencer.busy),
            registers.stall_weights.eq(sequencer.stall_weights),
            registers.stall_writes.eq(sequencer.stall_writes),
            registers.saturation_increment.eq(datapath.saturations),
            registers.reset_done.eq(reader.idle & writer.idle),
            sequencer.start.eq(registers.start),
            sequencer.task.eq(registers.task),
            sequencer.program_base.eq(registers.program_base),
            sequencer.input_base.eq(registers.input_base),
            sequencer.output_base.eq(registers.output_base),
            sequencer.writer_idle.eq(writer.idle),
        ]
        self._supervise(m, registers, sequencer, reader, writer, hold, datapath, loader, router)
        self._load(m, sequencer, loader, datapath)
        self._route(m, sequencer, router, queues, storer, datapath)
        return m

    def _supervise(self, m: Module, registers, sequencer, reader, writer, hold, datapath, loader, router) -> None:
        """Errors and the watchdog stop the machine until the soft reset."""
        failed, idle_cycles = Signal(), Signal(32)
        progress = datapath.beat.valid | datapath.write | loader.tile_load | router.push
        progress |= (reader.data.valid & reader.data.ready) | (writer.data.valid & writer.data.ready)
        late = sequencer.busy & (registers.watchdog_limit != 0) & (idle_cycles >= registers.watchdog_limit)
        m.d.sync += idle_cycles.eq(Mux(progress | ~sequencer.busy, 0, idle_cycles + 1))

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
        for engine, first in ((reader, ErrorCode.READ_SLVERR), (writer, ErrorCode.WRITE_SLVERR)):
            with m.If(engine.error[1] & ~hold):
                m.d.comb += [
                    fail.eq(1),
                    code.eq(first + engine.error[0]),
                    detail.eq(sequencer.command_index),
                ]
        with m.If(late & ~hold):
            m.d.comb += [
                fail.eq(1),
                code.eq(ErrorCode.WATCHDOG),
                detail.eq(registers.watchdog_limit),
            ]
        with m.If(sequencer.error & ~hold):
            m.d.comb += [
                fail.eq(1),
                code.eq(sequencer.error_code),
                detail.eq(sequencer.error_detail),
            ]
        # After an error the register still tells where, though the sequencer is in reset.
        with m.If(~hold):
            m.d.sync += registers.command_index.eq(sequencer.command_index)
        with m.If(fail):
            m.d.sync += failed.eq(1)
        with m.If(registers.soft_reset):
            m.d.sync += failed.eq(0)

    def _load(self, m: Module, sequencer: Sequencer, loader: Loader, datapath: Datapath) -> None:
        m.d.comb += [
            loader.command.eq(sequencer.loader_command),
            loader.start.eq(sequencer.loader_start),
            loader.drop.eq(sequencer.loader_drop),
            loader.allowed.eq(sequencer.loader_allowed),
            loader.tile_free.eq(sequencer.tile_free),
            loader.parameters_free.eq(sequencer.parameters_free),
            loader.stationary_ready.eq(datapath.stationary_ready),
            loader.stationary_data.eq(datapath.stationary_data),
            sequencer.loader_busy.eq(loader.busy),
            sequencer.tile_done.eq(loader.tile_done),
            sequencer.parameters_done.eq(loader.parameters_done),
        ]
        for name in (
            "tile_load",
            "tile_by_row",
            "tile_index",
            "tile_columns",
            "tile_data",
            "parameters_load",
            "parameters_index",
            "parameters_words",
            "stationary_address",
            "write",
            "write_address",
            "write_data",
        ):
            m.d.comb += getattr(datapath, name).eq(getattr(loader, name))

    def _route(self, m: Module, sequencer, router, queues, storer, datapath) -> None:
        m.d.comb += [
            datapath.command.eq(sequencer.command),
            datapath.beat.eq(sequencer.beat),
            datapath.read_external.eq(router.busy | storer.busy),
            datapath.read_address.eq(Mux(router.busy, router.read_address, storer.read_address)),
            router.command.eq(sequencer.command),
            router.start.eq(sequencer.router_start),
            router.read_data.eq(datapath.read_data),
            sequencer.router_busy.eq(router.busy),
            storer.command.eq(sequencer.command),
            storer.start.eq(sequencer.storer_start),
            storer.read_data.eq(datapath.read_data),
            sequencer.storer_busy.eq(storer.busy),
            queues.clear.eq(sequencer.router_start),
            queues.push.eq(router.push),
            queues.push_expert.eq(router.push_expert),
            queues.push_entry.eq(router.push_entry),
            queues.expert.eq(sequencer.command.expert),
            queues.source_row.eq(datapath.source_row),
            queues.target_row.eq(datapath.target_row),
            datapath.source_entry.eq(queues.source_entry),
            datapath.target_entry.eq(queues.target_entry),
            sequencer.lengths.eq(queues.lengths),
        ]
