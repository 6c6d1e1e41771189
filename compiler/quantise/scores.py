"""Integers of a softmax and of what is added to its scores, and the proof that what that hides has no weight."""

import math
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, SCORE_FRACTION, exp2_negative, multiplier_of
from patchloom.compiler.node import Floats
from patchloom.compiler.quantise.calibration import Observed
from patchloom.compiler.quantise.formats import Format, log2_format, wide_scale
from patchloom.compiler.quantise.linear import Linear, identity

SOFTMAX_GUARD = 12  # fractional bits, at most, of a softmax-weighted sum beyond the output's
LIMIT = 1 << (ELEMENT_WIDTH - 1)  # magnitude of a score's integer, at most


@dataclass(frozen=True)
class Bias:
    """Scores pass the array once more, by `by`, and `value` is added to them."""

    by: Linear
    value: NDArray[np.int16] = field(repr=False)  # [heads, queries, keys]


@dataclass(frozen=True)
class SoftmaxNumbers:
    """Of scores, and of a sum of values that the exponentials weigh."""

    scores: Format  # in units of log2
    exp_shift: int  # of what the exponentials are of
    score_multiplier: int
    score_shift: int
    width: int  # bits of the exponentials
    multiplier: int
    shift: int
    post_shift: int
    bias: Bias | None = None  # what is added to the scores

    @classmethod
    def of(
        cls, scores: Format, exp_shift: int, step: float, width: int, values: Format, out: Format,
        bias: Bias | None = None,
    ) -> Self:  # fmt: skip
        """`step`: scale of the sums that the scores are, in units of log2."""
        ratio = values.scale / out.scale
        # The word is (sum / 2**exponent <= 2) times a mean of the values.
        post_shift = min(max(EPILOGUE_WIDTH - 1 - values.width - math.ceil(math.log2(ratio)), 0), SOFTMAX_GUARD)
        return cls(
            scores, exp_shift, *multiplier_of(step / scores.scale), width,
            *multiplier_of(ratio * 2**post_shift), post_shift, bias,
        )  # fmt: skip


def quantise_bias(bias: Floats, scores: Observed, biased: Observed, width: int) -> tuple[Bias, int]:
    """Its integers and the shift of the sums to SCORE_FRACTION; `width` are the bits of the exponentials.

    A key is hidden from a query where no two scores of their format are far enough apart to make up for its bias: it
    has the least integer then. The sums are so coarse that the exponential of one with it is always 0.
    """
    bits = math.log2(math.e)
    before = Format(ELEMENT_WIDTH, wide_scale(Observed(scores.low * bits, scores.high * bits), power=True))
    value, far = bias * np.float32(bits), nothing(width)
    hidden = value <= -(2 * LIMIT * before.scale + far)
    lowest = float(value[~hidden].min())
    after, _ = log2_format(biased)
    for fraction in range(round(-math.log2(max(after.scale, before.scale))), -1, -1):
        after = Format(ELEMENT_WIDTH, 2.0**-fraction)
        most = math.ceil(LIMIT * before.scale / after.scale)  # of a score among the sums
        apart = LIMIT - 2 * most  # integers, at least, between the largest sum of a query and one with a hidden key
        if lowest > -LIMIT * after.scale and (not hidden.any() or apart * after.scale >= far):
            by = identity(before, bias.shape[2], before.scale / after.scale)
            return Bias(by, after.round(value).astype(np.int16)), SCORE_FRACTION - fraction
    raise ValueError(f"scores reach {scores.absmax:.3g}, too far for a softmax of 16 bits that adds a bias to them")


def nothing(width: int) -> int:
    """How far below 0, in units of log2, an exponential of so many bits is 0 and stays it."""
    return next(n for n in range(ELEMENT_WIDTH + 1) if exp2_negative(np.array(n << SCORE_FRACTION), width) == 0)
