"""cocotb test run by test_verilog.py: reads a memory out."""

import cocotb
from cocotb.triggers import RisingEdge

from patchloom.sim.bench import save, start


@cocotb.test(timeout_time=100, timeout_unit="us")
async def recall(dut):
    await start(dut, address=0)
    words = []
    for address in range(257):
        dut.address.value = address % 256
        await RisingEdge(dut.clk)
        words.append(int(dut.data.value))
    save(words=words[1:])
