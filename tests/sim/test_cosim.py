"""The bench's own pieces: values cross whatever the stalls, and what is wrong is said."""

import re
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from patchloom.hw import cache
from patchloom.sim import bench
from patchloom.sim.cosim import SimulationError, simulate

BENCH = Path(__file__).with_name("bench_cosim.py")


class Doubler(wiring.Component):
    """One register; a value waits in it for the next stage."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(9))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload << 1)]
        return m


def test_values_go_in_and_come_back():
    values = [3, 200, 255, 0] * 20
    result = simulate(Doubler(), BENCH, case={"values": values}, tests="doubles")
    assert result["doubled"].tolist() == [2 * value for value in values]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("wrong_answer", "doubled: item 1 of 3 is 0x4, not 0x5"),
        ("deadline", "o gives 1 payloads: not within 50 cycles"),
        ("never", "data from nowhere: not within 30 cycles"),
        ("rude_source", "cycle 10: i_valid was withdrawn"),
        ("no_such_test", "no test ran|no results"),
    ],
)
def test_failures_say_why(test, message):
    with pytest.raises(SimulationError, match=message):
        simulate(Doubler(), BENCH, tests=test)


def test_wall_clock_deadline():
    with pytest.raises(SimulationError, match="still running after 4 s"):
        simulate(Doubler(), BENCH, tests="hangs", timeout=4)


def test_waves():
    runs = cache.directory("runs")
    before = set(runs.glob("*/dump.vcd"))
    simulate(Doubler(), BENCH, case={"values": [1, 2]}, tests="doubles", waves=True)
    (waves,) = set(runs.glob("bench_cosim-*/dump.vcd")) - before
    assert re.search(r"\$var wire +9 \S+ o_payload", waves.read_text())


def test_in_amaranths_simulator():
    dut, values, got = Doubler(), list(range(50)), []

    async def feed(ctx):
        await bench.send(ctx, dut.i, values, bench.stalls(1))

    async def drain(ctx):
        got.extend(await bench.receive(ctx, dut.o, 50, bench.stalls(2)))

    bench.run(dut, feed, drain, deadline=1000)
    bench.check_equal(got, [2 * value for value in values], "doubled")


def test_amaranths_simulator_has_a_deadline():
    dut = Doubler()

    async def wait(ctx):
        await bench.receive(ctx, dut.o, 1)

    with pytest.raises(AssertionError, match="1 of 1 processes still ran after 20 cycles"):
        bench.run(dut, wait, deadline=20)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_stalls_are_as_frequent_as_asked(probability):
    pattern = bench.stalls(1, probability)
    assert abs(sum(next(pattern) for _ in range(20_000)) / 20_000 - probability) < 0.05
