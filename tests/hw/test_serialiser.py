"""Rows wait, keep their order and leave in passes without a gap; parameters wait for theirs."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from patchloom.compiler.machine.commands import Residual
from patchloom.compiler.machine.config import BIAS_WIDTH, PARAMETER_BITS, Config
from patchloom.compiler.machine.fixed import SHIFT_WIDTH, SUM_WIDTH
from patchloom.hw.bundles import MULTIPLIER_WIDTH, parameters_at_once
from patchloom.hw.epilogue import Epilogue
from patchloom.hw.serialiser import ParameterQueue, Serialiser
from patchloom.sim.bench import run
from tests.hw.pipelines import joined, parted

SIZES = {"inputs": 8, "lanes": 4, "max_rows": 16, "accumulator_width": 24, "scratchpad_copies": 1}
CONFIGS = {
    "2 passes": Config(outputs=8, epilogue_lanes=4, **SIZES),
    "4 passes": Config(outputs=8, epilogue_lanes=2, **SIZES),
    "12 passes": Config(outputs=12, epilogue_lanes=1, **SIZES),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


# --- Sums ---


@dataclass
class Case:
    """Groups of many rows, then of one, as fast as there is room for them; each group waits for its parameters."""

    config: Config
    residual: Residual
    rows: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(0)
        c = self.config
        self.rows = [
            {
                "row": row, "group": group, "channels": row == 0,
                "totals": [self.rng.getrandbits(c.accumulator_width) for _ in range(c.outputs)],
                "row_total": self.rng.getrandbits(SUM_WIDTH),
            }
            for group in range(30) for row in range(16 if group < 3 else 1)
        ]  # fmt: skip


Pass = tuple[int, int, int, int, list[int]]  # row, group, number, sum of the row, sums of its channels


def rtl(case: Case) -> tuple[list[Pass], list[int], list[int], int]:
    """All passes; the cycles in which rows began and were taken; the most rows that waited."""
    config, dut, rng = case.config, Serialiser(case.config), case.rng
    passes: list[Pass] = []
    began, taken = list[int](), list[int]()
    most = 0

    async def process(ctx) -> None:
        nonlocal most
        waiting, behind, there = list(case.rows), 0, 0
        ctx.set(dut.residual, case.residual)
        for cycle in range(2000):
            row = waiting.pop(0) if waiting and behind < Serialiser.depth(config) and rng.random() < 0.9 else {}
            behind += bool(row)
            most = max(most, behind)
            flags = {name: row.get(name, 0) for name in ("row", "group", "channels")}
            ctx.set(dut.beat, {"valid": int(bool(row)), **flags})
            ctx.set(dut.totals, joined(row["totals"], config.accumulator_width) if row else 0)
            ctx.set(dut.row_total, row.get("row_total", 0))
            there = there or rng.random() < 0.06
            ctx.set(dut.there, int(there))
            if ctx.get(dut.swap):
                assert there
                there = 0
            if ctx.get(dut.taken):
                taken.append(cycle)
                behind -= 1
            if ctx.get(dut.pass_.valid):
                number = ctx.get(dut.pass_.number)
                if number == 0:
                    began.append(cycle - Serialiser.LATENCY)
                totals = parted(
                    ctx.get(dut.pass_totals), config.accumulator_width, config.channels_at_once, signed=False
                )
                place = ctx.get(dut.pass_.row), ctx.get(dut.pass_.group), number
                passes.append((*place, ctx.get(dut.pass_row_total), totals))
            await ctx.tick()

    run(dut, process, deadline=2010)
    return passes, began, taken, most


def reference(case: Case) -> list[Pass]:
    n = case.config.channels_at_once
    return [
        (row["row"], row["group"], number, row["row_total"], row["totals"][number * n : number * n + n])
        for row in case.rows
        for number in range(case.config.passes)
    ]


@every_config
@pytest.mark.parametrize("residual", Residual)
def test_rows(config, residual):
    case = Case(config, residual)
    passes, began, taken, most = rtl(case)
    assert passes == reference(case)
    assert most == Serialiser.depth(config)
    assert [end - begin for begin, end in zip(began, taken, strict=True)] == [config.passes - 1] * len(case.rows)
    # The port that reads a row's residual would have to write a row that was taken `lead` cycles before.
    lead = Epilogue.residual_lead(config, residual)
    meets = {begin - lead for begin in began} & set(taken)
    if residual:
        assert not meets
    elif config.passes == 2:
        assert meets
    soonest = min(b - a for a, b in pairwise(began[-27:]))  # the same row, again and again
    assert soonest == max(config.passes, Epilogue.PERIOD)


# --- Parameters ---


PARAMETER_CONFIGS = {
    "1 of 8, 1 a word": Config(inputs=8, outputs=8, lanes=4, bus_width=64, epilogue_lanes=1),
    "2 of 8, 4 a word": Config(inputs=8, outputs=8, lanes=4, bus_width=256, epilogue_lanes=2),
    "1 of 12, 8 a word": Config(inputs=8, outputs=12, lanes=4, bus_width=512, epilogue_lanes=1),
    "1 of 12, 16 a word": Config(inputs=8, outputs=12, lanes=4, bus_width=512, word_beats=2, epilogue_lanes=1),
    "4 of 16, 2 a word": Config(inputs=8, outputs=16, lanes=4, bus_width=128, epilogue_lanes=4),
}


@pytest.mark.parametrize("config", PARAMETER_CONFIGS.values(), ids=PARAMETER_CONFIGS)
def test_parameters(config):
    """Sets are written whenever there is room, and used one after another, each pass its own channels."""
    rng, n, step = random.Random(1), config.channels_at_once, parameters_at_once(config)
    width = BIAS_WIDTH + MULTIPLIER_WIDTH + SHIFT_WIDTH
    sets = [[rng.getrandbits(width) for _ in range(config.outputs)] for _ in range(12)]
    writes = [(number, index) for number in range(len(sets)) for index in range(0, config.outputs, step)]
    dut = ParameterQueue(config)
    got: list[list[int]] = []
    ahead: list[int] = []
    coming = deque([(-1, 0)] * (Serialiser.LATENCY - 1))  # set and pass that will be shown

    async def process(ctx) -> None:
        used, now, written = -1, 0, 0
        fresh = False
        for _ in range(3000):
            number, index = writes[0] if writes else (0, 0)
            # `free` is looked at when a set is begun, a cycle after the one before is done.
            load = bool(writes) and not fresh and (index > 0 or ctx.get(dut.turn.free)) and rng.random() < 0.9
            words = sets[number][index : index + step]
            ctx.set(dut.write.load, int(load))
            ctx.set(dut.write.index, index)
            ctx.set(dut.write.words, joined(words if load else [~x for x in words], PARAMETER_BITS))
            fresh = load and index + step >= config.outputs
            ctx.set(dut.turn.done, int(fresh))
            swap = now == 0 and ctx.get(dut.there) and rng.random() < (0.02 if used < 3 else 0.5)
            assert ctx.get(dut.there) == (written - used - 1 > 0)
            ahead.append(written - used - 1)
            ctx.set(dut.swap, int(swap))
            used += swap
            ctx.set(dut.now, now)
            coming.append((used, now))
            shown = coming.popleft()
            if load:
                writes.pop(0)
                written += fresh
            await ctx.tick()
            fields = [
                parted(ctx.get(value), bits, n, signed=False)
                for value, bits in (
                    (dut.used.bias, BIAS_WIDTH),
                    (dut.used.multiplier, MULTIPLIER_WIDTH),
                    (dut.used.shift, SHIFT_WIDTH),
                )
            ]
            if shown[0] >= 0:
                whole = [
                    joined((b, m), BIAS_WIDTH) | s << (width - SHIFT_WIDTH) for b, m, s in zip(*fields, strict=True)
                ]
                got.append([*shown, *whole])
            now = (now + (used >= 0)) % config.passes

    run(dut, process, deadline=3010)
    assert got[-1][0] == len(sets) - 1
    assert max(ahead) == ParameterQueue.SETS - 1
    for used, now, *values in got:
        assert values == sets[used][now * n : now * n + n]
