"""Widths and scales, one rule at a time."""

import math

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.fixed import operand_limits
from patchloom.compiler.nodes import Matmul
from patchloom.compiler.quantise.calibration import Observed
from patchloom.compiler.quantise.formats import log2_format, narrow_scale, wide_scale
from tests.compiler.graphs import Builder, quantised, transformer


def observed(values) -> Observed:
    return Observed(float(np.min(values)), float(np.max(values)), [np.asarray(values, np.float32)])


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


def seen(peaks) -> Observed:
    found = Observed()
    for peak in peaks:
        found.add(np.array([0.3, -peak], np.float32), 2, np.random.default_rng(0))
    return found


def test_sixteen_bits_hold_what_the_samples_have_not_shown():
    def reach(found: Observed) -> float:
        return wide_scale(found, power=False) * operand_limits(16)[1]

    assert reach(seen([10])) == pytest.approx(15)
    assert reach(seen([10] * 25)) == pytest.approx(10)
    assert reach(seen([1, 10])) == pytest.approx(15)
    few, many = ([10 + 0.3 * math.sin(i) for i in range(count)] for count in (10, 1000))
    assert 11 < reach(seen(few)) < 12
    assert reach(seen(many)) == pytest.approx(10.3, rel=1e-4)
    assert wide_scale(seen([10] * 25), power=True) == 2**-11  # reaches 15.9, and 16 with 1.5
    assert reach(Observed.of_all([seen([10] * 25), seen(few)])) == reach(seen(few))


def test_less_than_one_of_a_thousand_maxima_is_larger():
    rng = np.random.default_rng(0)
    beyond = [(rng.gumbel(10, 1, 10) > seen(rng.gumbel(10, 1, 16)).reach).mean() for _ in range(2000)]
    assert 1e-5 < np.mean(beyond) < 1e-3


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


def test_scores_in_units_of_log2():
    form, shift = log2_format(observed([-3.0, 3.0]))
    assert (form.fraction, shift) == (12, 0)
    form, shift = log2_format(observed([30.0]))
    assert 30 * math.log2(math.e) < 32767 * form.scale
    assert shift == 12 - form.fraction
    with pytest.raises(ValueError, match="scores reach 1e\\+06, too far for a softmax"):
        log2_format(observed([1e6]))
