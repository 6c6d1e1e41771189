"""cocotb test of hw.loader.Loader: commands one after another, every handshake stalled at random."""

import random
from collections import deque

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from patchloom.compiler.machine.commands import Command, Kind, Stationary
from patchloom.compiler.machine.tables import ENTRIES
from patchloom.hw.scratchpad import Scratchpad
from patchloom.sim.bench import Source, case, cycles, save, stalls, start, until
from tests.hw.pipelines import command_bits, config_of, parted

CASE = case()
CONFIG, SEED = config_of(CASE), int(CASE["seed"])
AT_ONCE = max(1, CONFIG.word_width // 64)  # channels whose parameters come together


class Bench:
    """Plays the datapath: takes tiles and parameters, frees them late, and is a scratchpad."""

    def __init__(self, dut):
        self.dut, self.rng = dut, random.Random(SEED)
        self.weights = Source(dut, "weights", stalls(SEED, 0.4))
        self.scratchpad = CASE["scratchpad"].copy()
        self.tile = np.zeros((CONFIG.outputs, CONFIG.inputs), np.int64)
        self.parameters = np.zeros(CONFIG.outputs, np.int64)
        self.order: list[int] = []  # 0: parameters, 1: tile
        self.tiles: list[np.ndarray] = []
        self.words: list[np.ndarray] = []
        self.tile_pending = False
        self.table: list[int] = []  # entries, as they come
        self.busy_tile = self.busy_parameters = 0  # cycles until they are free again
        self.allowed = False
        self.asked = deque([0] * Scratchpad.READ_LATENCY)
        cocotb.start_soon(self._run())

    async def execute(self, command: Command, stream: bytes) -> None:
        dut, beat = self.dut, CONFIG.word_width // 8
        beats = [int.from_bytes(stream[i : i + beat], "little") for i in range(0, len(stream), beat)]
        self.weights.queue.extend(beats)
        dut.order_command.value = command_bits(command)
        dut.order_start.value = 1
        self.allowed = self.rng.random() < 0.3
        await cycles(dut, 1)
        dut.order_start.value = 0
        waits = command.kind != Kind.MATMUL or command.b_source != Stationary.MEMORY
        for moment in range(20_000):
            self.allowed = self.allowed or moment > 50
            await cycles(dut, 1)
            if not dut.order_busy.value:
                break
            writes = dut.tile_load.value or dut.write_valid.value or dut.table_load.value
            assert self.allowed or not waits or not writes, "the datapath is not there"
        else:
            raise AssertionError(f"{command.kind.name} not done within 20000 cycles")
        await until(dut, lambda: not self.weights.queue, 20, "the whole stream is taken")

    async def _run(self) -> None:
        dut = self.dut
        while True:
            dut.tile_turn_free.value = self.busy_tile == 0
            dut.parameters_turn_free.value = self.busy_parameters == 0
            dut.order_allowed.value = self.allowed
            dut.stationary_ready.value = self.rng.random() < 0.7
            at = (self.asked.popleft() + np.arange(CONFIG.banks)) % CONFIG.scratchpad_chunks
            dut.stationary_data.value = int.from_bytes(self.scratchpad[at].astype("<i2").tobytes(), "little")
            await RisingEdge(dut.clk)
            ready = dut.stationary_ready.value == 1
            self.asked.append(int(dut.stationary_address.value) if ready else self.rng.randrange(len(self.scratchpad)))
            self.busy_tile, self.busy_parameters = max(self.busy_tile - 1, 0), max(self.busy_parameters - 1, 0)
            self._take_tile()
            self._take_parameters()
            if dut.table_load.value:
                assert int(dut.table_index.value) == len(self.table) % ENTRIES
                self.table.append(int(dut.table_entry.value))
            assert int(dut.write_enable.value) == 3 * int(dut.write_valid.value)
            if dut.write_valid.value:
                chunk = parted(int(dut.write_data.value), 16, CONFIG.lanes)
                self.scratchpad[int(dut.write_address.value)] = chunk

    def _take_tile(self) -> None:
        dut = self.dut
        if dut.tile_load.value:
            index, digits = int(dut.tile_index.value), int(dut.tile_data.value)
            if dut.tile_by_row.value:
                self.tile[:, index] = parted(digits, CONFIG.weight_width, CONFIG.outputs)
            else:
                at_once = CONFIG.columns_at_once
                columns = np.reshape(parted(digits, CONFIG.weight_width, at_once * CONFIG.inputs), (at_once, -1))
                for place, written in enumerate(parted(int(dut.tile_columns.value), 1, at_once)):
                    if written and (column := index // at_once * at_once + place) < CONFIG.outputs:
                        self.tile[column] = columns[place]
        if self.tile_pending:  # the last write may come a cycle after `tile_turn.done`
            self.tiles.append(self.tile.copy())
        self.tile_pending = bool(dut.tile_turn_done.value)
        if self.tile_pending:
            assert self.busy_tile == 0, "the tile in use was written"
            self.order.append(1)
            self.busy_tile = self.rng.choice([1, 1, 2, 40])

    def _take_parameters(self) -> None:
        dut = self.dut
        if dut.parameters_load.value:
            assert self.busy_parameters == 0, "parameters in use were written"
            index, words = int(dut.parameters_index.value), parted(int(dut.parameters_words.value), 64, AT_ONCE)
            self.parameters[index : index + AT_ONCE] = words[: CONFIG.outputs - index]
        if dut.parameters_turn_done.value:
            self.words.append(self.parameters.copy())
            self.order.append(0)
            self.busy_parameters = self.rng.choice([1, 2, 30])


@cocotb.test(timeout_time=2, timeout_unit="ms")  # 200 000 cycles
async def commands(dut):
    bench = Bench(dut)
    await start(dut)
    raw, lengths, stream = (CASE[name].tobytes() for name in ("commands", "lengths", "stream"))
    at = 0
    for i, length in enumerate(np.frombuffer(lengths, np.int64)):
        await bench.execute(Command.decode(raw[64 * i : 64 * i + 64]), stream[at : at + length])
        at += length
        await cycles(dut, bench.rng.choice([0, 5]))
    await cycles(dut, 5)
    save(order=bench.order, tiles=bench.tiles, words=bench.words, scratchpad=bench.scratchpad, table=bench.table)
