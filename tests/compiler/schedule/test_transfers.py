"""Rows from memory and to it."""

from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.config import Config
from tests.compiler.graphs import Builder, check, compiled, one, run, samples, sqnr


def test_a_row_that_does_not_end_at_a_beat():
    """Transfers are padded to beats, on both sides of a 512-bit bus over chunks of 64 bits."""
    b = Builder()
    config = Config(inputs=4, outputs=4, lanes=4, bus_width=512)
    check(one(b.matmul("a", b.input(3, 5), 7, residual=b.constant(3, 7))), config)


def test_a_transfer_longer_than_a_command():
    b = Builder()
    config = Config(inputs=4, outputs=4, lanes=4, scratchpad_chunks=1 << 20, max_rows=4096, statistics_rows=4096)
    graph = one(b.input(4096, 68))
    program = compiled(graph, "w16a16", config)
    assert [c.kind for c in program.tasks[0].commands].count(Kind.LOAD) == 3
    inputs = {name: array[0] for name, array in samples(graph, 1).items()}
    assert sqnr(inputs["x"], run(program, inputs)["y"]) > 60
