"""Where columns lie: packed by two, or a head in each chunk."""

import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import heads_of
from patchloom.compiler.nodes import Attention
from patchloom.compiler.schedule import ScheduleError
from tests.compiler.graphs import Builder, check, compiled, one


def packings(graph: Graph, config: Config, precision: str = "w8a8") -> dict[str, tuple[int, int]]:
    task = check(graph, config, bound=25, precision=precision).tasks[0]
    found = {note: (c.a_packed, c.o_packed) for note, c in zip(task.notes, task.commands, strict=True)}
    return {note: flags for note, flags in found.items() if any(flags)}


def test_what_products_alone_read_is_packed():
    small, large = Config(lanes=8, inputs=8, outputs=8), Config(lanes=16)
    b = Builder()
    graph = one(b.block("layer", b.matmul("x", b.input(9, 20), 32), 2, experts=2))
    experts = {f"layer.moe: expert {e} first": (0, 1) for e in (0, 1)}
    experts |= {f"layer.moe: expert {e} second": (1, 0) for e in (0, 1)} | {"x": (1, 0)}  # of the input
    attention = {f"layer.attention: head {h} values": (0, 1) for h in (0, 1)} | {"layer.proj": (1, 0)}
    assert packings(graph, small) == experts | attention
    assert packings(graph, large) == experts  # a head fills half a chunk
    assert packings(graph, small, "w8a16") == {}


def test_separate_queries_are_packed():
    b = Builder()
    x = b.input(9, 24)
    q, k, v = (b.matmul(name, x, 36) for name in "qkv")
    columns = (0, 12, 24)
    q, k, v = (heads_of(part, columns, 12) for part in (q, k, v))
    attention = Attention(name="attention", q=q, k=k, v=v, scale=0.3)
    for lanes, whole in ((4, 0), (8, 1)):
        found = packings(one(b.matmul("proj", attention, 16)), Config(lanes=lanes))
        expected = {"q": (1, 1), "k": (1, 0), "v": (1, 0)} | {f"attention: head {h} scores": (1, 0) for h in range(3)}
        expected |= {"proj": (1, 0)} if whole else {}
        expected |= {f"attention: head {h} values": (0, 1) for h in range(3 * whole)}
        assert found == expected


def test_what_is_stored_added_or_normalised_is_not_packed():
    b = Builder()
    x = b.input(9, 24)
    hidden, added, normalised = (b.matmul(name, x, 24) for name in ("hidden", "added", "normalised"))
    y = b.matmul("y", b.matmul("z", hidden, 24, residual=added), 24)
    z = b.matmul("w", normalised, 24, epsilon=1e-5, residual=y)
    graph = Graph("main", (b.output("z", z), b.output("hidden", hidden)))
    assert packings(graph, Config()) == dict.fromkeys(["hidden", "added", "normalised"], (1, 0))  # of the input


def test_an_input_is_packed_wherever_it_is_read_or_nowhere():
    """It is one port, however many layouts of it there are."""
    for epsilon in (None, 1e-5):
        b = Builder()
        x = b.input(9, 24)
        turned = x.gathered(x.index[::-1])
        y = b.matmul("y", x, 24, residual=b.matmul("z", turned, 24, epsilon=epsilon))
        expected = {} if epsilon else {"y": (1, 0), "z": (1, 0)}
        assert packings(one(y), Config()) == expected


def test_heads_that_overlap_in_part():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    heads = heads_of(x, [0, 8], 16)
    graph = one(Attention(name="attention", q=heads, k=heads, v=heads, scale=0.25))
    with pytest.raises(ScheduleError, match="attention 'attention' reads heads that overlap in 'x'"):
        compiled(graph, "w8a8")
