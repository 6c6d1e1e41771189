"""cocotb test of hw.router: Router and Queues with a scratchpad, ROUTE after ROUTE. Run by test_router."""

from collections import deque

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from patchloom.compiler.machine.commands import Command
from patchloom.hw.bundles import queue_entry
from patchloom.hw.scratchpad import Scratchpad
from patchloom.sim.bench import case, cycles, save, start, until
from tests.hw.pipelines import command_bits, config_of, joined

CASE = case()
CONFIG = config_of(CASE)
WORST = 2 * CONFIG.max_experts + 3 * CONFIG.max_top_k + 30  # cycles of a row


async def scratchpad(dut):
    asked = deque([0] * Scratchpad.READ_LATENCY)
    while True:
        dut.read_data.value = joined(CASE["scratchpad"][asked.popleft() % CONFIG.scratchpad_chunks], 16)
        await RisingEdge(dut.clk)
        asked.append(int(dut.read_address.value))


async def queues(dut) -> list[tuple[int, ...]]:
    """(expert, token, score, first) of every entry, the same from both ports."""
    width, entries = CONFIG.max_rows.bit_length(), []
    lengths = int(dut.lengths.value)
    for expert in range(CONFIG.max_experts):
        dut.expert.value = expert
        for row in range(lengths >> (expert * width) & ((1 << width) - 1)):
            dut.source_row.value = dut.target_row.value = row
            await cycles(dut, 2)
            assert dut.source_entry.value == dut.target_entry.value
            entry = queue_entry(CONFIG).from_bits(int(dut.source_entry.value))
            entries.append((expert, entry.token, entry.score, entry.first))
    return entries


@cocotb.test(timeout_time=4, timeout_unit="ms")  # 400 000 cycles
async def commands(dut):
    cocotb.start_soon(scratchpad(dut))
    await start(dut, order_start=0)
    results, raw = [], CASE["commands"].tobytes()
    for i in range(0, len(raw), 64):
        command = Command.decode(raw[i : i + 64])
        dut.order_command.value = command_bits(command)
        dut.order_start.value = 1
        await cycles(dut, 1)
        dut.order_start.value = 0
        await cycles(dut, 1)
        await until(dut, lambda: not dut.order_busy.value, WORST * command.rows + 50, f"command {i // 64}")
        results += [(i // 64, *entry) for entry in await queues(dut)]
    save(entries=np.array(results))
