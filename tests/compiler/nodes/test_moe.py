"""A mixture's integers."""

import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.nodes.attention import AttentionNumbers
from patchloom.compiler.nodes.moe import MoeNumbers
from patchloom.compiler.quantise import QuantiseError
from tests.compiler.graphs import Builder, quantised, transformer


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
