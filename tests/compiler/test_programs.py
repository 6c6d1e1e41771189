"""Whole models, compiled for several machines, run by the interpreter, against floats."""

import numpy as np
import pytest

from patchloom.compiler.graph import evaluate
from patchloom.compiler.machine.config import Config
from tests.compiler.graphs import CONFIGS, compiled, quality, random_graph, run, samples, sqnr, transformer

BOUNDS = {"w8a8": 27, "w8a16": 33, "w16a16": 62}  # dB; docs state what is measured


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


def test_notes_and_buffers_name_the_models_parts():
    program = compiled(transformer(experts=3), "w8a8")
    task = program.tasks[0]
    assert len(task.notes) == len(task.commands)
    assert "layer1.moe: expert 2 second" in task.notes
    residuals = "position, embed, layer0.proj, layer0.fc2, layer1.proj"
    assert {b.name for b in task.buffers} >= {"x", residuals, "layer0.qkv", "layer1.moe logits"}
