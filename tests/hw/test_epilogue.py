"""The epilogue against its meaning in `sim.interpret`: what is written where, gathered, remembered and counted."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Command, Kind, Post, Queue, Residual, RowScale, Stationary
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH, PARAMETER, PARAMETER_BITS, Config
from patchloom.compiler.machine.encoding import parted as parted_fields
from patchloom.compiler.machine.fixed import ROW_ONE, SHIFT_WIDTH, Ints
from patchloom.compiler.machine.tables import ENTRIES, Table
from patchloom.hw.bundles import MULTIPLIER_WIDTH, parameters_at_once, queue_entry
from patchloom.hw.command import beat_layout, pass_layout
from patchloom.hw.epilogue import Epilogue, Parameters
from patchloom.hw.scratchpad import Scratchpad
from patchloom.sim.bench import pack
from patchloom.sim.interpret import Channels, epilogue, residual, row_factor
from tests.hw.pipelines import Inputs, Seen, command_bits, drive, drive_each, joined, parted

CONFIGS = {
    "4 channels": Config(inputs=8, outputs=4, lanes=4, max_rows=16, scratchpad_chunks=512, statistics_rows=64),
    "12 channels": Config(
        inputs=8, outputs=12, lanes=4, max_rows=16, scratchpad_chunks=512, statistics_rows=64, accumulator_width=32
    ),
}
PASSES = {
    "12 channels in 3 passes": Config(
        inputs=8, outputs=12, lanes=4, max_rows=16, scratchpad_chunks=512, statistics_rows=64, epilogue_lanes=4
    ),
}

TABLE = Table.through("walk", abs(np.random.default_rng(5).integers(-1000, 1001, ENTRIES + 1).cumsum()))


@dataclass
class Case:
    """All groups of a command's rows, one row after another for each group, with random gaps."""

    config: Config
    command: Command
    rows: int = 9
    seed: int = 0
    groups: int = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        c, config, n = self.command, self.config, self.config.outputs
        self.groups = -(-c.columns // n)
        self.row, self.group, self.valid = self._order(rng)
        count, reach = len(self.row), config.accumulator_width - 2
        exponent = rng.uniform(4, reach, (count, 1))
        self.totals = np.rint(rng.uniform(-1, 1, (count, n)) * 2.0**exponent).astype(np.int64)
        self.row_total = np.rint(2.0 ** rng.uniform(0, 27.9, count)).astype(np.int64)
        # parameters of each group, such that words come near the limits of the epilogue's 24 bits and beyond
        self.bias = np.rint(rng.uniform(-1, 1, (self.groups, n)) * 2.0 ** rng.uniform(1, 39, (self.groups, n)))
        self.bias = self.bias.astype(np.int64)
        self.multiplier = rng.integers(0, 1 << 16, (self.groups, n))
        self.shift = rng.integers(16, 40, (self.groups, n))
        self.shift[:, ::5] = rng.integers(0, 64, self.shift[:, ::5].shape)
        # what the queue and the scratchpad answer
        self.token = rng.integers(0, config.max_rows, count)
        self.score = rng.integers(0, ROW_ONE + 1, count)
        self.first = rng.integers(0, 2, count)
        self.residual = rng.integers(-(1 << 15), 1 << 15, (count, n)) >> rng.integers(0, 12, (count, 1))

    def _order(self, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        order = []
        for group in range(self.groups):
            for row in range(self.rows):
                order.append((row, group, 1))
                order += [(row, group, 0)] * int(rng.random() < 0.2)
            order += [(0, group, 0)] * max(Epilogue.PERIOD - self.rows, 0)
        row, group, valid = np.array(order).T
        return row, group, valid


Written = tuple[int, int, list[int], list[int], tuple[int, int] | None]
Result = tuple[list[Written], list[int], int]
WRITES = ["write.address", "write.enable", "write.data", "gather", "gather_begin", "gather_row"]
OTHERS = ["elements", "residual.address", "reads", "maximum", "saturations", "target.row"]


def rtl(cases: Sequence[Case]) -> list[Result]:
    """(address, enable, half chunks, elements, gathered (begin, row)) of every beat; the rows' maxima; saturations."""
    settle, config = Epilogue.settle(cases[0].config), cases[0].config
    runs = [(inputs(case), len(case.row) * config.passes + settle + case.rows + 1) for case in cases]
    entries = np.frombuffer(TABLE.data, "<u4").tolist()
    load = {"table.load": [1] * ENTRIES, "table.index": list(range(ENTRIES)), "table.entry": entries}
    _, *seen = drive_each(Epilogue(config), [(load, ENTRIES + 1), *runs], WRITES + OTHERS)
    return [result(case, outputs) for case, outputs in zip(cases, seen, strict=True)]


def inputs(case: Case) -> Inputs:
    config = case.config
    passes, n = config.passes, config.channels_at_once
    entries = zip(case.token, case.score, case.first, strict=True)
    beats = [
        {"valid": v, "row": r, "group": g} | ({"number": k} if passes > 1 else {})
        for r, g, v in zip(case.row, case.group, case.valid, strict=True)
        for k in range(passes)
    ]
    layout = pass_layout(config) if passes > 1 else beat_layout(config)

    def parts(values: Ints, width: int) -> list[int]:
        """What each pass sees of [beats, outputs]."""
        return [joined(part, width) for part in values.reshape(-1, n)]

    residuals = [joined(x, ELEMENT_WIDTH) for x in case.residual]
    others = [~x & ((1 << config.outputs * ELEMENT_WIDTH) - 1) for x in residuals]  # in passes that must not look
    return {
        "command": command_bits(case.command),
        "beat": [pack(layout, **beat) for beat in beats],
        "totals": parts(case.totals, config.accumulator_width),
        "row_total": case.row_total.repeat(passes).tolist(),
        "parameters.bias": parts(case.bias[case.group], BIAS_WIDTH),
        "parameters.multiplier": parts(case.multiplier[case.group], MULTIPLIER_WIDTH),
        "parameters.shift": parts(case.shift[case.group], SHIFT_WIDTH),
        "target.entry": [0]
        + [pack(queue_entry(config), token=t, score=s, first=f) for t, s, f in entries for _ in range(passes)],
        "residual.data": [0] * (Epilogue.residual_latency(config, case.command.residual) + Scratchpad.READ_LATENCY)
        + [x if k == 0 else y for x, y in zip(residuals, others, strict=True) for k in range(passes)],
        "maximum_row": [0] * (len(beats) + Epilogue.settle(config)) + list(range(case.rows)),
    }


def result(case: Case, seen: Seen) -> Result:
    c, late, passes = case.command, Epilogue.LATENCY, case.config.passes
    count, n = len(case.row) * passes, case.config.channels_at_once
    written: list[Written] = []
    for i in np.flatnonzero(case.valid) * passes + passes - 1:  # in the last pass
        address, enable, data, gather, begin, row = (seen[name][i + late] for name in WRITES)
        pieces = parted(data, case.config.lanes * ELEMENT_WIDTH // 2, 2 * case.config.output_chunks, signed=False)
        pieces = [piece if enable >> k & 1 else 0 for k, piece in enumerate(pieces)]
        elements = joined(seen["elements"][i + late - passes + 1 : i + late + 1], n * ELEMENT_WIDTH)
        words = parted(elements, ELEMENT_WIDTH, case.config.outputs)
        written.append((address, enable, pieces, words, (begin, row) if gather else None))
    last = np.arange(count) % passes == passes - 1
    idle = np.flatnonzero((case.valid.repeat(passes) == 0) | ~last) + late
    assert not any(seen["write.enable"][i] or seen["gather"][i] for i in idle)
    assert seen["target.row"][:count] == case.row.repeat(passes).tolist()
    at = Epilogue.residual_latency(case.config, c.residual)
    if c.residual:
        assert seen["residual.address"][at : count + at : passes] == residual_addresses(case)
    begins = case.valid.repeat(passes) * (np.arange(count) % passes == 0) * (c.residual != Residual.NONE)
    assert seen["reads"][at : count + at] == begins.tolist()
    asked = count + Epilogue.settle(case.config) + 1
    return written, seen["maximum"][asked:][: case.rows] if c.row_maximum else [], sum(seen["saturations"])


def output_rows(case: Case) -> Ints:
    return case.token if case.command.queue == Queue.SCATTER else case.row


def residual_addresses(case: Case) -> list[int]:
    c, rows = case.command, output_rows(case)
    own, other = c.places("o", rows), c.places("r", rows)
    again = c.chains & (case.first == 0)
    at = np.where(again, own, other) + case.group * case.config.output_chunks
    return (at % case.config.scratchpad_chunks).tolist()


def reference(case: Case) -> Result:
    c, config, n = case.command, case.config, case.config.outputs
    inside = (case.group[:, None] * n + np.arange(n) < c.columns) & (case.valid[:, None] == 1)
    y, saturated = values(case)
    out = np.where(inside, y, 0)
    written: list[Written] = []
    for i in np.flatnonzero(case.valid):
        gathered = (int(case.group[i] == 0), c.o_statistics + int(output_rows(case)[i])) if c.statistics else None
        row = int(c.places("o", output_rows(case))[i])
        half, pieces = halves(case, int(case.group[i]), out[i], int(inside[i].sum()))
        window = [pieces.get(2 * (half // 2) + k, 0) for k in range(2 * config.output_chunks)]
        enable = sum(1 << k - 2 * (half // 2) for k in pieces)
        written.append(((row + half // 2) % config.scratchpad_chunks, enable, window, out[i].tolist(), gathered))
    lowest = np.where(inside, out, -(1 << 15)).max(axis=1)
    maxima = [int(lowest[(case.row == row) & (case.valid == 1)].max()) for row in range(case.rows)]
    return written, maxima if c.row_maximum else [], int(saturated[inside].sum())


def halves(case: Case, group: int, elements: Ints, inside: int) -> tuple[int, dict[int, int]]:
    """The first half chunk of its row that a beat writes, and what it writes to each."""
    lanes, count, packed = case.config.lanes, case.config.output_chunks, case.command.o_packed
    first = group * count if packed else 2 * group * count
    size, bits = (lanes, 8) if packed else (lanes // 2, ELEMENT_WIDTH)
    written = -(-inside // lanes) * (1 if packed else 2)
    parts = elements.reshape(-1, size)[:written]
    return first, {first + k: joined(part, bits) for k, part in enumerate(parts)}


def values(case: Case) -> tuple[Ints, Ints]:
    """Results of all beats, and how often each saturated."""
    c, first = case.command, case.first == 1
    by = Channels(case.bias[case.group], case.multiplier[case.group], case.shift[case.group])
    if c.b_source != Stationary.MEMORY:
        by = Channels(np.int64(0), np.int64(c.multiplier), np.int64(c.shift))
    added = residual(c, case.residual, case.residual, first)
    return epilogue(c, case.totals, by, row_factor(c, case.row_total, case.score), added, TABLE)


def command(**fields: int) -> Command:
    base = {"kind": Kind.MATMUL, "depth": 8, "columns": 21, "o_address": 100, "o_stride": 7, "post_shift": 8}
    return Command(**(base | fields))


def check(cases: Sequence[Case]) -> None:
    for got, case in zip(rtl(cases), cases, strict=True):
        assert got == reference(case), case.command


every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
with_passes = pytest.mark.parametrize("config", (CONFIGS | PASSES).values(), ids=CONFIGS | PASSES)


@every_config
def test_requantise(config):
    shifts = ((0, 8, 20), (1, 0, 0), (1, 3, 35), (0, 31, 63))  # o_wide, post_shift, shift
    check(
        [
            Case(
                config,
                command(b_source=b, post=post, o_wide=wide, post_shift=late, multiplier=40000, shift=shift),
                seed=shift,
            )
            for b, post in itertools.product((Stationary.MEMORY, Stationary.COLUMNS), Post)
            for wide, late, shift in shifts
        ]
    )


@every_config
def test_residual(config):
    places = {"r_address": 200, "r_stride": 9, "statistics": 1, "o_statistics": 17}
    check(
        [
            Case(config, command(residual=residual, queue=queue, row_scale=scale, o_wide=wide, **places), seed=wide)
            for residual, queue in itertools.product(Residual, Queue)
            for scale, wide in itertools.product((RowScale.NONE, RowScale.GATE), (0, 1))
            # A factor would be two, and chains are of tokens that are scattered.
            if not (residual == Residual.MULTIPLY and scale)
            and (queue == Queue.SCATTER or residual not in (Residual.CHAIN, Residual.CHAIN_ZERO))
        ]
    )


@with_passes
def test_lines(config):
    """Rows of rectangles: of both tensors that are addressed, and of either one alone."""
    places = {"r_address": 200, "r_stride": 9, "r_outer": 40, "o_outer": 31}
    check(
        [
            Case(config, command(line=line, columns=columns, **(places | fields)), rows, seed=line)
            for rows, line in ((12, 1), (12, 3), (12, 12), (16, 4), (1, 1))
            for columns in (12, 21)
            for fields in (
                {"residual": Residual.ADD},
                {"residual": Residual.MULTIPLY, "r_stride": 0},
                {"o_stride": 1, "o_outer": 5, "residual": Residual.ADD, "r_outer": 0},
            )
        ]
    )


@every_config
def test_softmax(config):
    fields = {"row_scale": RowScale.SOFTMAX, "b_source": Stationary.ROWS, "multiplier": 40000, "o_wide": 1}
    check(
        [
            Case(config, command(shift=shift, post_shift=late, **fields), seed=shift)
            for shift, late in ((0, 0), (10, 8), (40, 12), (62, 0))
        ]
    )


@with_passes
def test_groups(config):
    """Channels beyond the tensor's, statistics and maxima over groups, rows that come again at the least distance."""
    fields = {"statistics": 1, "o_statistics": 40, "row_maximum": 1, "o_address": 500}
    check(
        [
            Case(config, command(columns=columns, o_wide=columns % 2, **fields), rows, seed=columns)
            for rows, columns in itertools.product((1, 4, 16), (1, 4, 5, 12, 13, 24))
        ]
    )


@with_passes
def test_packed(config):
    """Half chunks of a group of channels, in the order of the elements; what is gathered is not packed."""
    fields = {"statistics": 1, "o_statistics": 40, "row_maximum": 1, "o_packed": 1, "r_address": 200, "r_stride": 9}
    check(
        [
            Case(config, command(columns=columns, residual=residual, **fields), rows, seed=columns)
            for rows, columns in itertools.product((4, 16), (1, 4, 5, 8, 12, 13, 24, 37))
            for residual in (Residual.NONE, Residual.ADD, Residual.MULTIPLY)
        ]
    )


# --- Parameters ---


@dataclass
class ParameterCase:
    """Sets of words, each put to use while the next one is written."""

    config: Config
    sets: Ints = field(init=False)  # [sets, outputs] of 64 bits

    def __post_init__(self) -> None:
        self.sets = np.random.default_rng(4).integers(0, 1 << 62, (5, self.config.outputs))


def parameters_rtl(case: ParameterCase) -> list[tuple[list[int], list[int], list[int]]]:
    n, step = case.config.outputs, parameters_at_once(case.config)
    inputs: dict[str, list[int]] = {name: [] for name in ("write.load", "write.index", "write.words", "swap")}
    ends = []
    for words in case.sets:
        for index in range(0, n, step):
            for load in (1, 0):  # what stands at the port without `load` is not taken
                at = words[index : index + step] if load else words[:1] ^ 0x5A5A
                values = (load, index, joined(at, PARAMETER_BITS), 0)
                for series, value in zip(inputs.values(), values, strict=True):
                    series.append(value)
        inputs["swap"][-1] = 1
        ends.append(len(inputs["swap"]))
    widths = {"used.bias": BIAS_WIDTH, "used.multiplier": MULTIPLIER_WIDTH, "used.shift": SHIFT_WIDTH}
    seen = drive(Parameters(case.config), inputs, list(widths), ends[-1] + 1)
    return [tuple(parted(seen[k][end], w, n, signed=k == "used.bias") for k, w in widths.items()) for end in ends]


def parameters_reference(case: ParameterCase) -> list[tuple[list[int], list[int], list[int]]]:
    fields = parted_fields(PARAMETER, case.sets)
    shift = fields["shift"] & ((1 << SHIFT_WIDTH) - 1)
    return list(zip(fields["bias"].tolist(), fields["multiplier"].tolist(), shift.tolist(), strict=True))


@pytest.mark.parametrize("outputs", [4, 12])
@pytest.mark.parametrize("bus_width", [32, 64, 128, 512])
def test_parameters(outputs, bus_width):
    case = ParameterCase(Config(inputs=4 * bus_width // 32, outputs=outputs, lanes=4, bus_width=bus_width))
    assert parameters_rtl(case) == parameters_reference(case)
