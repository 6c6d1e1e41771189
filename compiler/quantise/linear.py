"""Integers of one product: what its operand is normalised by, weights per output channel, epilogue."""

import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.machine.bounds import least_root_exponent
from patchloom.compiler.machine.commands import FIELDS, Post
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, MEAN_GUARD, ROW_ONE, Ints, multiplier_of, operand_limits
from patchloom.compiler.machine.tables import Table
from patchloom.compiler.node import Floats
from patchloom.compiler.quantise.formats import Demand, Format

WEIGHT_LIMIT = {4: 7, 8: operand_limits(8)[1], 16: operand_limits(16)[1]}
CLIPPING = {4: np.linspace(1, 0.4, 13), 8: np.linspace(1, 0.8, 5), 16: np.ones(1)}  # of a channel's largest weight
EPSILON_WIDTH = FIELDS["epsilon"].width
ROW_FRACTION = ROW_ONE.bit_length() - 1
WORD_ROOM = 1.5  # by which other samples may exceed the largest word that is multiplied by a factor
COARSEST = 64  # times the scale that a normalised operand would have, if its epsilon were larger


@dataclass(frozen=True)
class Normalise:
    """Fields of a command that normalises its operand; see `sim.interpret`."""

    mean_multiplier: int
    mean_shift: int
    norm_scale: int
    norm_shift: int
    epsilon: int


@dataclass(frozen=True)
class Operand:
    """The streamed side of a product. Without `normalise` it is the stored tensor."""

    format: Format
    normalise: Normalise | None = None
    centred: bool = True  # else it is normalised by its root mean square


@dataclass(frozen=True)
class Epilogue:
    """What becomes of a sum: a word of scale `word`, on which `post` works, shifted right to the output's scale."""

    word: float
    post: Post = Post.NONE
    post_shift: int = 0
    table: Table | None = None

    @classmethod
    def of(cls, activation: str, out: Format) -> Self:
        """A table wants a word of its own scale; a 16-bit result is clipped at a limit by the word's saturation."""
        row = ACTIVATIONS[activation]
        if row.fraction is not None:
            return cls(2.0**-row.fraction, row.post, row.fraction - out.fraction, row.table)
        if row.limit is not None and out.width == ELEMENT_WIDTH:
            word = row.limit * 2.0 ** (1 - EPILOGUE_WIDTH)
            return cls(word, row.post, round(math.log2(out.scale / word)))
        return cls(out.scale, row.post)

    @classmethod
    def times(cls, activation: str, out: Format, factor: Format, largest: float) -> Self:
        """A word up to `largest` that is multiplied by a factor, in units of its scale and of 1 / ROW_ONE."""
        unit = factor.scale * ROW_ONE
        finest = largest * WORD_ROOM / 2 ** (EPILOGUE_WIDTH - 1)
        shift = math.floor(math.log2(out.scale / (finest * unit))) if largest else 0
        if shift < 0:
            reach, most = (form.scale * 2 ** (form.width - 1) for form in (out, factor))
            raise ValueError(
                f"reaches {largest:.3g}, and only {reach:.3g} when it is multiplied by a factor of up to {most:.3g}: "
                f"too different for a word of {EPILOGUE_WIDTH} bits"
            )
        shift = min(shift, FIELDS["post_shift"].high)
        return cls(out.scale / (unit * 2.0**shift), ACTIVATIONS[activation].post, shift)


@dataclass(frozen=True, eq=False)
class Linear:
    """One product: operand, integer weights [inputs, outputs], epilogue."""

    operand: Operand
    matrix: NDArray[np.int16] = field(repr=False)
    bits: int  # of a weight
    bias: Ints = field(repr=False)  # the rest as in `layout.Weights`
    multiplier: Ints = field(repr=False)
    shift: Ints = field(repr=False)
    post: Post = Post.NONE
    post_shift: int = 0
    table: Table | None = None

    def block(self, features: Ints, channels: Ints) -> "Linear":
        """Some of the channels, by some of the features: the others' weights are zero."""
        if len(features) == len(self.matrix) and len(channels) == len(self.bias):
            return self
        some = self.columns(channels)
        return replace(some, matrix=some.matrix[features])

    def columns(self, which: Ints) -> "Linear":
        """The product that gives some of the channels."""
        return Linear(
            self.operand, self.matrix[:, which], self.bits, self.bias[which], self.multiplier[which],
            self.shift[which], self.post, self.post_shift, self.table,
        )  # fmt: skip


def identity(stored: Format, features: int, factor: float = 1.0) -> Linear:
    """Passes a stored tensor on as it is, or its integers times a factor."""
    multiplier, shift = multiplier_of(factor)
    return Linear(
        Operand(stored), np.eye(features, dtype=np.int16), 8, np.zeros(features, np.int64),
        np.full(features, multiplier), np.full(features, shift),
    )  # fmt: skip


# --- Normalisation ---


def normalised_demand(features: int, epsilon: float) -> Demand:
    """What is asked of a tensor to be normalised: an epsilon of so few bits bounds its scale."""
    return Demand(ELEMENT_WIDTH, finest=features * math.sqrt(epsilon / 2 ** (EPSILON_WIDTH - 1)))


def normalise_constants(features: int, epsilon: float, x_scale: float, scale: float) -> tuple[float, Normalise]:
    """Constants that yield an operand of `scale`, or of the finest coarser scale that a right shift can reach."""
    added = max(round(epsilon * features**2 / x_scale**2), 1)
    if added >= 1 << EPSILON_WIDTH:
        raise ValueError(f"epsilon {epsilon} is too large for its input's scale of {x_scale}")
    smallest = least_root_exponent(added)
    wanted, scale = scale, max(scale, features * 2.0 ** -(ROW_FRACTION + MEAN_GUARD + smallest))
    if scale > COARSEST * wanted:
        raise ValueError(f"epsilon {epsilon} is too small for its input's scale of {x_scale}")
    mantissa, exponent = math.frexp(features / scale)
    if mantissa == 0.5:
        mantissa, exponent = 1.0, exponent - 1
    return scale, Normalise(
        *multiplier_of(2**MEAN_GUARD / features),
        norm_scale=round(ROW_ONE * mantissa),
        norm_shift=ROW_FRACTION + MEAN_GUARD - exponent,
        epsilon=added,
    )


# --- Weights ---


def quantise_linear(operand: Operand, weight: Floats, bias: Floats, bits: int, epilogue: Epilogue) -> Linear:
    x = operand.format
    scale = np.maximum(_least_error(weight, bits), _least_scale(weight, bias, x, epilogue.word))
    limit = WEIGHT_LIMIT[bits]
    matrix = np.clip(np.rint(weight / scale[:, None]), -limit, limit).astype(np.int16)
    factors = np.array([multiplier_of(float(s)) for s in scale * x.scale / epilogue.word], np.int64)
    integers = np.rint(bias.astype(np.float64) / (scale * x.scale)).astype(np.int64)
    return Linear(
        operand, np.ascontiguousarray(matrix.T), bits, integers, factors[:, 0], factors[:, 1],
        epilogue.post, epilogue.post_shift, epilogue.table,
    )  # fmt: skip


def _least_error(weight: Floats, bits: int) -> NDArray[np.float64]:
    """Scale per output channel with the least mean squared error."""
    limit = WEIGHT_LIMIT[bits]
    full: NDArray[np.float64] = np.abs(weight).max(axis=1).astype(np.float64) / limit
    if len(CLIPPING[bits]) == 1:
        return full
    safe = np.where(full > 0, full, 1).astype(np.float32)
    errors = []
    for part in CLIPPING[bits].astype(np.float32):
        step = (safe * part)[:, None]
        errors.append(np.square(np.clip(np.rint(weight / step), -limit, limit) * step - weight).sum(axis=1))
    best: NDArray[np.float64] = full * CLIPPING[bits][np.argmin(errors, axis=0)]
    return best


def _least_scale(weight: Floats, bias: Floats, x: Format, word: float) -> NDArray[np.float64]:
    """Below it a channel's sum could leave the accumulator, or its multiplier the 16 bits."""
    largest = np.abs(weight).sum(axis=1, dtype=np.float64) * 2 ** (x.width - 1) + np.abs(bias) / x.scale
    least: NDArray[np.float64] = np.maximum(largest / 2 ** (BIAS_WIDTH - 1) * 1.01, word / x.scale * 2.0**-32)
    return least
