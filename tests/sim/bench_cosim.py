"""cocotb tests run by test_cosim.py; some fail on purpose."""

import cocotb
from cocotb.triggers import RisingEdge

from patchloom.sim.bench import Rules, Sink, Source, case, check_equal, cycles, save, stalls, start, until


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def doubles(dut):
    values = case()["values"].tolist()
    source, sink = Source(dut, "i", stalls(1, 0.5)), Sink(dut, "o", stalls(2, 0.5))
    rules = Rules.stream(dut, "o")
    await start(dut)
    source.queue.extend(values)
    got = await sink.receive(len(values), deadline=5000)
    check_equal(got, [2 * value for value in values], "doubled")
    rules.check()
    assert rules.transfers == len(values)
    save(doubled=got)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def wrong_answer(dut):
    source, sink = Source(dut, "i"), Sink(dut, "o")
    await start(dut)
    await source.send([1, 2, 3], deadline=20)
    check_equal(await sink.receive(3, deadline=20), [2, 5, 6], "doubled")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def deadline(dut):
    sink = Sink(dut, "o")
    await start(dut)
    await sink.receive(1, deadline=50)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def never(dut):
    await start(dut)
    await until(dut, lambda: bool(dut.o_valid.value), 30, "data from nowhere")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def rude_source(dut):
    rules = Rules.stream(dut, "i")
    await start(dut, o_ready=0)
    for number in range(9):
        dut.i_valid.value, dut.i_payload.value = number != 5, number
        await RisingEdge(dut.clk)
    await cycles(dut, 1)
    rules.check()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def hangs(dut):
    await cycles(dut, 0)
    while True:
        pass
