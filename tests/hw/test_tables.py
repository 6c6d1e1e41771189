"""Function units against `compiler.machine.fixed`, over every code where that takes seconds."""

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.fixed import (
    EPILOGUE_WIDTH,
    SCORE_FRACTION,
    SUM_WIDTH,
    TABLES,
    VARIANCE_WIDTH,
    Ints,
    Table,
    exp2_negative,
    reciprocal,
    rsqrt,
)
from patchloom.compiler.machine.tables import ENTRIES, ENTRY, FRACTION_BITS, LAST, WITH_TABLE, activate
from patchloom.compiler.machine.tables import Table as Loaded
from patchloom.hw.tables import DIFFERENCE_WIDTH, Activation, Exp2, Interpolator, Reciprocal, Rsqrt
from tests.hw.pipelines import Abreast, drive, sweep

UNITS = Abreast({"exp2": Exp2, "activation": Activation, "reciprocal": Reciprocal, "rsqrt": Rsqrt}, copies=8)
RNG = np.random.default_rng(1)

STEEP = Table("steep", (0, 511, 0, 300, 299), (511, -511, 300, -1, 212), 5, 9, 10)


@pytest.mark.parametrize("table", [*TABLES, STEEP], ids=lambda table: table.name)
def test_interpolator(table):
    index = np.repeat(np.arange(len(table.base)), 6)
    last = (1 << table.fraction_bits) - 1
    fraction = np.tile([0, 1, last // 2, last // 2 + 1, last - 1, last], len(table.base))
    late = Interpolator.LATENCY
    got = drive(
        Interpolator(table), {"index": index.tolist(), "fraction": fraction.tolist()}, ["value"], len(index) + late
    )
    assert got["value"][late:] == table(index, fraction).tolist()


def exp2_codes() -> Ints:
    """Every fraction at every shift, and far beyond."""
    near = np.arange(34 << SCORE_FRACTION)
    far = RNG.integers(34 << SCORE_FRACTION, 1 << DIFFERENCE_WIDTH, 4000)
    edges = [(64 << SCORE_FRACTION) - 1, 64 << SCORE_FRACTION, (1 << DIFFERENCE_WIDTH) - 1]
    return np.concatenate([near, far, edges])


@pytest.mark.parametrize("width", [8, 16])
def test_exp2(width):
    codes = exp2_codes()
    inputs = {"difference": codes, "wide": np.full(len(codes), width == 16)}
    got = sweep(UNITS, "exp2", Exp2.LATENCY, inputs, {"value": Exp2.LATENCY})
    np.testing.assert_array_equal(got["value"], exp2_negative(codes, width))


def words(count: int) -> Ints:
    """Epilogue words: at each entry and around it, at the ends of the range, and random ones."""
    half = 1 << (EPILOGUE_WIDTH - 1)
    entries = np.arange(-ENTRIES - 3, ENTRIES + 4) << FRACTION_BITS
    near = (entries[:, None] + np.arange(-2, 3)).reshape(-1)
    ends = [-half, -half + 1, half - 1, half - 2]
    return np.concatenate([near, ends, RNG.integers(-half, half, count), RNG.integers(-LAST, LAST, count)])


def steep() -> Loaded:
    """The ends of what an entry can hold, and much in between; at last no less than nothing."""
    (_, base), (_, slope) = ENTRY.items()
    steps = [0, *[slope.low] * 31, *[slope.high] * 63, *RNG.integers(slope.low, slope.high + 1, ENTRIES - 95)]
    knots = np.cumsum(steps)
    knots = np.clip(knots, base.low, base.high)
    return Loaded.through("steep", [*knots, max(knots[-1], 0)])


def activation_rtl(post: Post, table: Loaded, codes: Ints) -> Ints:
    """Every copy is loaded first. What is asked of words stands until they have left."""
    count, codes = len(codes), np.append(codes, np.zeros(UNITS.copies * Activation.LATENCY, np.int64))
    entries = np.arange(ENTRIES).repeat(UNITS.copies)
    raw, idle = np.frombuffer(table.data, "<u4").astype(np.int64)[entries], np.zeros(len(codes), np.int64)
    inputs = {
        "table_load": np.append(np.ones_like(entries), idle), "table_index": np.append(entries, idle),
        "table_entry": np.append(raw, idle), "x": np.append(0 * entries, codes),
        "post": np.full(len(entries) + len(codes), post),
    }  # fmt: skip
    late = Activation.LATENCY
    return sweep(UNITS, "activation", late, inputs, {"value": late})["value"][len(entries) :][:count]


@pytest.mark.parametrize("post", Post, ids=lambda post: post.name)
def test_activation(post):
    codes, table = words(20000), steep()
    np.testing.assert_array_equal(activation_rtl(post, table, codes), activate(post, codes, table))


@pytest.mark.parametrize("post", WITH_TABLE, ids=lambda post: post.name)
def test_activation_of_every_code(post):
    codes, table = np.arange(-LAST - 64, LAST + 65), steep()
    np.testing.assert_array_equal(activation_rtl(post, table, codes), activate(post, codes, table))


def positive(width: int) -> Ints:
    """Every mantissa of 18 bits, at the top and at the bottom of the range; all powers of two; random ones."""
    mantissas = np.arange(1 << 17, 1 << 18)
    powers = np.int64(1) << np.arange(width)
    exponents = RNG.integers(0, width, 20000)
    anywhere = (RNG.integers(1 << 62, 1 << 63, 20000, dtype=np.uint64) >> (62 - exponents).astype(np.uint64)).astype(
        np.int64
    )
    parts = [mantissas, mantissas << (width - 18), powers, powers - 1, (powers << 1) - 1, anywhere]
    codes = np.concatenate(parts)
    return codes[(codes > 0) & (codes < 1 << width)]


def test_reciprocal():
    codes = np.concatenate([np.arange(1, 1 << 17), positive(SUM_WIDTH)])
    got = sweep(
        UNITS, "reciprocal", Reciprocal.LATENCY, {"value": codes}, {"mantissa": Reciprocal.LATENCY, "exponent": 1}
    )
    np.testing.assert_array_equal((got["mantissa"], got["exponent"]), reciprocal(codes))


def test_rsqrt():
    # the top mantissa stands for [2, 4), the one below for [1, 2)
    codes = np.concatenate([positive(VARIANCE_WIDTH), np.arange(1 << 17, 1 << 18) << (VARIANCE_WIDTH - 19)])
    late = Rsqrt.LATENCY
    got = sweep(UNITS, "rsqrt", late, {"value": codes}, {"mantissa": late, "exponent": late})
    np.testing.assert_array_equal((got["mantissa"], got["exponent"]), rsqrt(codes))
