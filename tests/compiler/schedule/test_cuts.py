"""Short memory: heads one by one, rows in parts."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program
from patchloom.compiler.node import heads_of, rows_of
from patchloom.compiler.nodes import Attention, Output
from tests.compiler.graphs import Builder, compiled, fit_error, in_place, one, run, samples


def chunks(program: Program) -> int:
    return max(b.address + b.chunks for b in program.tasks[0].buffers)


def shrunk(graph: Graph, config: Config, size: int) -> Program:
    """For a scratchpad of `size` chunks; it computes what one for a large scratchpad does, from the same weights."""
    small, large = (compiled(graph, "w8a8", c) for c in (replace(config, scratchpad_chunks=size), config))
    assert chunks(small) <= size < chunks(large)
    inputs = {name: array[0] for name, array in samples(graph, 1).items()}
    assert np.array_equal(run(small, inputs)["y"], run(large, inputs)["y"])
    return small


def test_attention_goes_head_by_head_then_queries_are_cut():
    b = Builder()
    x = b.matmul("x", b.input(100, 8), 32)
    qkv = b.matmul("qkv", x, 96, epsilon=1e-5)
    graph = one(b.matmul("proj", b.attention("attention", qkv, 2, 16), 32, residual=x))
    config = Config(inputs=4, outputs=4, lanes=4)
    scores, head = 100 * 25, 100 * 3 * 4
    large = chunks(compiled(graph, "w8a8", config))
    by_head = shrunk(graph, config, large - 1)
    assert [note for note in by_head.tasks[0].notes if "qkv" in note] == ["qkv: head 0", "qkv: head 1"]
    assert chunks(by_head) == large - head
    assert in_place(graph, by_head) == in_place(graph) == ["proj"]
    streamed = [sum(c.dma_beats for c in p.tasks[0].commands) for p in (by_head, compiled(graph, "w8a8", config))]
    assert streamed[0] == streamed[1]  # weights are fetched once, too
    halved = shrunk(graph, config, large - head - 1)
    assert "attention: head 1 rows 50 to 99 values" in halved.tasks[0].notes
    assert chunks(halved) == large - head - scores // 2
    quarter = shrunk(graph, config, large - head - scores * 3 // 4)
    assert "attention: head 1 rows 75 to 99 values" in quarter.tasks[0].notes


def test_heads_of_separate_tensors_one_by_one():
    """Padded to chunks; the queries are packed."""
    b = Builder()
    x, y = b.input(40, 24), b.input(30, 16, "y")
    q, k, v = b.matmul("q", x, 36), b.matmul("k", y, 36), b.matmul("v", y, 36)
    columns = (12, 24, 0)  # in whatever order
    q, k, v = (heads_of(part, columns, 12) for part in (q, k, v))
    attention = Attention(name="attention", q=q, k=k, v=v, scale=0.3)
    graph, config = one(b.matmul("proj", attention, 16)), Config(lanes=8, inputs=8, outputs=8)
    small = shrunk(graph, config, chunks(compiled(graph, "w8a8", config)) - 1)
    assert {f"{name}: head {head}" for name in "qkv" for head in range(3)} <= set(small.tasks[0].notes)


def test_keys_that_heads_share_are_computed_once():
    b = Builder()
    x = b.matmul("x", b.input(60, 8), 32)
    q, kv = b.matmul("q", x, 64), b.matmul("kv", x, 32)
    q, k, v = heads_of(q, (0, 16, 32, 48), 16), heads_of(kv, (0,) * 4, 16), heads_of(kv, (16,) * 4, 16)
    attention = Attention(name="attention", q=q, k=k, v=v, scale=0.25)
    graph = one(b.matmul("proj", attention, 32, residual=x))
    small = shrunk(graph, Config(), chunks(compiled(graph, "w8a8")) - 1)
    assert not any("kv: head" in note for note in small.tasks[0].notes)
    assert any("rows 30 to 59 values" in note for note in small.tasks[0].notes)


def test_what_an_attention_normalises_stays_until_its_last_head():
    """Nothing may take its place, though the product that reads it stands earlier in the graph."""
    b = Builder()
    x = b.matmul("x", b.input(60, 8), 32)
    attention = b.attention("attention", b.matmul("qkv", x, 96, epsilon=1e-5), 2, 16)
    y = b.matmul("y", b.matmul("z", b.constant(60, 8), 8), 32, residual=x)
    graph = Graph("main", (b.output("y", b.matmul("proj", attention, 32, residual=y)),))
    shrunk(graph, Config(), chunks(compiled(graph, "w8a8")) - 1)


@pytest.mark.parametrize("bus_width", [64, 512])
def test_an_input_is_loaded_part_by_part(bus_width):
    b = Builder()
    x = b.matmul("x", b.input(50, 128), 16, residual=b.constant(44, 16), rows=(3, 47))
    graph, config = one(b.matmul("y", x, 16)), Config(inputs=8, outputs=8, lanes=4, bus_width=bus_width)
    large = chunks(compiled(graph, "w8a8", config))
    small = shrunk(graph, config, large * 5 // 8)
    assert "x: rows 3 to 24: load" in small.tasks[0].notes


def test_an_input_of_heads_stays_whole():
    b = Builder()
    graph = one(b.matmul("proj", b.attention("attention", b.matmul("qkv", b.input(60, 64), 96), 2, 16), 32))
    small = shrunk(graph, Config(), chunks(compiled(graph, "w8a8")) - 1)
    assert "x: load" in small.tasks[0].notes


def test_an_input_of_broken_beats_stays_whole():
    b = Builder()
    config = Config(inputs=8, outputs=8, lanes=4, bus_width=512, scratchpad_chunks=512)
    assert "scratchpad (chunks) needs 712, has 512" in fit_error(
        one(b.matmul("x", b.input(50, 100), 4)), **asdict(config)
    )


def test_an_input_of_queries_stays_whole():
    """It is streamed, but by an attention, which loads nothing."""
    b = Builder()
    kv = b.matmul("kv", b.input(8, 24, "z"), 32)
    q, k, v = heads_of(b.input(60, 16), [0], 16), heads_of(kv, [0], 16), heads_of(kv, [16], 16)
    attention = Attention(name="attention", q=q, k=k, v=v, scale=0.25)
    assert "scratchpad (chunks) needs 136, has 128" in fit_error(one(attention), scratchpad_chunks=128)


@pytest.mark.parametrize("bus_width", [64, 512])
def test_a_result_is_stored_part_by_part(bus_width):
    b = Builder()
    graph = one(b.matmul("y", b.matmul("x", b.input(50, 16), 32), 128, rows=(3, 47)))
    config = Config(inputs=8, outputs=8, lanes=4, bus_width=bus_width)
    halved = shrunk(graph, config, 904)
    assert "y: rows from 22: store" in halved.tasks[0].notes
    quarter = shrunk(graph, config, 552)
    assert "y: rows from 33: store" in quarter.tasks[0].notes
    streamed = [sum(c.dma_beats for c in p.tasks[0].commands if c.kind == Kind.STORE) for p in (quarter, halved)]
    assert streamed[0] == streamed[1]


def test_what_is_loaded_and_stored_part_by_part():
    b = Builder()
    graph, config = one(b.matmul("y", b.input(64, 64), 64, rows=(8, 60))), Config(inputs=8, outputs=8, lanes=4)
    small = shrunk(graph, config, 256)
    assert {"x: rows 8 to 14: load", "y: rows from 7: store"} <= set(small.tasks[0].notes)


@pytest.mark.parametrize("reader", ["output", "rows", "residual"])
def test_a_result_that_stays_whole(reader):
    """Read by something else, read in part, or made of what lies in its place."""
    b = Builder()
    x = b.matmul("x", b.input(64, 8), 64)
    y = b.matmul("y", x, 64, residual=x if reader == "residual" else None)
    outputs = {"output": [b.output("y", y), b.output("z", y)], "rows": [Output(name="y", x=rows_of(y, 0, 63))]}
    graph = Graph("main", tuple(outputs.get(reader, [b.output("y", y)])))
    text = fit_error(graph, inputs=8, outputs=8, lanes=4, scratchpad_chunks=1024)
    needs = 2048 if reader == "residual" else 1536
    assert f"scratchpad (chunks) needs {needs}, has 1024" in text
