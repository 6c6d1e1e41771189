"""The native simulation, with a small machine that copies."""

from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import Control, Status
from patchloom.host.device import Region
from patchloom.host.errors import DeadlineError, RegisterError
from patchloom.hw import axi
from patchloom.sim.device import CLOCK_HZ, ProtocolError, SimulatedDevice
from tests.sim.copier import Copier

CONFIG = Config(fifo_beats=64)
WIDE = Config(fifo_beats=32, bus_width=512, inputs=64, outputs=64)
DEADLINE = 100_000


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
        self.data = np.random.default_rng(self.beats).bytes(size)
        self.device.put(self.source.address, self.data)

    def start(self):
        for name, value in (("input_base", self.source.address), ("output_base", self.target.address)):
            self.device.write(f"{name}_lo", value & 0xFFFF_FFFF)
            self.device.write(f"{name}_hi", value >> 32)
        self.device.write("watchdog", self.beats)
        self.device.write("control", Control.START | Control.IRQ_ENABLE)

    def run(self):
        """Copy and compare; returns the cycles."""
        self.start()
        self.device.wait_cycles(DEADLINE)
        self.device.write("irq_status", 3)
        assert self.device.read("status") == Status.DONE
        assert self.device.get(self.target.address, self.target.size) == self.data
        return self.device.read("cycles_lo")


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
        assert device.read("fingerprint") == CONFIG.fingerprint
        with pytest.raises(RegisterError, match=r"read of register 0x800 was answered with SLVERR"):
            device.read_register(0x800)
        with pytest.raises(RegisterError, match=r"write of register 0x0 was answered with SLVERR"):
            device.write("magic", 1)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("response", [axi.Response.SLVERR, axi.Response.DECERR])
def test_injected_errors(response, reads):
    with SimulatedDevice(CONFIG, top=Copier) as device:
        copy = Copy(device, 300)
        at = (copy.source if reads else copy.target).address + 1000
        device.inject(at, 1, response, reads=reads, writes=not reads)
        copy.start()
        device.wait_cycles(DEADLINE)
        assert device.read("status") & Status.ERROR
        assert device.read("error_detail") == response
        device.reset(DEADLINE / CLOCK_HZ)
        assert device.read("status") == 0
        device.clear_faults()
        copy.run()


def test_nothing_beyond_the_memory():
    with SimulatedDevice(CONFIG, top=Copier, memory_bytes=1 << 20) as device:
        copy = Copy(device, 8)
        copy.source = Region(device.base + (1 << 20), 64)
        copy.start()
        device.wait_cycles(DEADLINE)
        assert device.read("error_detail") == axi.Response.DECERR
        with pytest.raises(MemoryError, match="bytes left, not 1048576"):
            device.allocate(1 << 20)


def test_soft_reset_in_the_middle():
    with SimulatedDevice(CONFIG, top=Copier, stalls=0.4, latency=70) as device:
        for moment in range(0, 300, 7):
            copy = Copy(device, 200)
            copy.start()
            device.step(moment)
            device.reset(DEADLINE / CLOCK_HZ)
            assert device.read("status") == 0
            Copy(device, 20).run()


def test_deadline():
    with SimulatedDevice(CONFIG, top=Copier, latency=5000) as device:
        Copy(device, 8).start()
        with pytest.raises(DeadlineError, match=r"no interrupt within 300 cycles; status <Status\.BUSY: 1>, command 0"):
            device.wait_cycles(300)


def test_time_is_cycles():
    with SimulatedDevice(CONFIG, top=Copier, latency=5000) as device:
        begun = device.now()
        device.step(200)
        assert round((device.now() - begun) * CLOCK_HZ) == 200
        Copy(device, 8).start()
        with pytest.raises(DeadlineError, match="no interrupt within 300 cycles"):
            device.wait(300 / CLOCK_HZ)
        device.wait(20_000 / CLOCK_HZ)


def test_memory_is_copied():
    with SimulatedDevice(CONFIG, top=Copier, memory_bytes=1 << 16) as device:
        first, second = device.allocate(5), device.allocate(8)
        device.put(first.address, b"hello")
        device.put(second.address, bytes(range(8)))
        assert device.get(first.address, 5) == b"hello"
        assert device.get(second.address, 8) == bytes(range(8))
        last = device.base + (1 << 16)
        for address, size in ((device.base - 1, 1), (last, 1), (last - 4, 8)):
            with pytest.raises(ValueError, match="memory must be of"):
                device.get(address, size)
            with pytest.raises(ValueError, match="memory must be of"):
                device.put(address, bytes(size))


def test_closed():
    device = SimulatedDevice(CONFIG, top=Copier)
    device.close()
    device.close()
    for access in (lambda: device.read("status"), lambda: device.get(device.base, 1), lambda: device.step(1)):
        with pytest.raises(ValueError, match="the device is closed"):
            access()


def test_trace(tmp_path):
    with SimulatedDevice(CONFIG, top=Copier, trace=tmp_path / "copy.vcd") as device:
        Copy(device, 4).run()
    text = (tmp_path / "copy.vcd").read_text()
    assert "m_axi_araddr" in text
    assert f"b{device.base:064b}" in text
    assert "$timescale 1ns" in text
    with pytest.raises(ValueError, match=r"trace must name a \.vcd or \.fst file, not 'copy\.txt'"):
        SimulatedDevice(CONFIG, top=Copier, trace="copy.txt")


def test_rules_of_the_bus_are_watched():
    with (
        SimulatedDevice(CONFIG, top=Rude, stalls=0.5) as device,
        pytest.raises(ProtocolError, match="ARVALID was with"),
    ):
        device.step(100)
