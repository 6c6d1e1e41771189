"""The native simulation, with a small machine of its own: one that copies its input region to its output region."""

import gc
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.registers import REGISTERS, Control, ErrorCode, Status
from patchloom.hw import axi
from patchloom.hw.dma import Reader, Writer
from patchloom.hw.registers import Registers
from patchloom.sim.device import DeadlineError, DeviceError, ProtocolError, RegisterError, SimulatedDevice

CONFIG = Config(fifo_beats=64)
WIDE = Config(fifo_beats=32, bus_width=512, inputs=64, outputs=64)
DEADLINE = 100_000


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
            reader.request.p.address.eq(registers.input_base),
            reader.request.p.beats.eq(registers.watchdog_limit),
            writer.request.valid.eq(registers.start),
            writer.request.p.address.eq(registers.output_base),
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


class Rude(wiring.Component):
    """Raises ARVALID in every other cycle, whether it was answered or not."""

    def __init__(self, config: Config):
        super().__init__({"bus": Out(axi.Master(config.bus_width)), "control": In(axi.Lite()), "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.bus.arvalid.eq(~self.bus.arvalid)
        m.d.comb += [self.bus.arburst.eq(axi.INCR), self.bus.arsize.eq(3), self.bus.rready.eq(1)]
        return m


@dataclass
class Copy:
    """One copy job on a device."""

    device: SimulatedDevice
    beats: int

    def __post_init__(self):
        size = self.beats * self.device.config.beat_bytes
        self.source, self.target = self.device.allocate(size), self.device.allocate(size)
        self.source.data[:] = np.random.default_rng(self.beats).integers(0, 256, size)

    def start(self):
        for name, value in (("input_base", self.source.address), ("output_base", self.target.address)):
            write(self.device, f"{name}_lo", value & 0xFFFF_FFFF)
            write(self.device, f"{name}_hi", value >> 32)
        write(self.device, "watchdog", self.beats)
        write(self.device, "control", Control.START | Control.IRQ_ENABLE)

    def run(self):
        """Copy and compare; returns the cycles."""
        self.start()
        self.device.wait(DEADLINE)
        write(self.device, "irq_status", 3)
        assert read(self.device, "status") == Status.DONE
        np.testing.assert_array_equal(self.target.data, self.source.data)
        return read(self.device, "cycles_lo")


def read(device: SimulatedDevice, name: str) -> int:
    return device.read_register(REGISTERS[name].offset)


def write(device: SimulatedDevice, name: str, value: int) -> None:
    device.write_register(REGISTERS[name].offset, value)


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["64 bits", "512 bits"])
@pytest.mark.parametrize("seed", range(4))
def test_copies_whatever_the_bus_does(config, seed):
    temper = [
        {"latency": 0},
        {"latency": 100, "outstanding": 1},
        {"latency": 30, "jitter": 50, "stalls": 0.5},
        {"stalls": 0.9, "cycles_per_beat": 3},
    ][seed]
    with SimulatedDevice(config, top=Copier, seed=seed, **temper) as device:
        for beats in (1, 2, 3, 77, 600):
            Copy(device, beats).run()
        assert device.traffic.read_beats == device.traffic.write_beats == 683


def test_timing_is_that_of_the_bus():
    """A beat a cycle behind the first latency; the bandwidth limit is met exactly; latency comes on top."""
    cycles = {}
    for latency, per_beat in ((10, 1), (40, 1), (10, 4)):
        with SimulatedDevice(CONFIG, top=Copier, latency=latency, cycles_per_beat=per_beat) as device:
            cycles[latency, per_beat] = Copy(device, 2000).run()
    assert 2000 < cycles[10, 1] < 2000 + 2 * 10 + 20
    assert cycles[40, 1] - cycles[10, 1] == 2 * 30
    assert abs(cycles[10, 4] - 4 * 2000) < 50


def test_same_seed_same_cycles():
    def run(seed: int) -> int:
        with SimulatedDevice(CONFIG, top=Copier, stalls=0.3, jitter=9, seed=seed) as device:
            return Copy(device, 500).run()

    assert run(1) == run(1) != run(2)


def test_stalls_hold_back_as_often_as_asked():
    with SimulatedDevice(CONFIG, top=Copier, latency=0, stalls=0.5) as device:
        assert 0.35 < 2 * 20_000 / Copy(device, 20_000).run() / 2 < 0.6


def test_identity_and_refusals():
    with SimulatedDevice(CONFIG, top=Copier) as device:
        assert read(device, "fingerprint") == CONFIG.fingerprint
        with pytest.raises(RegisterError, match=r"read of register 0x800 was answered with SLVERR"):
            device.read_register(0x800)
        with pytest.raises(RegisterError, match=r"write of register 0x0 was answered with SLVERR"):
            write(device, "magic", 1)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("response", [axi.Response.SLVERR, axi.Response.DECERR])
def test_injected_errors(response, reads):
    with SimulatedDevice(CONFIG, top=Copier) as device:
        copy = Copy(device, 300)
        at = (copy.source if reads else copy.target).address + 1000
        device.inject(at, 1, response, reads=reads, writes=not reads)
        copy.start()
        device.wait(DEADLINE)
        assert read(device, "status") & Status.ERROR
        assert read(device, "error_detail") == response
        device.soft_reset(DEADLINE)
        assert read(device, "status") == 0
        device.clear_faults()
        copy.run()


def test_nothing_beyond_the_memory():
    with SimulatedDevice(CONFIG, top=Copier, memory_bytes=1 << 20) as device:
        copy = Copy(device, 8)
        copy.source = type(copy.source)(device.base + (1 << 20), copy.source.data)
        copy.start()
        device.wait(DEADLINE)
        assert read(device, "error_detail") == axi.Response.DECERR
        with pytest.raises(MemoryError, match="bytes left, not 1048576"):
            device.allocate(1 << 20)


def test_soft_reset_in_the_middle():
    with SimulatedDevice(CONFIG, top=Copier, stalls=0.4, latency=70) as device:
        for moment in range(0, 300, 7):
            copy = Copy(device, 200)
            copy.start()
            device.step(moment)
            device.soft_reset(DEADLINE)
            assert read(device, "status") == 0
            Copy(device, 20).run()


def test_deadline():
    with SimulatedDevice(CONFIG, top=Copier, latency=5000) as device:
        Copy(device, 8).start()
        with pytest.raises(DeadlineError, match=r"no interrupt within 300 cycles; status <Status\.BUSY: 1>, command 0"):
            device.wait(300)


def test_memory_outlives_the_device():
    device = SimulatedDevice(CONFIG, top=Copier, memory_bytes=1 << 16)
    data = device.allocate(8).data
    device.close()
    del device
    gc.collect()
    data[:] = 7
    assert data.sum() == 56


def test_trace(tmp_path):
    with SimulatedDevice(CONFIG, top=Copier, trace=tmp_path / "copy.vcd") as device:
        Copy(device, 4).run()
    text = (tmp_path / "copy.vcd").read_text()
    assert "m_axi_araddr" in text
    assert f"b{device.base:064b}" in text
    assert "$timescale 1ns" in text
    with pytest.raises(ValueError, match=r"trace must name a \.vcd or \.fst file, not 'copy\.txt'"):
        SimulatedDevice(CONFIG, top=Copier, trace="copy.txt")


# The driver -----------------------------------------------------------------------------------------------------------


def program(beats: int, config: Config = CONFIG) -> Program:
    tasks = (Task("other", (), (), (), 8, 8, 0), Task("copy", (), (), (), 8 * beats, 8 * beats, 0, ("first", "second")))
    return Program(config, "exact", tasks, bytes(range(200)))


def test_run():
    with SimulatedDevice(CONFIG, top=Copier) as device:
        made = program(100)
        rng = np.random.default_rng(0)
        for _ in range(3):
            inputs = rng.integers(-(1 << 15), 1 << 15, 400).astype(np.int16)
            output, cycles, saturations = device.run(made, inputs, "copy", watchdog=100)
            np.testing.assert_array_equal(output, inputs)
            assert 100 < cycles < 250
            assert saturations == 100
        assert read(device, "task") == 1
        image = read(device, "program_base_lo") | read(device, "program_base_hi") << 32
        assert bytes(device.memory[image - device.base :][:200]) == made.image


def test_run_reports_errors_and_recovers():
    with SimulatedDevice(CONFIG, top=Copier) as device:
        made, inputs = program(100), np.arange(400, dtype=np.int16)
        device.run(made, inputs, "copy", watchdog=100)
        address = read(device, "input_base_lo") | read(device, "input_base_hi") << 32
        device.inject(address, 8, axi.Response.DECERR)
        with pytest.raises(DeviceError, match=r"READ_SLVERR at command 0 \(first\), detail 0x3") as caught:
            device.run(made, inputs, "copy", watchdog=100)
        assert caught.value.code is ErrorCode.READ_SLVERR
        device.clear_faults()
        np.testing.assert_array_equal(device.run(made, inputs, "copy", watchdog=100)[0], inputs)


def test_run_refuses():
    with SimulatedDevice(CONFIG, top=Copier) as device:
        with pytest.raises(ValueError, match="another Config"):
            device.run(program(1, Config()), np.zeros(4, np.int16), "copy")
        with pytest.raises(ValueError, match="the input region must have 8 bytes, not 10"):
            device.run(program(1), np.zeros(5, np.int16), "copy")
        with pytest.raises(KeyError, match="task must be one of other, copy, not 'paint'"):
            device.run(program(1), np.zeros(4, np.int16), "paint")


def test_rules_of_the_bus_are_watched():
    with (
        SimulatedDevice(CONFIG, top=Rude, stalls=0.5) as device,
        pytest.raises(ProtocolError, match="ARVALID was with"),
    ):
        device.step(100)
