"""Elements in another order, from a torch module to every engine: rectangles are gathered, bit for bit alike."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import patchloom
from patchloom.compiler.graph import evaluate
from patchloom.compiler.node import Evaluation, View, whole
from patchloom.compiler.nodes import Matmul
from patchloom.compiler.passes.pieces import mixed
from tests.compiler.graphs import Builder, one, run, samples, sqnr
from tests.compiler.graphs import compiled as compile_graph
from tests.forms import DIM, TOKENS, Form, compiled
from tests.machine import MACHINE, agreed

SHUFFLED = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))

VIEWS: dict[str, Callable[[Form, Tensor], Tensor]] = {
    "heads as tokens": lambda _, x: x.unflatten(2, (4, 4)).flatten(1, 2),
    "heads as tokens, one above another": lambda _, x: x.unflatten(2, (4, 4)).transpose(1, 2).flatten(1, 2),
    "tokens beside one another": lambda _, x: x.view(-1, 3, 4, DIM).transpose(2, 3).flatten(2),
    "channels as tokens, in lines": lambda _, x: x.mT.unflatten(2, (3, 4)).flatten(1, 2),
    "another for each": lambda _, x: torch.cat([x[:, ::3], x[:, 1::2].flip(2), x[:, SHUFFLED].roll(3, 2)], 1),
    "within a softmax": lambda _, x: (2 * x).softmax(2).unflatten(2, (8, 2)).transpose(1, 2).flatten(1, 2),
    "a softmax turned and spread": lambda _, x: x * x.mT[:, 3:5].softmax(2).repeat_interleave(8, 1).mT,
    "within products": lambda m, x: (x @ x.mT @ m.qkv(x)[..., :DIM] / 9).unflatten(2, (2, 8))[..., 3:].flatten(1, 2),
    "joined alternately": lambda m, x: torch.stack([x, m.qkv(x)[..., DIM : 2 * DIM]], 2).flatten(1, 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_all_engines_agree(name: str):
    program, images, expected = compiled(lambda: Form(VIEWS[name]), "w16a16")
    assert sqnr(expected, agreed(program, images, "hls", "rtl").outputs["main"]) > 60


def random_view(seed: int) -> View:
    """Of two layers: whole rows or columns moved, runs of them, or some that are zero."""
    rng, b = np.random.default_rng(seed), Builder(seed)
    rows, features = int(rng.integers(2, 12)), int(rng.integers(2, 24))
    bases = [b.matmul(name, b.input(rows, 20, f"of_{name}"), features) for name in ("x", "y")]
    index = np.arange(2 * rows * features).reshape(2 * rows, features)
    index = index[rng.permutation(len(index))] if rng.random() < 0.5 else index
    divisors = [width for width in range(1, features + 1) if features % width == 0]
    index = index.reshape(-1, int(rng.choice(divisors)))
    index = index[rng.permutation(len(index))] if rng.random() < 0.5 else index
    index = index.T if rng.random() < 0.5 else index
    zeros = rng.random(len(index)) < rng.choice([0, 0.2])
    return View(tuple((base, 1.0) for base in bases), np.where(zeros[:, None], -1, index))


@pytest.mark.parametrize("seed", range(40))
def test_any_view(seed: int):
    view = random_view(seed)
    made = mixed(view, view.terms[0][0], lambda part: part)
    values = [np.random.default_rng(seed).standard_normal(base.shape).astype(np.float32) for base, _ in view.terms]
    expected = np.concatenate([*(value.reshape(-1) for value in values), [0]])[view.index]
    at = Evaluation({}, lambda *_: None)
    at.values.update((base, value) for (base, _), value in zip(view.terms, values, strict=True))
    for node in (*(base for base in made.inputs if base not in at.values), made):
        at.values[node] = node.evaluate(at)
    assert np.array_equal(at.values[made], expected)


@pytest.mark.parametrize("seed", range(8))
def test_programs(seed: int):
    view = random_view(seed)
    made = mixed(view, view.terms[0][0], lambda part: part)
    weight, bias = Builder().weight(5, made.shape[1]), np.zeros(5, np.float32)
    graph = one(Matmul(name="out", x=whole(made), weight=weight, bias=bias))
    seen = {name: x[0] for name, x in samples(graph, 8).items()}  # calibration's, so that nothing saturates
    made_of_it = run(compile_graph(graph, "w16a16"), seen)
    assert sqnr(evaluate(graph, seen)["y"], made_of_it["y"]) > 60


def test_a_softmax_of_pieces():
    """Pieces begin within its head; calibrated with the frames themselves, one of which is beyond all others."""
    torch.manual_seed(0)
    model = Form(lambda _, x: torch.cat([x[:, :6, :6], x[:, 6:, 3:12]], 2).softmax(2)).eval()
    frames = torch.randn(18, TOKENS, DIM)
    with torch.no_grad():
        expected = model(frames[:2]).numpy()
    program = patchloom.compile(model, (frames[:1],), calibration=frames, config=MACHINE, precision="w16a16")
    assert sqnr(expected, agreed(program, frames[:2], "hls", "rtl").outputs["main"]) > 60
