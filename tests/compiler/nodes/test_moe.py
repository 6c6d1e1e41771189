"""Mixtures: their integers, and what they compute."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Residual, Stationary
from patchloom.compiler.node import whole
from patchloom.compiler.nodes.moe import MoeNumbers, turns
from patchloom.compiler.quantise import QuantiseError
from patchloom.compiler.quantise.scores import SoftmaxNumbers
from patchloom.sim.interpret import execute
from tests.compiler.graphs import Builder, check, compiled, one, quantised, transformer


def test_errors_name_the_node():
    b = Builder()
    graph = Graph("main", (b.output("y", b.moe("mix", b.matmul("x", b.input(4, 16), 16), 3, 8)),))
    [moe] = graph.outputs[0].inputs
    moe.gate_weight[:] *= 1e7
    with pytest.raises(QuantiseError, match="moe 'mix': scores reach"):
        quantised(graph)


def test_the_gate_keeps_sixteen_bits():
    graph = transformer(layers=2, experts=3)
    numbers = quantised(graph, precision="w4a8")
    [moe] = [n for n in numbers.numbers.values() if isinstance(n, MoeNumbers)]
    assert (moe.gate.bits, moe.gate.operand.format.width, moe.logits.width) == (16, 16, 16)
    assert all((e.first.bits, e.second.bits) == (4, 4) for e in moe.experts)
    assert all(n.width == 8 for n in numbers.numbers.values() if isinstance(n, SoftmaxNumbers))


@pytest.mark.parametrize(
    ("tokens", "order"),
    [
        ([[5, 0, 9, 1, 7]], [3, 2, 0, 4, 1]),  # the fewest, the most, the next; none at the end
        ([[3, 3, 3]], [0, 2, 1]),
        ([[0, 0]], [0, 1]),
        ([[0, 8]], [1, 0]),
        ([[1, 0, 9, 6], [1, 1, 9, 5]], [0, 2, 1, 3]),  # a token in every sample before fewer but in some
    ],
)
def test_experts_take_turns(tokens, order):
    assert turns(np.array(tokens)).tolist() == order


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


@pytest.mark.parametrize("kwargs", [
    {"scoring": "softmax_of_all"}, {"activation": "relu"}, {"activation": "none"}, {"residual": None},
    {"epsilon": None}, {"top_k": 1}, {"top_k": 4},
], ids=str)  # fmt: skip
def test_mixtures(kwargs):
    b = Builder()
    x = b.matmul("embed", b.input(30, 20), 24)
    check(one(b.matmul("head", b.moe("moe", x, 5, 40, **kwargs), 8, epsilon=1e-6)))


@pytest.mark.parametrize("precision", ["w16a16", "w8a8"])
def test_a_gate_with_an_operand_of_its_own(precision):
    """A hidden layer, of another width, between the tokens and the gate."""
    b = Builder()
    x = b.matmul("embed", b.input(30, 20), 24)
    moe = b.moe("moe", x, 5, 40)
    hidden = b.matmul("hidden", x, 12, epsilon=1e-6, activation="relu")
    own = replace(moe, gate_x=whole(hidden), gate_weight=b.weight(5, 12))
    program = check(one(b.matmul("head", own, 8, epsilon=1e-6)), bound={"w16a16": 50, "w8a8": 20}[precision],
                    precision=precision)  # fmt: skip
    assert program.tasks[0].macs == 30 * (20 * 24 + 24 * 12 + 5 * 12 + 2 * 2 * 40 * 24 + 24 * 8)


def test_an_expert_without_tokens():
    b = Builder()
    moe = b.moe("moe", b.matmul("embed", b.input(6, 20), 24), 8, 16, top_k=1)
    moe.gate_bias[2] = -1000
    program = check(one(moe), bound=50)
    queues = []
    chosen = program.task(None)
    execute(program, None, np.zeros(chosen.input_bytes // 2, np.int16), lambda i, c, s: queues.append(s.queues))
    assert len(queues[-1][2].token) == 0


def test_mixture_chains_on_its_own_output():
    program = compiled(transformer(experts=3), "w8a8")
    chained = [c for c in program.tasks[0].commands if c.residual == Residual.CHAIN]
    assert [c.expert for c in chained] == [0, 1, 2] * 2
    assert all(c.o_address != c.r_address for c in chained)
    assert all(c.b_source == Stationary.MEMORY for c in chained)
