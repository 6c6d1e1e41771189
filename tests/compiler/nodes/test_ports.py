"""Inputs, outputs and constants."""

import numpy as np

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.node import rows_of, whole
from patchloom.compiler.nodes import Constant, Input, Matmul, Output
from tests.compiler.graphs import Builder, check, one


def test_outputs_share_rows_and_inputs():
    b = Builder()
    x = b.input(9, 20)
    hidden = b.matmul("hidden", x, 24)
    all_rows, index = b.output("whole", hidden), np.array([[3 * 24 + 5, 4 * 24], [5 * 24 + 23, 3 * 24]])
    corner = Output(name="corner", x=whole(hidden).pick(index))
    again = b.output("again", hidden)
    copy = Output(name="copy", x=whole(x).pick(np.arange(40).reshape(2, 20)[::-1]))
    graph = Graph("main", (all_rows, corner, again, copy))
    program = check(graph)
    task = program.tasks[0]
    assert [c.kind for c in task.commands].count(Kind.STORE) == 3  # whole and again are one
    assert {p.name: p.shape for p in task.outputs} == {
        "whole": (9, 24),
        "corner": (2, 2),
        "again": (9, 24),
        "copy": (2, 20),
    }


def test_input_of_gathered_elements():
    index = np.array([[5, -1, 0, 3], [2, 2, -1, 1]])
    x = Input(name="x", index=index, user_shape=(2, 3))
    check(one(Builder().matmul("a", x, 6)))


def test_constant_as_operand():
    b = Builder()
    x = b.input(6, 20)
    tokens = Constant(name="tokens", value=b.normal(9, 20))
    added = Matmul(
        name="a", x=rows_of(tokens, 1, 7), weight=b.weight(20, 20), bias=b.normal(20), residual=whole(x)
    )  # fmt: skip
    check(one(added))
