"""Integers of one product."""

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.fixed import MEAN_GUARD, operand_limits
from patchloom.compiler.quantise.formats import Format
from patchloom.compiler.quantise.linear import Epilogue, Linear, Operand, normalise_constants, quantise_linear
from tests.compiler.graphs import Builder, quantised


@pytest.mark.parametrize(("bits", "limit"), [(4, 7), (8, 127), (16, operand_limits(16)[1])])
def test_weights_are_symmetric_and_near(bits, limit):
    b = Builder()
    weight, bias = b.weight(24, 32) * b.normal(24, 1), b.normal(24)
    x, word = Format(8, 1 / 32), 2.0**-12
    linear = quantise_linear(Operand(x), weight, bias, bits, Epilogue(word))
    assert np.abs(linear.matrix).max() == limit
    scale = linear.multiplier / 2.0**linear.shift * word / x.scale
    error = np.abs(linear.matrix.T * scale[:, None] - weight)
    assert np.sqrt((error**2).mean() / (weight**2).mean()) < {4: 0.12, 8: 0.01, 16: 1e-4}[bits]
    assert np.all(np.abs(linear.bias * scale * x.scale - bias) < 0.51 * scale * x.scale + 1e-4)


def test_channel_of_zeros_keeps_its_bias():
    weight, bias = np.zeros((2, 8), np.float32), np.array([0.5, 0], np.float32)
    word = 2.0**-12
    linear = quantise_linear(Operand(Format(8, 0.25)), weight, bias, 8, Epilogue(word))
    result = (linear.bias * linear.multiplier) / 2.0**linear.shift * word
    assert result == pytest.approx(bias, rel=1e-3)


def test_a_sum_cannot_leave_the_accumulator():
    weight = np.ones((3, 8192), np.float32)
    linear = quantise_linear(Operand(Format(16, 2.0**-12)), weight, np.ones(3, np.float32), 16, Epilogue(2.0**-8))
    assert bounds.sums(bounds.streamed(16), linear.matrix, linear.bias).max() < 1 << 39
    assert np.abs(linear.matrix).min() > 2000


@pytest.mark.parametrize("features", [1, 3, 32, 192, 768, 1000])
@pytest.mark.parametrize("scale", [1 / 32, 2.0**-12, 0.0123])
def test_normalisation_constants(features, scale):
    """What `sim.interpret` does with them, in floats."""
    got, c = normalise_constants(features, 1e-5, 2.0**-9, scale)
    assert got == scale
    assert c.mean_multiplier / 2.0**c.mean_shift == pytest.approx(2**MEAN_GUARD / features, rel=1e-4)
    factor = c.norm_scale / 65536 / 2.0 ** (16 + c.norm_shift) * 2**16 * 2**16
    assert 32768 < c.norm_scale <= 65536
    # operand = (16ths of x) * norm_scale / 65536 * mantissa / 2**(norm_shift + exponent)
    assert factor / 2**16 == pytest.approx(features / scale / 2**MEAN_GUARD / 2**16, rel=1e-4)
    assert c.epsilon == round(1e-5 * features**2 * 4**9) or c.epsilon == 1


def test_normalisation_may_only_shift_right():
    """A tiny epsilon allows rows of almost no variance: a coarser operand, then none."""
    scale, c = normalise_constants(192, 1e-12, 2.0**-6, 2.0**-13)
    assert scale > 2.0**-13
    assert c.norm_shift + ((c.epsilon.bit_length() - 1) >> 1) >= 0
    with pytest.raises(ValueError, match=r"epsilon 1e-12 is too small for its input's scale of 0\.5"):
        normalise_constants(8192, 1e-12, 0.5, 2.0**-13)
    with pytest.raises(ValueError, match="epsilon 1 is too large for its input's scale of 1e-06"):
        normalise_constants(1024, 1, 1e-6, 2.0**-13)


def test_a_residual_stream_finer_than_epsilon():
    b = Builder()
    x = b.matmul("x", b.input(4, 64), 64)
    x.weight[:] *= 1e-6
    x.bias[:] *= 1e-6
    numbers = quantised(Graph("main", (b.output("y", b.matmul("head", x, 8, epsilon=1e-5)),)), precision="w16a16")
    assert isinstance(numbers.numbers[x], Linear)
