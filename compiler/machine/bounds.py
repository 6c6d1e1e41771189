"""What a machine's integers can reach at most, whatever it reads: the compiler proves with it, the verifier checks.

An operand is bounded by the digits that hold it, not by the tensor it comes from: an array whose digits have 16
bits limits nothing to 8.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import EXP_ONE, MEAN_GUARD, Ints, operand_limits, shift_round


def streamed(width: int) -> int:
    """Largest magnitude of a streamed operand of 8 or 16 bits."""
    return -operand_limits(width)[0]


def exponentials(width: int) -> int:
    """Largest exponential as a streamed operand of 8 or 16 bits."""
    return EXP_ONE >> (ELEMENT_WIDTH - width)


def digits(config: Config, bits: int) -> int:
    """Digits of the array's width that a stationary operand of `bits` takes."""
    return -(-bits // config.weight_width)


def stationary_width(config: Config, count: int) -> int:
    """Bits of an operand from the scratchpad that `count` digits hold."""
    return min(ELEMENT_WIDTH, count * config.weight_width)


def sums(largest: int, matrix: NDArray[np.integer[Any]], bias: Ints) -> Ints:
    """Magnitude of each channel's sum, bias included: operands up to `largest`, weights [depth, columns]."""
    magnitudes: Ints = np.abs(matrix.astype(np.int64)).sum(axis=0) * largest + np.abs(bias)
    return magnitudes


def sums_on_chip(largest: int, depth: int, width: int) -> int:
    """The same of every channel whose stationary operand, of `width` bits, comes from the scratchpad."""
    return depth * largest * streamed(width)


def row_sum(largest: int, depth: int) -> int:
    return depth * largest


# Of a row, in units of half an element: an element less its mean then has `ELEMENT_WIDTH + MEAN_GUARD + 1` bits.
LARGEST_MEAN = (1 << (ELEMENT_WIDTH - 1 + MEAN_GUARD)) + 1


def mean(features: int, multiplier: int, shift: int) -> int:
    """Magnitude of a row's mean, from the largest sum that so many elements can have."""
    return int(shift_round(np.array((features << (ELEMENT_WIDTH - 1)) * multiplier), shift))


def signed_bits(magnitude: int) -> int:
    """That hold it with either sign."""
    return magnitude.bit_length() + 1


def least_root_exponent(epsilon: int) -> int:
    """Exponent of the reciprocal root of a row without variance, the smallest of all rows."""
    return (epsilon.bit_length() - 1) >> 1
