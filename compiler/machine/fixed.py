"""Fixed-point arithmetic and function tables: the integer meaning that every engine repeats bit for bit.

The only operation that loses bits is to multiply, add half, shift right arithmetically and saturate
(ap_fixed's AP_RND, AP_SAT). exp2, reciprocal and reciprocal square root are tables with linear interpolation;
the integers of the tables are made here, once, and handed to every engine. Activations' are data: see `tables`.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

EPILOGUE_WIDTH = 24  # bits of a requantised sum on its way through activation, row scale and residual
ROW_ONE = 1 << 16  # a row factor of 1.0: softmax reciprocals and gate scores are Q1.16
EXP_ONE = 127 << 8  # exp of 0 as a 16-bit operand; its upper byte is exp of 0 as an 8-bit operand
SCORE_FRACTION = 12  # fractional bits of a score difference, in units of log2, when it is looked up
SUM_WIDTH = 28  # bits of a softmax row sum
VARIANCE_WIDTH = 56  # bits of features**2 * variance
NORMALISED_FEATURES = 4096  # at most: a row's sum then has 28 bits
MAX_SHIFT = 62  # longer shifts give what this one gives
SHIFT_WIDTH = MAX_SHIFT.bit_length()  # bits of a shift
MEAN_GUARD = 1  # fractional bits of a row mean beyond the element's: an 18-bit multiplier takes the difference


def digit_limits(width: int, digits: int) -> tuple[int, int]:
    """Smallest and largest integer that `digits` signed digits of `width` bits can hold."""
    high, low = (1 << (width - 1)) - 1, -(1 << (width - 1))
    base = sum(1 << (width * i) for i in range(digits))
    return low * (1 << (width * (digits - 1))), high * base


def operand_limits(width: int) -> tuple[int, int]:
    """Range of a streamed or stationary operand. 16 bits are two signed bytes on any array, native or not."""
    return digit_limits(8, width // 8)


def split_digits(value: Ints, width: int, digits: int) -> list[Ints]:
    """Signed digits, least significant first: value == sum(digit[i] << (width * i))."""
    out = []
    for _ in range(digits - 1):
        low = ((value + (1 << (width - 1))) & ((1 << width) - 1)) - (1 << (width - 1))
        out.append(low)
        value = (value - low) >> width
    return [*out, value]


def shift_round(value: Ints, shift: Ints | int) -> Ints:
    """Add half and shift right arithmetically: round to nearest, ties up."""
    return (value + ((np.int64(1) << shift) >> 1)) >> shift


def saturate(value: Ints, width: int) -> Ints:
    return np.clip(value, -(1 << (width - 1)), (1 << (width - 1)) - 1)


def multiplier_of(factor: float) -> tuple[int, int]:
    """(multiplier, shift) with factor ~ multiplier / 2**shift and 2**15 <= multiplier < 2**16, shift 0 to 55.

    Raises `ValueError` outside of what 16 bits and that shift express; the factor 0 is multiplier 0.
    """
    if factor == 0:
        return 0, 0
    mantissa, exponent = math.frexp(factor)  # factor = mantissa * 2**exponent, 0.5 <= mantissa < 1
    multiplier, shift = round(mantissa * 65536), 16 - exponent
    if multiplier == 65536:
        multiplier, shift = 32768, shift - 1
    while shift > 55 and multiplier > 1:
        multiplier, shift = (multiplier + 1) >> 1, shift - 1
    if not 0 <= shift <= 55 or factor < 0:
        raise ValueError(f"scale factor must lie in [2**-55, 2**16), not {factor}")
    return multiplier, shift


@dataclass(frozen=True)
class Table:
    """`base[i] + (slope[i] * fraction + half) >> fraction_bits`: linear interpolation between knots."""

    name: str
    base: tuple[int, ...] = field(repr=False)
    slope: tuple[int, ...] = field(repr=False)
    fraction_bits: int
    base_width: int  # unsigned
    slope_width: int  # signed

    def __call__(self, index: Ints, fraction: Ints) -> Ints:
        base, slope = np.array(self.base, np.int64), np.array(self.slope, np.int64)
        return base[index] + shift_round(slope[index] * fraction, self.fraction_bits)


def _table(name: str, knots: list[float], fraction_bits: int) -> Table:
    points = [round(k) for k in knots]
    slope = [b - a for a, b in pairwise(points)]
    return Table(
        name,
        tuple(points[:-1]),
        tuple(slope),
        fraction_bits,
        max(points).bit_length(),
        max(max(slope).bit_length(), max(-s - 1 if s < 0 else s for s in slope).bit_length()) + 1,
    )


EXP2_GUARD = 4
EXP2_TABLE = _table("exp2", [EXP_ONE * 2 ** (EXP2_GUARD - i / 64) for i in range(65)], 6)
RECIPROCAL_TABLE = _table("reciprocal", [ROW_ONE / (1 + i / 128) for i in range(129)], 10)
# indexed by the mantissa's first 8 bits, 64 to 255, for a mantissa of [1, 4); lower entries are never read
RSQRT_TABLE = _table("rsqrt", [ROW_ONE / math.sqrt(max(i, 64) / 64) for i in range(257)], 10)
TABLES = (EXP2_TABLE, RECIPROCAL_TABLE, RSQRT_TABLE)


def exp2_negative(difference: Ints, width: int) -> Ints:
    """`2**(-difference / 2**SCORE_FRACTION)` as an operand of `width` bits, 1.0 being EXP_ONE or its upper byte."""
    whole = np.minimum(difference >> SCORE_FRACTION, 31)
    code = difference & ((1 << SCORE_FRACTION) - 1)
    return shift_round(EXP2_TABLE(code >> 6, code & 63), whole + EXP2_GUARD + 16 - width)


def floor_log2(value: Ints) -> Ints:
    """Exact for 1 <= value < 2**62."""
    out = np.zeros(value.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        large = value >> step > 0
        out += large * step
        value = np.where(large, value >> step, value)
    return out


def reciprocal(value: Ints) -> tuple[Ints, Ints]:
    """(mantissa, exponent) with 1 / value ~ mantissa / 2**(16 + exponent), for 1 <= value < 2**SUM_WIDTH."""
    exponent = floor_log2(value)
    mantissa = (value << (SUM_WIDTH - 1 - exponent)) >> (SUM_WIDTH - 18)  # 18 bits, the first one set
    return RECIPROCAL_TABLE((mantissa >> 10) & 127, mantissa & 1023), exponent


def rsqrt(value: Ints) -> tuple[Ints, Ints]:
    """(mantissa, exponent) with value**-0.5 ~ mantissa / 2**(16 + exponent), for 1 <= value < 2**VARIANCE_WIDTH."""
    exponent = floor_log2(value) >> 1
    mantissa = (value << (VARIANCE_WIDTH - 2 - 2 * exponent)) >> (VARIANCE_WIDTH - 18)
    return RSQRT_TABLE(mantissa >> 10, mantissa & 1023), exponent
