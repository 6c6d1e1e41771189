"""cocotb test of hw.storer.Storer: a scratchpad on one side, a stalling writer on the other."""

from collections import deque

import cocotb
from cocotb.triggers import RisingEdge

from patchloom.compiler.machine.commands import Command, Kind
from patchloom.hw.scratchpad import Scratchpad
from patchloom.sim.bench import Rules, Sink, case, cycles, save, stalls, start
from tests.hw.pipelines import command_bits, config_of, joined

CASE = case()
CONFIG, SEED = config_of(CASE), int(CASE["seed"])


async def scratchpad(dut):
    asked = deque([0] * Scratchpad.READ_LATENCY)
    while True:
        dut.read_data.value = joined(CASE["scratchpad"][asked.popleft() % CONFIG.scratchpad_chunks], 16)
        await RisingEdge(dut.clk)
        asked.append(int(dut.read_address.value))


async def store(dut, sink: Sink, address: int, rows: int) -> list[int]:
    chunk_bits = CONFIG.lanes * 16
    beats = rows * chunk_bits // CONFIG.bus_width
    dut.order_command.value = command_bits(Command(kind=Kind.STORE, rows=rows, a_address=address))
    dut.order_start.value = 1
    await cycles(dut, 1)
    dut.order_start.value = 0
    taken = await sink.receive(beats, 100 + 40 * (rows + beats))
    await cycles(dut, 1)
    assert not dut.order_busy.value, "busy after the last beat"
    return taken


@cocotb.test(timeout_time=2, timeout_unit="ms")  # 200 000 cycles
async def commands(dut):
    cocotb.start_soon(scratchpad(dut))
    sink, rules = Sink(dut, "beats", stalls(SEED, 0.4)), Rules.stream(dut, "beats")
    await start(dut, order_start=0)
    beats = []
    for address, rows in CASE["commands"]:
        beats += await store(dut, sink, int(address), int(rows))
    await cycles(dut, 40)
    assert not sink.received, "more beats than asked for"
    rules.check()
    raw = b"".join(beat.to_bytes(CONFIG.beat_bytes, "little") for beat in beats)
    save(bytes=list(raw))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def one_chunk_a_cycle(dut):
    cocotb.start_soon(scratchpad(dut))
    sink = Sink(dut, "beats")
    await start(dut, order_start=0)
    rows = 64
    dut.order_command.value = command_bits(Command(kind=Kind.STORE, rows=rows, a_address=3))
    dut.order_start.value = 1
    await cycles(dut, 1)
    dut.order_start.value = 0
    beats = rows * CONFIG.lanes * 16 // CONFIG.bus_width
    await sink.receive(beats, max(rows, beats) + 10)
