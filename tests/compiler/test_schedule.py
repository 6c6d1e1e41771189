"""Small random graphs of every kind, compiled for several machines, run by the interpreter, against floats."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from patchloom.compiler.graph import Graph, Node, evaluate
from patchloom.compiler.machine.commands import Kind, Residual, Stationary
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Output
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import FitError, ScheduleError, schedule
from patchloom.sim.interpret import execute
from tests.compiler.graphs import CONFIGS, Builder, compiled, quality, random_graph, run, samples, sqnr, transformer

BOUNDS = {"w8a8": 27, "w8a16": 33, "w16a16": 62}  # dB; docs state what is measured


def one(x: Node) -> Graph:
    return Graph("main", (Builder().output("y", x),))


# --- Whole transformers ---


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_transformer(precision, config):
    graph = transformer()
    assert quality(graph, compiled(graph, precision, config)) > BOUNDS[precision]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformer_with_experts(config):
    graph = transformer(experts=4)
    assert quality(graph, compiled(graph, "w16a16", config)) > 62
    assert quality(graph, compiled(graph, "w8a8", config)) > 22  # some tokens choose another expert


def test_every_machine_computes_the_same():
    """Array shape, digits and bus change the order of things, never a bit."""
    graph = transformer(experts=4)
    inputs = {name: array[0] for name, array in samples(graph, 1, seed=5).items()}
    results = [run(compiled(graph, "w8a16", config), inputs)["y"] for config in CONFIGS.values()]
    assert all(np.array_equal(result, results[0]) for result in results)


# --- What a graph may contain ---


def check(graph: Graph, config: Config | None = None, bound: float = 60, precision: str = "w16a16"):
    program = compiled(graph, precision, config)
    assert quality(graph, program) > bound
    return program


@pytest.mark.parametrize(("head_dim", "lanes"), [(12, 16), (20, 16), (6, 4), (16, 16)])
def test_heads_that_fill_no_chunk(head_dim, lanes):
    b = Builder()
    qkv = b.matmul("qkv", b.input(9, 24), 3 * 3 * head_dim)
    out = b.matmul("proj", b.attention("attention", qkv, 3, head_dim), 10)
    check(one(out), Config(lanes=lanes))


def test_heads_of_an_input_and_of_a_mixture():
    b = Builder()
    mixture = b.moe("moe", b.input(7, 36), 3, 16, epsilon=None, residual=None)
    for x in (mixture, b.input(7, 36)):
        check(one(b.matmul("proj", b.attention("attention", x, 1, 12), 10)))


def test_attention_across_streams_with_shared_keys():
    b = Builder()
    q, kv = b.matmul("q", b.input(11, 20), 48), b.matmul("kv", b.input(23, 20, "z"), 24)
    columns = (0, 12, 24, 36)
    attention = Attention(
        name="cross", q=q, k=kv, v=kv, q_columns=columns, k_columns=(0,) * 4, v_columns=(12,) * 4,
        head_dim=12, value_dim=12, scale=0.3,
    )  # fmt: skip
    check(one(b.matmul("proj", attention, 16)))


def test_attention_twice():
    b = Builder()
    first = b.attention("first", b.matmul("qkv", b.input(9, 24), 48), 1, 16)
    second = Attention(
        name="second", q=first, k=first, v=first, q_columns=(0,), k_columns=(0,), v_columns=(0,),
        head_dim=16, value_dim=16, scale=0.25,
    )  # fmt: skip
    check(one(second))


def test_attention_output_is_added_and_normalised():
    b = Builder()
    x = b.input(9, 32)
    attention = b.attention("attention", b.matmul("qkv", x, 96), 2, 16)
    added = b.matmul("added", x, 32, residual=attention)
    check(one(b.matmul("head", added, 8, epsilon=1e-5)))
    check(one(b.matmul("head", attention, 8, epsilon=1e-5)))


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


def test_residual_input():
    b = Builder()
    x = b.input(9, 20)
    check(one(b.matmul("a", x, 20, residual=x, activation="relu")))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_activations(activation):
    b = Builder()
    check(one(b.matmul("a", b.matmul("b", b.input(9, 20), 40, activation=activation), 20, activation=activation)))


@pytest.mark.parametrize("kwargs", [
    {"scoring": "softmax_of_all"}, {"activation": "relu"}, {"activation": "none"}, {"residual": None},
    {"epsilon": None}, {"top_k": 1}, {"top_k": 4},
], ids=str)  # fmt: skip
def test_mixtures(kwargs):
    b = Builder()
    x = b.matmul("embed", b.input(30, 20), 24)
    check(one(b.matmul("head", b.moe("moe", x, 5, 40, **kwargs), 8, epsilon=1e-6)))


def test_an_expert_without_tokens():
    b = Builder()
    moe = b.moe("moe", b.matmul("embed", b.input(6, 20), 24), 8, 16, top_k=1)
    moe.gate_bias[2] = -1000
    program = check(one(moe), bound=50)
    queues = []
    chosen = program.task(None)
    execute(program, None, np.zeros(chosen.input_bytes // 2, np.int16), lambda i, c, s: queues.append(s.queues))
    assert len(queues[-1][2].token) == 0


def test_outputs_share_rows_and_inputs():
    b = Builder()
    x = b.input(9, 20)
    hidden = b.matmul("hidden", x, 24)
    whole = b.output("whole", hidden)
    corner = Output(name="corner", x=hidden, index=np.array([[3 * 24 + 5, 4 * 24], [5 * 24 + 23, 3 * 24]]))
    again = b.output("again", hidden)
    copy = Output(name="copy", x=x, index=np.arange(40).reshape(2, 20)[::-1])
    graph = Graph("main", (whole, corner, again, copy))
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


def test_rows_of_a_matmul():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    check(one(b.matmul("a", b.matmul("b", x, 24, rows=(3, 8)), 8, rows=(2, 4), epsilon=1e-6)))


def test_per_layer_precision():
    graph = transformer(layers=1)
    program = compiled(graph, "w8a8", **{"*.fc?": "w16a16", "head": "w4a8"})
    assert program.precision == "w8a8, *.fc?: w16a16, head: w4a8"
    digits = dict(zip(program.tasks[0].notes, (c.b_digits for c in program.tasks[0].commands), strict=True))
    assert (digits["layer0.fc1"], digits["layer0.qkv"], digits["head"]) == (2, 1, 1)
    head = program.tasks[0].commands[program.tasks[0].notes.index("head")]
    assert np.abs(program.weights(head).matrix).max() == 7


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(seed):
    graph = random_graph(seed)
    configs = (*CONFIGS.values(), Config(inputs=4, outputs=8, lanes=4, bus_width=512, scratchpad_chunks=4096))
    program = compiled(graph, "w16a16", configs[seed % len(configs)])
    inputs = {name: array[0] for name, array in samples(graph, 8).items()}
    expected, actual = evaluate(graph, inputs), run(program, inputs)
    for name in expected:
        assert sqnr(expected[name], actual[name]) > 50 or np.abs(expected[name]).max() == 0, name


# --- Sizes ---


def test_more_rows_than_the_accumulator():
    graph = transformer(tokens=45, layers=2)
    small, large = (compiled(graph, "w16a16", Config(max_rows=rows)) for rows in (16, 64))
    assert len(small.tasks[0].commands) > len(large.tasks[0].commands)
    assert len(small.image) == len(large.image)
    inputs = {name: array[0] for name, array in samples(graph, 1).items()}
    assert np.array_equal(run(small, inputs)["y"], run(large, inputs)["y"])


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
    attention = Attention(
        name="attention", q=q, k=k, v=v, q_columns=columns, k_columns=columns, v_columns=columns,
        head_dim=12, value_dim=12, scale=0.3,
    )  # fmt: skip
    graph, config = one(b.matmul("proj", attention, 16)), Config(lanes=8, inputs=8, outputs=8)
    small = shrunk(graph, config, chunks(compiled(graph, "w8a8", config)) - 1)
    assert {f"{name}: head {head}" for name in "qkv" for head in range(3)} <= set(small.tasks[0].notes)


def test_keys_that_heads_share_are_computed_once():
    b = Builder()
    x = b.matmul("x", b.input(60, 8), 32)
    q, kv = b.matmul("q", x, 64), b.matmul("kv", x, 32)
    attention = Attention(
        name="attention", q=q, k=kv, v=kv, q_columns=(0, 16, 32, 48), k_columns=(0,) * 4, v_columns=(16,) * 4,
        head_dim=16, value_dim=16, scale=0.25,
    )  # fmt: skip
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
        one(b.matmul("x", b.input(50, 50), 4)), **asdict(config)
    )


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


def test_tasks_share_weights():
    def graph(task: str) -> Graph:
        shared, own = Builder(0), Builder(1 + len(task))
        x = shared.matmul("embed", shared.input(20, 24), 64)
        x = shared.block("layer", x, 2)
        return Graph(task, (own.output(f"{task}_out", own.matmul(f"head.{task}", x, 10, epsilon=1e-6)),))

    graphs = [graph("depth"), graph("segmentation")]
    config = Config()
    images = []
    for several in (graphs[:1], graphs):
        quantised = quantise(several, samples(several[0], 4), Precision.parse("w8a8"))
        images.append(schedule(quantised, config))
    names = [segment.name for segment in images[1].segments]
    assert len(names) == len(set(names))
    one_task, both = (sum(s.length for s in p.segments if not s.name.startswith("commands")) for p in images)
    assert both - one_task < 2000  # a head
    for graph_ in graphs:
        inputs = {name: array[0] for name, array in samples(graph_, 1).items()}
        assert run(images[1], inputs, graph_.task)[f"{graph_.task}_out"].shape == (20, 10)


def test_notes_and_buffers_name_the_models_parts():
    program = compiled(transformer(experts=3), "w8a8")
    task = program.tasks[0]
    assert len(task.notes) == len(task.commands)
    assert "layer1.moe: expert 2 second" in task.notes
    residuals = "position, embed, layer0.proj, layer0.fc2, layer1.proj"
    assert {b.name for b in task.buffers} >= {"x", residuals, "layer0.qkv", "layer1.moe logits"}


def test_macs_are_the_models():
    b = Builder()
    qkv = b.matmul("qkv", b.input(10, 8), 48)
    assert qkv.macs == 10 * 8 * 48
    attention = b.attention("attention", qkv, 2, 8)
    assert attention.macs == 2 * 10 * 10 * (8 + 8)
    assert b.moe("moe", attention, 4, 32, top_k=2).macs == 10 * (16 * 4 + 2 * 2 * 16 * 32)


def test_mixture_chains_on_its_own_output():
    program = compiled(transformer(experts=3), "w8a8")
    chained = [c for c in program.tasks[0].commands if c.residual == Residual.CHAIN]
    assert [c.expert for c in chained] == [0, 1, 2] * 2
    assert all(c.o_address != c.r_address for c in chained)
    assert all(c.b_source == Stationary.MEMORY for c in chained)


def in_place(graph: Graph, program: Program | None = None) -> list[str]:
    task = (program or check(graph)).tasks[0]
    return [
        note
        for note, c in zip(task.notes, task.commands, strict=True)
        if c.residual == Residual.ADD and c.o_address == c.r_address
    ]


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


def packings(graph: Graph, config: Config, precision: str = "w8a8") -> dict[str, tuple[int, int]]:
    task = check(graph, config, bound=25, precision=precision).tasks[0]
    found = {note: (c.a_packed, c.o_packed) for note, c in zip(task.notes, task.commands, strict=True)}
    return {note: flags for note, flags in found.items() if any(flags)}


def test_what_products_alone_read_is_packed():
    small, large = Config(lanes=8, inputs=8, outputs=8), Config(lanes=16)
    b = Builder()
    graph = one(b.block("layer", b.matmul("x", b.input(9, 20), 32), 2, experts=2))
    experts = {f"layer.moe: expert {e} first": (0, 1) for e in (0, 1)}
    experts |= {f"layer.moe: expert {e} second": (1, 0) for e in (0, 1)}
    attention = {f"layer.attention: head {h} values": (0, 1) for h in (0, 1)} | {"layer.proj": (1, 0)}
    assert packings(graph, small) == experts | attention
    assert packings(graph, large) == experts  # a head fills half a chunk
    assert packings(graph, small, "w8a16") == {}


def test_separate_queries_are_packed():
    b = Builder()
    x = b.input(9, 24)
    q, k, v = (b.matmul(name, x, 36) for name in "qkv")
    columns = (0, 12, 24)
    attention = Attention(
        name="attention", q=q, k=k, v=v, q_columns=columns, k_columns=columns, v_columns=columns,
        head_dim=12, value_dim=12, scale=0.3,
    )  # fmt: skip
    for lanes, whole in ((4, 0), (8, 1)):
        found = packings(one(b.matmul("proj", attention, 16)), Config(lanes=lanes))
        expected = {"q": (0, 1)} | {f"attention: head {h} scores": (1, 0) for h in range(3)}
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
    assert packings(graph, Config()) == {}


# --- What does not fit ---


def test_everything_that_does_not_fit_is_reported_at_once():
    config = Config(max_rows=16, max_experts=2, max_top_k=2, command_depth=16, scratchpad_chunks=64, statistics_rows=16)
    graph = transformer(tokens=40, experts=4)
    quantised = quantise([graph], samples(graph, 2), Precision.parse("w8a8"))
    with pytest.raises(FitError) as error:
        schedule(quantised, config)
    lines = str(error.value).splitlines()
    assert all(re.fullmatch(r"does not fit: .* needs \d+, has \d+; try .*", line) for line in lines)
    for what in ("tokens of a mixture", "experts", "scratchpad (chunks)", "row statistics (rows)", "commands"):
        assert any(what in line for line in lines), what


def fit_error(graph: Graph, precision: str = "w8a8", **sizes: int) -> str:
    with pytest.raises(FitError) as error:
        compiled(graph, precision, replace(Config(), **sizes))
    return str(error.value)


def test_tokens_of_a_mixture():
    b = Builder()
    graph = one(b.moe("moe", b.matmul("embed", b.input(20, 16), 16), 4, 16))
    assert fit_error(graph, max_rows=16) == (
        "does not fit: 'moe': tokens of a mixture of experts needs 20, has 16; try Config(max_rows=20)"
    )


def test_experts_and_choices():
    b = Builder()
    graph = one(b.moe("moe", b.matmul("embed", b.input(20, 16), 16), 6, 16, top_k=5))
    assert fit_error(graph, max_experts=4) == (
        "does not fit: 'moe': experts needs 6, has 4; try Config(max_experts=6)\n"
        "does not fit: 'moe': experts per token needs 5, has 4; try Config(max_top_k=5, max_experts=6)"
    )


def test_commands():
    graph = transformer(layers=2)
    assert "does not fit: task 'main': commands needs 23, has 16; try Config(command_depth=64)" in fit_error(
        graph, command_depth=16
    )


def test_scratchpad():
    b = Builder()
    graph = one(b.matmul("a", b.input(100, 16), 16))
    assert fit_error(graph, scratchpad_chunks=64) == (
        "does not fit: task 'main': scratchpad (chunks) needs 101, has 64; try Config(scratchpad_chunks=101)"
    )
    assert chunks(compiled(graph, "w8a8", Config(scratchpad_chunks=101))) == 101


def test_scratchpad_that_more_commands_would_spare():
    b = Builder()
    graph = one(b.matmul("a", b.input(100, 16), 16))
    assert fit_error(graph, scratchpad_chunks=140, command_depth=8) == (
        "does not fit: task 'main': scratchpad (chunks) needs 150, has 140; "
        "try Config(scratchpad_chunks=150) or Config(command_depth=64)"
    )


def test_commands_are_not_what_a_scratchpad_lacks():
    """Queries cut down to rows would take thousands of commands."""
    text = fit_error(transformer(tokens=100, layers=1), scratchpad_chunks=64)
    assert re.fullmatch(r"does not fit: task 'main': scratchpad \(chunks\) needs \d+, .*; try .*chunks=\d+\)", text)


def test_statistics_rows():
    b = Builder()
    graph = one(b.matmul("a", b.matmul("x", b.input(20, 16), 16), 16, epsilon=1e-6))
    assert fit_error(graph, statistics_rows=16) == (
        "does not fit: task 'main': row statistics (rows) needs 20, has 16; try Config(statistics_rows=20)"
    )


def test_features_that_are_normalised():
    b = Builder()
    text = fit_error(one(b.matmul("a", b.matmul("x", b.input(2, 8), 4112), 8, epsilon=1e-3)))
    assert "does not fit: 'a': normalised features needs 4112, has 4096; try fewer features" in text


def test_accumulator_names_node_and_channel():
    b = Builder()
    x = b.matmul("a", b.input(4, 64), 16)
    x.weight[:] *= 0.01
    x.weight[5] = 1
    text = fit_error(one(x), "w16a16", accumulator_width=32)
    assert re.fullmatch(
        r"does not fit: accumulator of 'a', channel 5, needs (3\d), has 32; try Config\(accumulator_width=\1\)", text
    )


def test_wide_weights_give_way_to_the_accumulator():
    """4096 features of 16 bits would need 43 bits; the channels' scales leave room instead."""
    b = Builder()
    x = b.matmul("a", b.input(2, 4096), 16)
    x.weight[:] = np.where(x.weight > 0, 1, -1)
    check(one(x), bound=60)


def test_attention_accumulator():
    b = Builder()
    graph = one(b.attention("attention", b.matmul("qkv", b.input(20, 16), 48), 1, 16))
    text = fit_error(graph, "w16a16", accumulator_width=32)
    for what in ("scores", "values"):
        need = f"accumulator of 'attention' {what}, every channel, needs 36, has 32; try Config(accumulator_width=36)"
        assert need in text
    graph = one(b.attention("attention", b.matmul("qkv", b.input(4, 16), 3 * 512), 1, 512))
    assert "scores, every channel, needs 41, has 40; try 8-bit activations for this layer" in fit_error(graph, "w16a16")
    compiled(graph, "w16a16", attention="w16a8")


def test_attention_is_bounded_by_the_digits_that_hold_it():
    """Keys of 8 bits lie in a digit of 16 that limits them to no less."""
    b = Builder()
    graph = one(b.attention("attention", b.matmul("qkv", b.input(8, 16), 3 * 64), 1, 64))
    native = {"weight_width": 16, "activation_width": 16}
    text = fit_error(graph, "w8a8", accumulator_width=28, **native)
    assert (
        "accumulator of 'attention' scores, every channel, needs 30, has 28; try Config(accumulator_width=30)" in text
    )
    compiled(graph, "w8a8", Config(accumulator_width=30, **native))
    compiled(graph, "w8a8", Config(accumulator_width=28))


def test_a_stride_beyond_the_command():
    b = Builder()
    graph = one(b.matmul("a", b.input(1, 4 * 4096), 4))
    text = fit_error(graph, inputs=4, outputs=4, lanes=4)
    assert "does not fit: 'x: load'" not in text
    assert "a_stride must lie in 0 to 4095, not 4096" in text


def test_heads_that_overlap_in_part():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    graph = one(Attention(
        name="attention", q=x, k=x, v=x, q_columns=(0, 8), k_columns=(0, 8), v_columns=(0, 8),
        head_dim=16, value_dim=16, scale=0.25,
    ))  # fmt: skip
    with pytest.raises(ScheduleError, match="attention 'attention' reads heads that overlap in 'x'"):
        compiled(graph, "w8a8")


def test_constant_as_operand():
    b = Builder()
    x = b.input(6, 20)
    tokens = Constant(name="tokens", value=b.normal(9, 20))
    added = Matmul(
        name="a", x=tokens, weight=b.weight(20, 20), bias=b.normal(20), rows=(1, 7), residual=x
    )  # fmt: skip
    check(one(added))
