"""What evaluation tells of a graph, and what it asks for."""

import numpy as np
import pytest
import torch
from torch import nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.graph import evaluate
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Moe
from tests.compiler.frontend.forms import randomise
from tests.compiler.frontend.models import Vision


def test_evaluate_shows_every_intermediate():
    [graph, _] = capture(randomise(Vision()), (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    seen: dict[object, dict[str, np.ndarray]] = {}
    evaluate(
        graph,
        {"image": np.ones((3, 8, 16), np.float32)},
        lambda node, what, x: seen.setdefault(node, {}).update({what: x}),
    )
    quantities = {
        Input: {"output"},
        Constant: {"output"},
        Matmul: {"operand", "preactivation", "result", "output"},
        Attention: {"scores", "probabilities", "output"},
        Moe: {"operand", "logits", "preactivation", "hidden", "result", "output", "choice"},
    }
    for node in graph.nodes():
        if type(node) in quantities:
            assert set(seen[node]) == quantities[type(node)]
            assert seen[node]["output"].shape == node.shape
    [moe] = [node for node in seen if isinstance(node, Moe)]
    assert seen[moe]["choice"].shape == (9, 2)
    assert seen[moe]["hidden"].shape == (18, 24)
    assert all(value.dtype in (np.float32, np.int64) for values in seen.values() for value in values.values())


def test_evaluate_checks_its_inputs():
    [graph] = capture(nn.Linear(4, 4), (torch.randn(1, 3, 4),))
    with pytest.raises(ValueError, match=r"must have shape \(3, 4\), not \(4, 3\)"):
        evaluate(graph, {"input": np.zeros((4, 3), np.float32)})
