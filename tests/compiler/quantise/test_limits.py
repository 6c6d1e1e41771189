"""Functions that clip need a row in the table and nothing else: saturation clips for them."""

import numpy as np
import pytest
import torch

from patchloom.compiler.activations import ACTIVATIONS, Activation
from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Post
from patchloom.compiler.node import GraphError, Node
from patchloom.compiler.quantise import QuantiseError
from tests.compiler.graphs import Builder, compiled, quality, quantised

BOUNDS = {"w8a8": 30, "w8a16": 36, "w16a16": 70}  # dB


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """ReLU6, and two of other limits."""
    for limit in (6, 4, 5):
        row = Activation(
            name=f"relu{limit}", function=lambda x, limit=limit: torch.clamp(x, 0, limit), post=Post.RELU, limit=limit
        )
        monkeypatch.setitem(ACTIVATIONS, row.name, row)


def clipped(b: Builder, activation: str = "relu6", gain: float = 8) -> Node:
    """Many of its values are clipped."""
    node = b.matmul(activation, b.input(16, 24), 32, activation=activation)
    node.weight[:] *= gain
    return node


def behind(b: Builder, *nodes: Node) -> Graph:
    return Graph("main", tuple(b.output(f"y{i}", b.matmul(f"head{i}", x, 12)) for i, x in enumerate(nodes)))


@pytest.mark.parametrize("precision", BOUNDS)
def test_saturation_clips(precision):
    b = Builder()
    graph = behind(b, clipped(b))
    assert quality(graph, compiled(graph, precision)) > BOUNDS[precision]


@pytest.mark.parametrize("gain", [0.5, 8])
@pytest.mark.parametrize(("precision", "scale", "shift"), [("w8a8", 6 / 127, 0), ("w8a16", 6 / 2**14, 9)])
def test_the_limit_is_where_the_word_or_the_result_saturates(precision, scale, shift, gain):
    """Whether calibration reaches it or not."""
    b = Builder()
    node = clipped(b, gain=gain)
    numbers = quantised(behind(b, node), precision=precision)
    assert numbers.formats[node].scale == scale
    assert numbers.numbers[node].post_shift == shift


@pytest.mark.parametrize(("precision", "bound"), [("w8a8", 27), ("w16a16", 55)])
def test_experts(precision, bound):
    b = Builder()
    moe = b.moe("moe", b.matmul("embed", b.input(12, 20), 24), 3, 16, activation="relu6")
    for expert in moe.experts:
        expert.w1[:] *= 8
    graph = behind(b, moe)
    assert quality(graph, compiled(graph, precision)) > bound


def test_a_stream_of_larger_values_has_a_coarser_scale():
    """Something far larger is added: the word still saturates at the limit."""
    b = Builder()
    node = clipped(b)
    far = b.matmul("far", b.input(16, 24, "z"), 32, residual=node)
    far.weight[:] *= 20
    graph = behind(b, far)
    numbers = quantised(graph, precision="w16a16")
    steps = np.log2(numbers.formats[node].scale / (6 / 2**14))
    assert steps == round(steps) > 0
    assert numbers.numbers[node].post_shift == 9 + steps
    assert quality(graph, compiled(graph, "w16a16")) > 60


def test_a_limit_that_is_a_power_of_two_can_be_an_output():
    b = Builder()
    graph = Graph("main", (b.output("y", clipped(b, "relu4")),))
    assert quality(graph, compiled(graph, "w16a16")) > 70


def test_what_saturates_takes_no_residual():
    b = Builder()
    with pytest.raises(GraphError, match="matmul 'x' must not add a residual to relu6, which saturates"):
        b.matmul("x", b.input(4, 8), 8, activation="relu6", residual=b.constant(4, 8))


def test_no_scale_serves_two_limits_or_an_output():
    with pytest.raises(QuantiseError, match="relu6: what is clipped at 6 must not be an output"):
        quantised(Graph("main", (Builder().output("y", clipped(Builder())),)))
    tasks = [behind(b, b.matmul("same", b.input(4, 8), 8, activation=f"relu{n}")) for n in (5, 6) for b in [Builder()]]
    with pytest.raises(QuantiseError, match="same: must be clipped alike in all tasks, not at 5 and at 6"):
        quantised(*tasks)
