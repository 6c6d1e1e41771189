"""Whole models, what they leave behind, and which arguments are accepted."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.nodes import Input, Matmul, Moe
from patchloom.compiler.problems import CaptureError
from tests.compiler.frontend.forms import DIM, Function, check, kinds
from tests.compiler.frontend.models import Vision


def test_vision_transformer_with_experts_and_tasks():
    graphs = check(Vision(), torch.randn(2, 3, 8, 16), 0, tasks=("segmentation", "depth"))
    assert [graph.task for graph in graphs] == ["segmentation", "depth"]
    assert [[output.name for output in graph.outputs] for graph in graphs] == [["segmentation"], ["depth"]]
    first, second = ([node for node in graph.nodes() if isinstance(node, Matmul | Moe)] for graph in graphs)
    for a, b in zip(first[:-1], second[:-1], strict=True):
        if isinstance(a, Moe) and isinstance(b, Moe):
            assert a.gate_weight is not b.gate_weight
            assert all(x.w1 is y.w1 and x.b2 is y.b2 for x, y in zip(a.experts, b.experts, strict=True))
        else:
            assert a.weight is b.weight
            assert a.bias is b.bias


def test_capture_leaves_the_module_as_it_was():
    module = Vision().train()
    module.blocks[0].eval()
    before = copy.deepcopy(module.state_dict())
    flags = [part.training for part in module.modules()]
    capture(module, (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    with pytest.raises(CaptureError):
        capture(module, (torch.randn(1, 3, 8, 16), 0))
    module.norm = nn.InstanceNorm1d(9)
    with pytest.raises(CaptureError):
        capture(module, (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    flags[-4:-3] = [True]
    assert [part.training for part in module.modules()] == flags
    assert all("forward" not in part.__dict__ for part in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items() if "norm." not in name)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_transformer_encoder(norm_first: bool, activation: str):
    layer = nn.TransformerEncoderLayer(
        DIM, 2, 32, activation=activation, batch_first=True, norm_first=norm_first, dropout=0.1
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    patch = nn.Conv2d(3, DIM, 4, 4)
    module = Function(
        lambda m, x: m.encoder(m.patch(x).flatten(2).transpose(1, 2) + m.pos),
        encoder=encoder, patch=patch, pos=nn.Parameter(torch.zeros(1, 8, DIM)),
    )  # fmt: skip
    [graph] = check(module, torch.randn(1, 3, 8, 16))
    assert kinds(graph).count("Attention") == 2


def test_several_inputs_keep_their_names():
    module = nn.Module()
    module.a, module.b = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(colour: Tensor, depth: Tensor) -> Tensor:
        return module.a(colour) + module.b(depth)

    module.forward = forward  # type: ignore[method-assign]
    [graph] = check(module, torch.randn(2, 3, 4), torch.randn(2, 3, 6))
    assert {node.name for node in graph.nodes() if isinstance(node, Input)} == {"colour", "depth"}


ARGUMENTS: dict[str, tuple[tuple[Any, ...], tuple[str, ...] | None, str]] = {
    "int without tasks": ((torch.ones(1, 2), 0), None, "pass tasks="),
    "tasks without int": ((torch.ones(1, 2),), ("a",), "need forward to take the task as an int"),
    "two ints": ((torch.ones(1, 2), 0, 1), ("a",), "at most one int, the task, not 2"),
    "no names": ((torch.ones(1, 2), 0), (), "at least one"),
    "equal names": ((torch.ones(1, 2), 0), ("a", "a"), "different names"),
    "integers": ((torch.ones(1, 2, dtype=torch.int64),), None, "must be a float tensor"),
    "text": (("a",), None, "must be a float tensor with a batch dimension, not str"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_checked(name: str):
    inputs, tasks, message = ARGUMENTS[name]
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(2, 2), inputs, tasks=tasks)
