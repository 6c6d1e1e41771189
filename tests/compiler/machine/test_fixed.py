"""Rounding, digits, multipliers; and the tables' errors over every input code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.table_errors import exp2_error, reciprocal_error, rsqrt_error
from patchloom.compiler.machine.fixed import (
    EXP_ONE,
    TABLES,
    digit_limits,
    exp2_negative,
    floor_log2,
    multiplier_of,
    operand_limits,
    reciprocal,
    rsqrt,
    saturate,
    shift_round,
    split_digits,
)


@pytest.mark.parametrize(("width", "bound"), [(16, 6e-4), (8, 0.5 / 127 + 1e-4)])
def test_exp2_of_every_difference(width, bound):
    assert exp2_error(width) < bound


def test_exp2_ends():
    assert exp2_negative(np.array([0]), 16)[0] == EXP_ONE
    assert exp2_negative(np.array([0]), 8)[0] == EXP_ONE >> 8
    assert exp2_negative(np.array([(1 << 32) - 1]), 16)[0] == 0


def test_reciprocal_of_every_mantissa():
    assert reciprocal_error() < 4e-5


def test_rsqrt_of_every_mantissa():
    assert rsqrt_error() < 4e-5


@given(st.integers(1, (1 << 28) - 1))
def test_reciprocal_anywhere(value):
    mantissa, exponent = reciprocal(np.array([value]))
    assert mantissa[0] / 2.0 ** (16 + exponent[0]) * value == pytest.approx(1, abs=4e-5)


@given(st.integers(1, (1 << 56) - 1))
def test_rsqrt_anywhere(value):
    mantissa, exponent = rsqrt(np.array([value]))
    assert mantissa[0] / 2.0 ** (16 + exponent[0]) * np.sqrt(float(value)) == pytest.approx(1, abs=4e-5)


@given(st.integers(1, (1 << 62) - 1))
def test_floor_log2(value):
    assert floor_log2(np.array([value]))[0] == value.bit_length() - 1


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_fit_the_widths_they_state(table):
    assert max(table.base) < 1 << table.base_width
    assert -(1 << (table.slope_width - 1)) <= min(table.slope) <= max(table.slope) < 1 << (table.slope_width - 1)


@given(st.integers(-(1 << 55), 1 << 55), st.integers(0, 55))
def test_shift_round_is_to_nearest_with_ties_up(value, shift):
    expected = value if shift == 0 else (value + (1 << (shift - 1))) >> shift
    assert shift_round(np.array([value]), shift)[0] == expected


def test_saturate():
    assert saturate(np.array([-129, -128, 127, 128]), 8).tolist() == [-128, -128, 127, 127]


@given(st.sampled_from([(8, 1), (8, 2), (16, 1), (8, 3)]), st.data())
def test_digits_add_up(shape, data):
    width, count = shape
    low, high = digit_limits(width, count)
    value = data.draw(st.integers(low, high))
    digits = [int(d[0]) for d in split_digits(np.array([value]), width, count)]
    assert all(-(1 << (width - 1)) <= d < 1 << (width - 1) for d in digits)
    assert sum(d << (width * i) for i, d in enumerate(digits)) == value


def test_operands_of_16_bits_are_two_signed_bytes():
    assert operand_limits(8) == (-128, 127)
    assert operand_limits(16) == (-32768, 127 * 257)


@given(st.floats(2.0**-39, 65535))
def test_multiplier_keeps_sixteen_bits(factor):
    multiplier, shift = multiplier_of(factor)
    assert 0 <= shift <= 55
    assert 1 << 15 <= multiplier < 1 << 16
    assert multiplier / 2.0**shift == pytest.approx(factor, rel=2.0**-16)


def test_multiplier_of_nothing_and_of_little():
    assert multiplier_of(0) == (0, 0)
    multiplier, shift = multiplier_of(2.0**-54)
    assert multiplier / 2.0**shift == 2.0**-54


@pytest.mark.parametrize("factor", [-1.0, 65536.0, 2.0**-60])
def test_multiplier_out_of_range(factor):
    with pytest.raises(ValueError, match="scale factor must lie in"):
        multiplier_of(factor)
