"""Formats, scales and constants, one rule at a time; what they give together is in test_schedule."""

import math

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.fixed import MEAN_GUARD, operand_limits
from patchloom.compiler.nodes import Matmul
from patchloom.compiler.quantise import (
    AttentionNumbers,
    Format,
    Linear,
    MoeNumbers,
    Observed,
    Operand,
    Precision,
    QuantiseError,
    log2_format,
    narrow_scale,
    normalise_constants,
    quantise,
    quantise_linear,
    wide_scale,
)
from tests.compiler.graphs import Builder, samples, transformer


def observed(values) -> Observed:
    return Observed(float(np.abs(values).max()), [np.asarray(values, np.float32)])


def quantised(*graphs: Graph, precision: str = "w8a8", **overrides: str):
    return quantise(list(graphs), samples(graphs[0], 4), Precision.parse(precision, overrides))


# --- Precision ---


def test_precision():
    precision = Precision.parse("w8a16", {"head*": "w16a16", "*.1": "w4a8"})
    assert (precision.of("x"), precision.of("head.0"), precision.of("head.1")) == ((8, 16), (16, 16), (4, 8))
    assert str(precision) == "w8a16, head*: w16a16, *.1: w4a8"


@pytest.mark.parametrize("text", ["", "w8", "w8a4", "w2a8", "W8A8", "w8a8 "])
def test_precision_refused(text):
    with pytest.raises(QuantiseError, match="precision must be w4, w8 or w16 with a8 or a16"):
        Precision.parse(text)


def test_patterns_that_match_nothing():
    with pytest.raises(QuantiseError, match=r"precision override 'haed', 'x\*' matches no layer; layers are embed, "):
        quantised(transformer(layers=1), haed="w16a16", **{"x*": "w8a8", "head": "w8a8"})


# --- Calibration ---


@pytest.mark.parametrize(("calibration", "text"), [
    ({}, "calibration must have samples of x, not of "),
    ({"x": np.zeros((2, 20, 24)), "y": np.zeros(2)}, "calibration must have samples of x, not of x, y"),
    ({"x": np.zeros((2, 20, 23))}, r"calibration samples of .* \(samples, 20, 24\), not \(2, 20, 23\)"),
    ({"x": np.zeros((0, 20, 24))}, r"calibration samples of .* \(samples, 20, 24\), not \(0, 20, 24\)"),
    ({"x": np.full((1, 20, 24), np.nan)}, "calibration: output of 'x' is not finite"),
])  # fmt: skip
def test_calibration_refused(calibration, text):
    with pytest.raises(QuantiseError, match=text):
        quantise([transformer(layers=1)], calibration, Precision.parse("w8a8"))


def test_progress_counts_samples_and_layers():
    told = []
    graph = transformer(layers=1)
    quantise([graph], samples(graph, 3), Precision.parse("w8a8"), lambda *args: told.append(args))
    assert [t for t in told if t[0] == "calibrate"] == [("calibrate", i, 3) for i in range(4)]
    assert told[-1] == ("quantise", 7, 7)


# --- Formats ---


def test_widths_follow_the_readers():
    graph = transformer(layers=2, experts=2)
    numbers = quantised(graph, **{"layer0.fc2": "w8a16"})
    widths = {node.name: form.width for node, form in numbers.formats.items()}
    for name in ("embed", "layer0.proj", "layer0.fc2", "layer1.moe", "position", "head"):
        assert widths[name] == 16, name  # residual stream, output
    assert widths["layer0.fc1"] == 16  # its reader asks for it
    for name in ("x", "layer0.qkv", "layer0.attention"):
        assert widths[name] == 8, name


def test_a_residual_chain_has_one_scale():
    numbers = quantised(transformer(layers=2))
    scales = {node.name: form.scale for node, form in numbers.formats.items()}
    chain = ("embed", "position", "layer0.proj", "layer0.fc2", "layer1.proj", "layer1.fc2")
    assert len({scales[name] for name in chain}) == 1


def test_what_shifts_has_powers_of_two():
    numbers = quantised(transformer(layers=1))
    scales = {node.name: form.scale for node, form in numbers.formats.items()}
    for name in ("x", "layer0.fc1", "head"):
        assert math.frexp(scales[name])[0] == 0.5, name


def test_tasks_agree_on_shared_layers():
    graphs = [transformer(layers=1), transformer(layers=1)]
    numbers = quantised(*graphs)
    for a, b in zip(graphs[0].nodes(), graphs[1].nodes(), strict=True):
        assert numbers.formats.get(a) == numbers.formats.get(b)
        if isinstance(a, Matmul):
            assert numbers.numbers[a] is numbers.numbers[b]


def test_sixteen_bits_keep_headroom():
    assert 32767 / 2 < 10 / wide_scale(10) < 32767 / 1.4


def test_eight_bits_clip_outliers():
    values = np.random.default_rng(0).laplace(size=20000)
    full, scale = np.abs(values).max() / 127, narrow_scale(observed(values), power=False)

    def error(step):
        return np.square(np.clip(np.rint(values / step), -128, 127) * step - values).mean()

    assert scale < full
    assert error(scale) < error(full)
    assert math.frexp(narrow_scale(observed(values), power=True))[0] == 0.5


def test_nothing_but_zeros():
    b = Builder()
    dead = b.matmul("dead", b.input(4, 16), 16, activation="relu")
    dead.weight[:], dead.bias[:] = 0, -1
    numbers = quantised(Graph("main", (b.output("y", b.matmul("head", dead, 8, epsilon=1e-6)),)))
    assert numbers.formats[dead].scale > 0


# --- Integers ---


@pytest.mark.parametrize(("bits", "limit"), [(4, 7), (8, 127), (16, operand_limits(16)[1])])
def test_weights_are_symmetric_and_near(bits, limit):
    b = Builder()
    weight, bias = b.weight(24, 32) * b.normal(24, 1), b.normal(24)
    x, word = Format(8, 1 / 32), 2.0**-12
    linear = quantise_linear(Operand(x), weight, bias, bits, "none", word, 0)
    assert np.abs(linear.matrix).max() == limit
    scale = linear.multiplier / 2.0**linear.shift * word / x.scale
    error = np.abs(linear.matrix.T * scale[:, None] - weight)
    assert np.sqrt((error**2).mean() / (weight**2).mean()) < {4: 0.12, 8: 0.01, 16: 1e-4}[bits]
    assert np.all(np.abs(linear.bias * scale * x.scale - bias) < 0.51 * scale * x.scale + 1e-4)


def test_channel_of_zeros_keeps_its_bias():
    weight, bias = np.zeros((2, 8), np.float32), np.array([0.5, 0], np.float32)
    word = 2.0**-12
    linear = quantise_linear(Operand(Format(8, 0.25)), weight, bias, 8, "none", word, 0)
    result = (linear.bias * linear.multiplier) / 2.0**linear.shift * word
    assert result == pytest.approx(bias, rel=1e-3)


def test_a_sum_cannot_leave_the_accumulator():
    weight = np.ones((3, 8192), np.float32)
    linear = quantise_linear(Operand(Format(16, 2.0**-12)), weight, np.ones(3, np.float32), 16, "none", 2.0**-8, 0)
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


def test_scores_in_units_of_log2():
    form, shift = log2_format(observed([-3.0, 3.0]))
    assert (form.fraction, shift) == (12, 0)
    form, shift = log2_format(observed([30.0]))
    assert 30 * math.log2(math.e) < 32767 * form.scale
    assert shift == 12 - form.fraction
    with pytest.raises(ValueError, match="scores reach 1e\\+06, too far for a softmax"):
        log2_format(observed([1e6]))


def test_errors_name_the_node():
    b = Builder()
    graph = Graph("main", (b.output("y", b.moe("mix", b.matmul("x", b.input(4, 16), 16), 3, 8)),))
    moe = graph.outputs[0].x
    moe.gate_weight[:] *= 1e7
    with pytest.raises(QuantiseError, match="moe 'mix': scores reach"):
        quantised(graph)


def test_the_gate_keeps_sixteen_bits():
    graph = transformer(layers=2, experts=3)
    numbers = quantised(graph, precision="w4a8")
    [moe] = [n for n in numbers.numbers.values() if isinstance(n, MoeNumbers)]
    assert (moe.gate.bits, moe.gate.operand.format.width, moe.logits.width) == (16, 16, 16)
    assert all((e.first.bits, e.second.bits) == (4, 4) for e in moe.experts)
    assert all(n.width == 8 for n in numbers.numbers.values() if isinstance(n, AttentionNumbers))


def test_busy_experts_come_first_and_certain_ones_are_expected():
    b = Builder()
    moe = b.moe("moe", b.matmul("embed", b.input(12, 20), 24), experts=4, hidden=8, top_k=2)
    moe.gate_bias[:] = 0, 40, -1000, 80  # every token: expert 3, then 1
    [numbers] = [
        n for n in quantised(Graph("main", (b.output("y", moe),))).numbers.values() if isinstance(n, MoeNumbers)
    ]
    assert [(e.number, e.expected) for e in numbers.experts] == [(1, True), (3, True), (0, False), (2, False)]
    biases = numbers.gate.bias * 1.0
    assert biases[1] > biases[0] > biases[2] > biases[3]
