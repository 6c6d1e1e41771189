"""The noise of layers: what is read of the machine, and what is made of it."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.schedule import schedule
from patchloom.reporting.budget import Budget, Noise
from patchloom.reporting.machine import Frame, check_layers, run
from tests.compiler.graphs import Builder, compiled, one, quantised, samples, sqnr, transformer


def exact(graph, sample):
    """Results in float, by the layers' numbers."""
    found = {}
    evaluate(graph, sample, lambda node, what, array: found.update({node: array} if what == "output" else {}))
    return {number: found[node] for number, node in enumerate(graph.nodes()) if node in found}


def first(graph):
    return {name: array[0] for name, array in samples(graph, 1, seed=2).items()}


def near(graph, program):
    """Every layer that the machine computes is read, and is nearly what float has."""
    sample = first(graph)
    [task] = program.tasks
    found, wanted = run(program, task, sample).values, exact(graph, sample)
    computed = {n for n, layer in enumerate(task.layers) if layer.kind not in ("input", "constant", "output")}
    assert found.keys() == computed
    for number, value in found.items():
        assert sqnr(wanted[number], value) > 25, task.layers[number].name


@pytest.mark.parametrize("lanes", [4, 16])
def test_every_layer_is_read(lanes):
    graph = transformer(layers=2, experts=3, dim=24, heads=3)  # heads of 8 columns: with gaps where a chunk has 16
    near(graph, compiled(graph, "w16a16", Config(inputs=16, outputs=16, lanes=lanes)))


@pytest.mark.parametrize("size", [2060, 900])
def test_also_of_layers_that_are_cut(size):
    """Heads one by one, then queries in parts."""
    b = Builder()
    x = b.matmul("x", b.input(100, 8), 32)
    qkv = b.matmul("qkv", x, 96, epsilon=1e-5)
    graph = one(b.matmul("proj", b.attention("attention", qkv, 2, 16), 32, residual=x))
    config = Config(inputs=4, outputs=4, lanes=4)
    large = max(buffer.address + buffer.chunks for buffer in compiled(graph, "w16a16", config).tasks[0].buffers)
    program = compiled(graph, "w16a16", replace(config, scratchpad_chunks=large - size))
    assert len(program.tasks[0].layers[2].pieces) == 2
    near(graph, program)


def test_also_of_outputs_that_leave_in_parts():
    b = Builder()
    graph = one(b.matmul("head", b.matmul("x", b.input(100, 8), 16), 64))
    config = Config(inputs=4, outputs=4, lanes=4, scratchpad_chunks=1024)
    program = compiled(graph, "w16a16", config)
    assert len(program.tasks[0].layers[2].pieces) > 1
    near(graph, program)


def test_commands_and_saturations_are_the_layers():
    graph = transformer(layers=2, experts=3)
    program = compiled(graph, "w8a8")
    [task] = program.tasks
    owned = sorted(command for layer in task.layers for command in layer.commands)
    assert owned == list(range(1, len(task.commands) - 1))  # all but BEGIN and END
    for layer in task.layers:
        assert all(task.notes[command].startswith(layer.name) for command in layer.commands)
    loud = {name: 40 * array for name, array in first(graph).items()}
    frame = run(program, task, loud)
    assert sum(frame.saturations.values()) > 0
    assert frame.saturations.keys() <= set(range(len(task.layers)))


def test_formats_are_those_of_the_compiler():
    graph = transformer(layers=1)
    quantised_ = quantised(graph, **{"layer0.fc2": "w4a16"})
    layers = dict(zip(graph.nodes(), schedule(quantised_, Config()).tasks[0].layers, strict=True))
    for node, form in quantised_.formats.items():
        assert (layers[node].width, layers[node].scale) == (form.width, form.scale)
        seen = quantised_.calibration.observed(node, "output")
        assert (layers[node].low, layers[node].high) == (seen.low, seen.high)
        assert seen.low < 0 < seen.high
    assert {layer.name: layer.precision for layer in layers.values()} == {
        **dict.fromkeys(("x", "position", "y"), ""),
        **dict.fromkeys(("embed", "layer0.qkv", "layer0.attention", "layer0.proj", "layer0.fc1", "head"), "w8a8"),
        "layer0.fc2": "w4a16",
    }


# --- Noise ---


def disturbed(graph, program, noises):
    """A budget of one frame: the machine is exact but for the noise of some layers, by name."""
    [task], sample = program.tasks, first(graph)
    budget, values = Budget(graph, task), exact(graph, sample)
    frame = Frame()
    numbers = {layer.name: number for number, layer in enumerate(task.layers)}
    for number, layer in enumerate(task.layers):
        if layer.pieces:
            frame.values[number] = values[number] + noises.get(layer.name, np.float32(0))
    budget.add(sample, frame)
    return {name: budget.layers[number] for name, number in numbers.items()}, budget


def exactly_loaded(graph):
    """A Program whose inputs and constants lose nothing worth telling."""
    return compiled(graph, "w16a16")


def test_noise_of_one_layer_is_its_own():
    b = Builder()
    x = b.matmul("a", b.input(8, 16), 16)
    graph = one(b.matmul("c", b.matmul("b", x, 16), 16))
    noise = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32) * 0.1
    # The layers behind the noisy one are exact on what they read: the noise goes through them.
    nodes = list(graph.nodes())
    middle, last = nodes[2], nodes[3]
    layers, budget = disturbed(graph, exactly_loaded(graph), {"b": noise, "c": noise @ last.weight.T})
    wanted = 10 * np.log10(np.square(exact(graph, first(graph))[2]).sum() / np.square(noise).sum())
    assert layers["b"].alone.quality.median == pytest.approx(wanted, abs=0.02)
    assert layers["b"].accumulated.quality == layers["b"].alone.quality
    assert middle.name == "b"
    for name in ("a", "c"):
        assert layers[name].alone.quality.median is None or layers[name].alone.quality.median > 80
    assert layers["c"].accumulated.quality.median == pytest.approx(budget.output.quality.median)
    assert layers["b"].at_output.quality.median == pytest.approx(budget.output.quality.median, abs=0.05)
    assert dict(zip(layers, budget.shares(), strict=True))["b"] > 0.99
    assert sum(budget.shares()) == pytest.approx(1)


def test_quality_is_of_frames():
    noise = Noise()
    for level in (1e-1, 1e-2, 1e-3):
        noise.add([np.ones(10, np.float32)], [np.ones(10, np.float32) + np.float32(level)])
    assert (noise.quality.median, noise.quality.worst) == (pytest.approx(40, abs=0.01), pytest.approx(20, abs=0.01))
    silent = Noise()
    silent.add([np.ones(3, np.float32)], [np.ones(3, np.float32)])
    assert silent.quality.median is silent.quality.worst is None


def test_nothing_lost_has_no_shares():
    graph = one(Builder().matmul("a", Builder().input(8, 16), 16))
    _, budget = disturbed(graph, exactly_loaded(graph), {})
    for measured in budget.layers:
        measured.at_output.noise[:] = [0.0]
    assert budget.shares() == [0.0] * 3


# --- Routing ---


def test_tokens_that_go_elsewhere():
    graph = transformer(layers=2, experts=4)
    program = compiled(graph, "w16a16")
    [task], sample = program.tasks, first(graph)
    frame = run(program, task, sample)
    [number] = frame.chosen
    budget = Budget(graph, task)
    budget.add(sample, frame)
    before = budget.layers[number].routing
    assert (before.tokens, before.otherwise, before.alone, before.gap) == (20, 0, 0, None)
    chosen = frame.chosen[number].copy()
    assert (chosen.sum(axis=1) == 2).all()
    for token in (3, 7):  # to the two other experts
        chosen[token] = ~chosen[token]
    frame.chosen[number] = chosen
    budget.add(sample, frame)
    routing = budget.layers[number].routing
    assert (routing.tokens, routing.otherwise, routing.alone) == (40, 2, 2)
    ranked = -np.sort(-logits_of(graph, sample), axis=1)
    gaps = ranked[:, 1] - ranked[:, 2]
    assert routing.gap == pytest.approx(np.median(gaps[[3, 7]]))
    assert routing.widest == pytest.approx(gaps[[3, 7]].max())
    assert routing.usual == pytest.approx(np.median(gaps))


def logits_of(graph, sample):
    found = []
    evaluate(graph, sample, lambda _, what, array: found.append(array) if what == "logits" else None)
    return found[0]


def test_experts_have_the_models_numbers():
    graph = transformer(layers=2, experts=5)
    program = compiled(graph, "w16a16")
    [task], sample = program.tasks, first(graph)
    assert task.experts != (tuple(range(5)),)
    [chosen] = run(program, task, sample).chosen.values()
    order = np.argsort(-logits_of(graph, sample), axis=1)[:, :2]
    assert (np.take_along_axis(chosen, order, axis=1)).all()


# --- Programs that do not say ---


def test_another_model_is_refused():
    graph = transformer(layers=2, experts=3)
    [task] = compiled(graph, "w8a8").tasks
    check_layers(graph, task)
    with pytest.raises(InputError, match="task 'main' keeps no layers: the Program was made before there were any"):
        check_layers(graph, replace(task, layers=()))
    for other in (transformer(layers=1), transformer(layers=2, experts=3, dim=16)):
        with pytest.raises(InputError, match="task 'main' must have the model's layers, and has others: compile"):
            check_layers(other, task)


def test_of_several_outputs():
    b = Builder()
    x = b.matmul("a", b.input(8, 16), 16)
    graph = Graph("main", (b.output("y", b.matmul("b", x, 4)), b.output("z", b.matmul("c", x, 5))))
    near(graph, compiled(graph, "w16a16"))
