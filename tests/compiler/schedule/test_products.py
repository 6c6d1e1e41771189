"""Products with weights from memory, and what they leave for the next."""

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import Config
from tests.compiler.graphs import Builder, check, compiled, in_place, one, run, samples, transformer


@pytest.mark.parametrize("lanes", [4, 16])
def test_normalised_heads_that_fill_no_chunk(lanes):
    b = Builder()
    qkv = b.matmul("qkv", b.input(9, 20), 72, residual=b.constant(9, 72))
    attention = b.attention("attention", qkv, 2, 12)
    head = b.matmul("head", attention, 72, epsilon=1e-6, residual=qkv)
    check(one(b.matmul("last", qkv, 72, epsilon=1e-5, residual=head)), Config(lanes=lanes))


def test_normalised_input_and_constant():
    b = Builder()
    check(
        one(b.matmul("a", b.input(9, 20), 8, epsilon=1e-5, residual=b.matmul("b", b.constant(9, 20), 8, epsilon=1e-5)))
    )


def test_more_rows_than_the_accumulator():
    graph = transformer(tokens=45, layers=2)
    small, large = (compiled(graph, "w16a16", Config(max_rows=rows)) for rows in (16, 64))
    assert len(small.tasks[0].commands) > len(large.tasks[0].commands)
    assert len(small.image) == len(large.image)
    inputs = {name: array[0] for name, array in samples(graph, 1).items()}
    assert np.array_equal(run(small, inputs)["y"], run(large, inputs)["y"])


def test_a_sum_takes_its_residuals_place_if_nothing_reads_that_any_more():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    first = b.matmul("first", b.matmul("hidden", x, 40, epsilon=1e-5), 24, residual=x)
    second = b.matmul("second", first, 24, residual=x)  # x is read for the last time
    streamed = b.matmul("streamed", second, 24, residual=second)
    assert in_place(one(streamed)) == ["second"]


def test_an_output_is_not_overwritten_before_it_is_stored():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    added = b.matmul("added", b.matmul("hidden", x, 40), 24, residual=x)
    assert in_place(Graph("main", (b.output("y", added), b.output("x", x)))) == []
    assert in_place(Graph("main", (b.output("x", x), b.output("y", added)))) == ["added"]
