"""The multiplier array against integer products: tiles exchanged while running, sums over tiles and digits."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import Ints
from patchloom.hw.array import Accumulators, Multipliers, Tile, sum_width
from patchloom.hw.command import beat_layout
from patchloom.sim.bench import pack
from tests.hw.pipelines import drive, joined, parted

CONFIGS = {
    "8 x 4": Config(inputs=8, outputs=4, lanes=4, max_rows=16),
    "4 x 12": Config(inputs=4, outputs=12, lanes=4, max_rows=16, bus_width=32),
    "4 x 12, 4 columns at once": Config(inputs=4, outputs=12, lanes=4, max_rows=16, bus_width=32, word_beats=4),
    "12 x 4, 16 bits": Config(
        inputs=12, outputs=4, lanes=4, max_rows=16, bus_width=64, weight_width=16, activation_width=16
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


# --- Tile ---


@dataclass
class TileCase:
    """Random loads of rows and columns, and swaps, in every cycle."""

    config: Config
    # load, by row, index, columns, digits, swap
    steps: list[tuple[int, int, int, Ints, Ints, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        c, half = self.config, 1 << (self.config.weight_width - 1)
        for _ in range(600):
            by_row = int(rng.integers(2))
            index = int(rng.integers(c.inputs if by_row else c.outputs))
            digits = rng.integers(-half, half, max(c.columns_at_once * c.inputs, c.outputs))
            columns = rng.integers(2, size=c.columns_at_once)
            self.steps.append((int(rng.random() < 0.8), by_row, index, columns, digits, int(rng.random() < 0.3)))


def tile_rtl(case: TileCase) -> list[list[int]]:
    c = case.config
    inputs = {
        "write.load": [load for load, *_ in case.steps],
        "write.by_row": [by_row for _, by_row, *_ in case.steps],
        "write.index": [index for _, _, index, *_ in case.steps],
        "write.columns": [joined(columns, 1) for _, _, _, columns, *_ in case.steps],
        "write.data": [joined(digits, c.weight_width) for *_, digits, _ in case.steps],
        # In the cycle in which the write of the same step is not yet there.
        "swap": [0] * (Tile.WRITE_LATENCY - 1) + [swap for *_, swap in case.steps],
    }
    seen = drive(Tile(c), inputs, ["weights"], len(case.steps) + Tile.WRITE_LATENCY)
    return [parted(word, c.weight_width, c.inputs * c.outputs) for word in seen["weights"][Tile.WRITE_LATENCY :]]


def tile_reference(case: TileCase) -> list[list[int]]:
    c = case.config
    written, used = np.zeros((2, c.outputs, c.inputs), np.int64)
    out = []
    for load, by_row, index, columns, digits, swap in case.steps:
        if swap:
            used = written.copy()
        if load and by_row:
            written[:, index] = digits[: c.outputs]
        elif load:
            first = index // c.columns_at_once * c.columns_at_once
            for place in np.flatnonzero(columns[: c.outputs - first]):
                written[first + place] = digits[place * c.inputs :][: c.inputs]
        out.append(used.reshape(-1).tolist())
    return out


@every_config
def test_tile(config):
    case = TileCase(config)
    assert tile_rtl(case) == tile_reference(case)


# --- Multipliers ---


@dataclass
class ProductCase:
    config: Config

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        c, count = self.config, 200
        a, w = 1 << (c.activation_width - 1), 1 << (c.weight_width - 1)
        self.digits = rng.integers(-a, a, (count, c.inputs))
        self.weights = rng.integers(-w, w, (count, c.outputs, c.inputs))
        self.digits[0], self.weights[0] = -a, -w  # the largest sum
        self.digits[1], self.weights[1] = -a, w - 1  # the smallest


def product_rtl(case: ProductCase) -> list[list[int]]:
    c = case.config
    inputs = {
        "digits": [joined(row, c.activation_width) for row in case.digits],
        "weights": [joined(tile.reshape(-1), c.weight_width) for tile in case.weights],
    }
    unit, late = Multipliers(c), Multipliers.latency(c)
    seen = drive(unit, inputs, ["sums"], len(case.digits) + late)
    return [parted(word, unit.sum_width, c.outputs) for word in seen["sums"][late:]]


def product_reference(case: ProductCase) -> list[list[int]]:
    return np.einsum("ti,tji->tj", case.digits, case.weights).tolist()


@every_config
def test_multipliers(config):
    case = ProductCase(config)
    assert product_rtl(case) == product_reference(case)


# --- Accumulators ---


@dataclass
class SumCase:
    """Passes over rows as the sequencer makes them: a row comes back after `PERIOD` cycles or more."""

    config: Config
    beats: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(2)
        c = self.config
        width = min(sum_width(c), c.accumulator_width - 16 - 3)  # five passes of up to 16 bits further left
        for rows in (1, 3, Accumulators.PERIOD, 7, c.max_rows):
            for _ in range(3):  # accumulations
                passes = int(rng.integers(1, 6))
                for i in range(passes):
                    flags = {
                        "first": i == 0,
                        "last": i + 1 == passes,
                        "fresh": rng.integers(2),
                        "scale": rng.integers(3),
                    }
                    self.beats += [{"valid": 1, "row": row, **flags} for row in range(rows)]
                    gaps = max(Accumulators.PERIOD - rows, 0) + int(rng.integers(2))
                    self.beats += [{"valid": 0, "row": rng.integers(rows), **flags}] * gaps
        count, half = len(self.beats), 1 << (width - 1)
        self.sums = rng.integers(-half, half, (count, c.outputs))
        self.row_sum = rng.integers(0, 1 << 20, count)


def sum_rtl(case: SumCase) -> list[tuple[int, list[int], int]]:
    c, unit = case.config, Accumulators(case.config)
    inputs = {
        "beat": [pack(beat_layout(c), **{k: int(v) for k, v in beat.items()}) for beat in case.beats],
        "sums": [joined(row, unit.sum_width) for row in case.sums],
        "row_sum": case.row_sum.tolist(),
    }
    late = Accumulators.LATENCY
    seen = drive(unit, inputs, ["done", "totals", "row_total"], len(case.beats) + late)
    done = [beat_layout(c).from_bits(word) for word in seen["done"][late:]]
    totals = [parted(word, c.accumulator_width, c.outputs) for word in seen["totals"][late:]]
    return [(d.row, t, s) for d, t, s in zip(done, totals, seen["row_total"][late:], strict=True) if d.valid]


def sum_reference(case: SumCase) -> list[tuple[int, list[int], int]]:
    c = case.config
    totals, row_total = np.zeros((c.max_rows, c.outputs), np.int64), np.zeros(c.max_rows, np.int64)
    out = []
    for beat, sums, row_sum in zip(case.beats, case.sums, case.row_sum, strict=True):
        if not beat["valid"]:
            continue
        row = beat["row"]
        totals[row] = totals[row] * (not beat["first"]) + (sums << (8 * int(beat["scale"])))
        row_total[row] = row_total[row] * (not beat["first"]) + row_sum * beat["fresh"]
        if beat["last"]:
            out.append((row, totals[row].tolist(), int(row_total[row])))
    return out


@every_config
def test_accumulators(config):
    case = SumCase(config)
    assert sum_rtl(case) == sum_reference(case)
