"""cocotb test of hw.datapath.Datapath: it plays sequencer, loader and queues, each as late or early as it may be.

Run by test_datapath.
"""

import random
from collections import deque
from collections.abc import Iterator

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from patchloom.compiler.machine.commands import Command, Kind, Residual, Stationary
from patchloom.compiler.machine.fixed import split_digits
from patchloom.compiler.machine.layout import parameter_words
from patchloom.compiler.machine.program import Program, Task
from patchloom.hw.bundles import parameters_at_once, queue_entry
from patchloom.hw.command import beat_layout
from patchloom.hw.datapath import Datapath
from patchloom.hw.scratchpad import Scratchpad
from patchloom.hw.serialiser import Serialiser
from patchloom.sim.bench import case, cycles, pack, save, start
from patchloom.sim.interpret import Entry, State, execute, stationary
from tests.hw.pipelines import command_bits, config_of, joined, parted

CASE = case()
CONFIG, RNG = config_of(CASE), random.Random(int(CASE["seed"]))
AT_ONCE, LANES = parameters_at_once(CONFIG), CONFIG.lanes
Beat = dict[str, int]


def beats(c: Command, rows: int) -> Iterator[Beat]:
    """All beats of a MATMUL, in the sequencer's order."""
    streamed = 2 if c.a_wide and CONFIG.activation_width == 8 else 1
    slices, groups = -(-c.depth // CONFIG.inputs), -(-c.columns // CONFIG.outputs)
    for group in range(groups):
        for piece in range(slices):
            for place in range(c.b_digits):
                for digit in range(streamed):
                    first, last = place == digit == 0, (place, digit) == (c.b_digits - 1, streamed - 1)
                    flags = {
                        "slice": piece, "group": group, "digit": digit, "fresh": first,
                        "scale": digit + (place if CONFIG.weight_width == 8 else 0),
                        "first": first and piece == 0, "last": last and piece == slices - 1,
                    }  # fmt: skip
                    for row in range(rows):
                        tile = row == digit == 0
                        channels = row == 0 and flags["last"] and c.b_source == Stationary.MEMORY
                        yield flags | {"valid": 1, "row": row, "tile": tile, "channels": channels}


def loads(c: Command, matrix: np.ndarray) -> list[list[tuple[int, int, int, int]]]:
    """For each tile the writes (by row, index, columns, digits) that make it: row by row, column or columns at once."""
    at_once = CONFIG.columns_at_once if c.b_source == Stationary.MEMORY else 1
    padded = np.zeros((matrix.shape[0] + CONFIG.inputs, matrix.shape[1] + CONFIG.outputs), np.int64)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    planes, by_row = split_digits(padded, CONFIG.weight_width, c.b_digits), int(c.b_source == Stationary.ROWS)
    out = []
    for channel in range(0, c.columns, CONFIG.outputs):
        for feature in range(0, c.depth, CONFIG.inputs):
            for plane in planes:
                tile = plane[feature : feature + CONFIG.inputs, channel : channel + CONFIG.outputs]
                lines, width = tile if by_row else tile.T, CONFIG.weight_width
                out.append([])
                for i in range(0, len(lines), at_once):
                    place = i % CONFIG.columns_at_once
                    digits = joined(lines[i : i + at_once].reshape(-1), width) << place * CONFIG.inputs * width
                    word = joined(lines[i], width) if by_row else digits
                    out[-1].append((by_row, i, ((1 << at_once) - 1) << place, word))
    return out


class Writer:
    """Sets (of tiles or parameters) written one piece at a time, each once the previous one is in use."""

    def __init__(self, sets: list[list], lead: int):
        self.sets, self.lead = sets, lead
        self.written = self.used = 0  # whole sets
        self.place, self.since = 0, lead  # cycles since the last set came to use

    def free(self) -> bool:
        """Whether a set may be begun in this cycle."""
        return self.written == 0 or (self.used == self.written and self.since >= self.lead)

    def piece(self, *, free: bool):
        """What to write in this cycle, or nothing."""
        if self.written == len(self.sets) or not (free or self.place) or RNG.random() < 0.2:
            return None
        piece = self.sets[self.written][self.place]
        self.place += 1
        if self.place == len(self.sets[self.written]):
            self.place, self.written = 0, self.written + 1
        return piece

    def use(self) -> None:
        self.used, self.since = self.used + 1, 0


class Bench:
    def __init__(self, dut, program: Program, region: np.ndarray):
        self.dut, self.program, self.region = dut, program, region
        self.output = np.zeros(program.tasks[0].output_bytes // 2, np.int16)
        self.queues: dict[int, list[Entry]] = {}
        self.entries: list[int] = []  # of the present command's expert
        self.saturations = 0
        execute(program, None, region, self._remember)
        self.task = cocotb.start_soon(self._queues())

    def _remember(self, position: int, command: Command, state: State) -> None:
        self.queues[position] = list(state.queues)

    async def _queues(self) -> None:
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            for name in ("source", "target"):
                row = int(getattr(dut, f"{name}_row").value)
                getattr(dut, f"{name}_entry").value = self.entries[row] if row < len(self.entries) else 0
            self.saturations += int(dut.saturations.value)

    async def run(self) -> None:
        for position, command in enumerate(self.program.tasks[0].commands):
            self.dut.beats_command.value = command_bits(command)
            if command.kind == Kind.LOAD:
                await self.load(command)
            elif command.kind == Kind.TABLE:
                await self.table(command)
            elif command.kind == Kind.STORE:
                await self.store(command)
            elif command.kind == Kind.MATMUL:
                await self.matmul(command, self.queues[position])
        self.task.cancel()

    def memory(self, command: Command) -> np.ndarray:
        spaces = [np.frombuffer(self.program.image, np.int16), self.region, self.output]
        return spaces[command.dma_space][command.dma_address // 2 :][: command.rows * LANES].reshape(-1, LANES)

    async def load(self, c: Command) -> None:
        dut = self.dut
        for i, chunk in enumerate(self.memory(c)):
            dut.write_address.value, dut.write_data.value = c.a_address + i, joined(chunk, 16)
            dut.write_valid.value, dut.write_enable.value = 1, 3
            await cycles(dut, 1)
            dut.write_valid.value = dut.write_enable.value = 0
            await cycles(dut, RNG.choice([0, 0, 1]))
        await cycles(dut, Scratchpad.WRITE_LATENCY)

    async def table(self, c: Command) -> None:
        for index, entry in enumerate(np.frombuffer(self.program.table(c).data, "<u4").tolist()):
            self.dut.table_load.value, self.dut.table_index.value, self.dut.table_entry.value = 1, index, entry
            await cycles(self.dut, 1)
        self.dut.table_load.value = 0

    async def store(self, c: Command) -> None:
        dut, late = self.dut, Scratchpad.READ_LATENCY
        target = self.memory(c)
        dut.external.value = 1
        for i in range(c.rows + late):
            dut.read_address.value = (c.a_address + i) % CONFIG.scratchpad_chunks
            await cycles(dut, 1)
            if i >= late:
                target[i - late] = parted(int(dut.read_data.value), 16, LANES)
        dut.external.value = 0

    async def stationary(self, c: Command) -> np.ndarray:
        """[depth, columns], through the port that the loader uses; `banks` chunks at a time."""
        dut, late = self.dut, Scratchpad.READ_LATENCY
        rows, along = (c.columns, c.depth) if c.b_source == Stationary.COLUMNS else (c.depth, c.columns)
        steps = range(0, along, CONFIG.banks * LANES)
        asked = [c.b_address + row * c.b_stride + step // LANES for row in range(rows) for step in steps]
        got: list[list[int]] = []
        for i in range(len(asked) + late):
            dut.stationary_address.value = asked[min(i, len(asked) - 1)] % CONFIG.scratchpad_chunks
            await cycles(dut, 1)
            if i >= late:
                got.append(parted(int(dut.stationary_data.value), 16, CONFIG.banks * LANES))
        tensor = np.array(got, np.int64).reshape(rows, -1)[:, :along]
        return stationary(CONFIG, c, tensor)

    async def matmul(self, c: Command, queues: list[Entry]) -> None:
        rows = c.rows
        if c.queue:
            entry = queues[c.expert]
            rows = len(entry.token)
            fields = zip(entry.token.tolist(), entry.score.tolist(), entry.first.tolist(), strict=True)
            self.entries = [pack(queue_entry(CONFIG), token=t, score=s, first=f) for t, s, f in fields]
        if not rows:
            return
        words: list[list[tuple[int, int]]] = []
        if c.b_source == Stationary.MEMORY:
            weights = self.program.weights(c)
            matrix, words = weights.matrix, self.words(c)
        else:
            matrix = await self.stationary(c)
        apart = CONFIG.scratchpad_copies == 1 and c.residual != Residual.NONE and not CONFIG.epilogue_lanes
        await self.issue(deque(beats(c, rows)), Writer(loads(c, matrix), 1), Writer(words, 0), 2 if apart else 1)
        await cycles(self.dut, Datapath.latency(CONFIG))

    def words(self, c: Command) -> list[list[tuple[int, int]]]:
        words, out = parameter_words(self.program.weights(c)).tolist(), []
        for channel in range(0, c.columns, CONFIG.outputs):
            group = words[channel : channel + CONFIG.outputs]
            out.append([(i, joined(group[i : i + AT_ONCE], 64)) for i in range(0, CONFIG.outputs, AT_ONCE)])
        return out

    async def issue(self, waiting: deque[Beat], tiles: Writer, words: Writer, apart: int) -> None:
        """A beat a cycle if nothing is in its way; a tile's last write may be in its first beat's cycle.

        Last beats of rows enter at multiples of `apart` cycles, and no more than there is room for behind the array.
        """
        dut, last = self.dut, dict[int, int]()
        queues, behind = bool(CONFIG.epilogue_lanes), 0  # rows that are not taken yet
        free = True  # for a set of parameters
        for cycle in range(100_000):
            there = words.written
            piece, word = tiles.piece(free=tiles.free()), words.piece(free=free if queues else words.free())
            done = words.written > there
            if queues:
                dut.parameters_turn_done.value = int(done)
            dut.tile_load.value, dut.parameters_load.value = piece is not None, word is not None
            if piece is not None:
                dut.tile_by_row.value, dut.tile_index.value, dut.tile_columns.value, dut.tile_data.value = piece
            if word is not None:
                dut.parameters_index.value, dut.parameters_words.value = word
            tiles.since, words.since = tiles.since + 1, words.since + 1
            beat = waiting[0] if waiting else None
            if beat is not None:
                early = cycle - last.get(beat["row"], -100) < Datapath.PERIOD
                lacks = beat["tile"] and tiles.written == tiles.used
                lacks |= beat["channels"] and there == words.used and not queues
                early |= beat["last"] and (cycle % apart != 0 or behind == Serialiser.depth(CONFIG))
                if early or lacks or RNG.random() < 0.2:
                    beat = beat | {"valid": 0}
                else:
                    waiting.popleft()
                    behind += beat["last"] and queues
                    last[beat["row"]] = cycle
                    if beat["tile"]:
                        tiles.use()
                    if beat["channels"]:
                        words.use()
            dut.beats_beat.value = pack(beat_layout(CONFIG), **{k: int(v) for k, v in beat.items()}) if beat else 0
            await cycles(dut, 1)
            if queues:
                behind -= int(dut.taken.value)
                free = bool(dut.parameters_turn_free.value) and not done
            if not waiting and not behind and words.written == len(words.sets):
                break
        dut.beats_beat.value = dut.tile_load.value = dut.parameters_load.value = 0


@cocotb.test(timeout_time=10, timeout_unit="ms")  # 1 000 000 cycles
async def programs(dut):
    await start(dut)
    results = {}
    for number in range(int(CASE["programs"])):
        given = {name: CASE[f"{name}_{number}"] for name in ("commands", "image", "region", "output_bytes")}
        raw = given["commands"].tobytes()
        commands = tuple(Command.decode(raw[i : i + 64]) for i in range(0, len(raw), 64))
        task = Task("", commands, (), (), given["region"].nbytes, int(given["output_bytes"]), 0)
        bench = Bench(dut, Program(CONFIG, "", (task,), given["image"].tobytes()), given["region"])
        await bench.run()
        results |= {f"output_{number}": bench.output, f"saturations_{number}": bench.saturations}
    save(**results)
