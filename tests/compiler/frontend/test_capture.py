"""Whole models, what they leave behind, and which arguments are accepted."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.graph import evaluate
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
    module.norm = nn.RReLU()
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


@dataclass
class Result:
    last: Tensor
    hidden: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


class Scores(NamedTuple):
    logits: Tensor
    norms: Tensor


RECORDS: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "dataclass": (lambda a, b: Result(a, (b, a)), ["last", "hidden.out0", "hidden.out1"]),
    "in a dictionary": (lambda a, b: {"head": Result(a), "more": [b]}, ["head.last", "more.out0"]),
    "named tuple": (Scores, ["logits", "norms"]),
    "nothing beside": (lambda a, b: {"a": a, "b": None, "c": (b, None)}, ["a", "c.out0"]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_results_in_records(name: str):
    make, names = RECORDS[name]
    module = Function(lambda m, x: make(m.a(x), m.b(x)), a=nn.Linear(DIM, 3), b=nn.Linear(DIM, 5))
    x = torch.randn(1, 4, DIM)
    [graph] = capture(module, (x,))
    values = evaluate(graph, {"input0": x[0].numpy()})
    assert list(values) == names
    with torch.no_grad():
        leaves = [leaf for leaf in tree_leaves(module_result(make(module.a(x), module.b(x)))) if leaf is not None]
    for value, leaf in zip(values.values(), leaves, strict=True):
        np.testing.assert_allclose(value, leaf[0].numpy(), atol=1e-5)
    assert "forward" not in module.__dict__


class Cache:
    """Of keys and values, as decoders keep them for the next word."""


def test_state_for_the_next_call_is_left_out_and_told():
    module = Function(lambda m, x: {"last": m.a(x), "cache": Cache()}, a=nn.Linear(DIM, 3))
    x = torch.randn(1, 4, DIM)
    with pytest.warns(UserWarning, match="'cache' is left out of the outputs: Cache is no tensor"):
        [graph] = capture(module, (x,))
    assert list(evaluate(graph, {"input0": x[0].numpy()})) == ["last"]


def module_result(value: Any) -> Any:
    """Records as tuples of what is in them."""
    if isinstance(value, Result):
        return value.last, value.hidden
    return {k: module_result(v) for k, v in value.items()} if isinstance(value, dict) else value


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"near": nn.Linear(DIM, 3), "far": nn.Linear(DIM, 5)})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](x)


def test_tasks_by_name():
    module, x = ByName(), torch.randn(1, 4, DIM)
    graphs = capture(module, (x, "near"), tasks=("far", "near"))
    assert [graph.task for graph in graphs] == ["far", "near"]
    for graph in graphs:
        value = evaluate(graph, {"x": x[0].numpy()})[graph.task]
        np.testing.assert_allclose(value, module(x, graph.task)[0].detach().numpy(), atol=1e-5)


def test_inputs_of_different_length():
    """Cross-attention: queries of one input, keys and values of another, both returned, as is an early exit."""

    def forward(m: Any, x: Tensor, memory: Tensor) -> Any:
        early = m.exit(m.embed(x))
        attended, _ = m.attend(m.embed(x), m.embed(memory), m.embed(memory), need_weights=False)
        return {"early": early, "late": m.exit(attended), "tokens": (attended, m.embed(memory))}

    module = Function(
        forward, embed=nn.Linear(6, DIM), exit=nn.Linear(DIM, 3), attend=nn.MultiheadAttention(DIM, 2, batch_first=True)
    )
    x, memory = torch.randn(1, 4, 6), torch.randn(1, 7, 6)
    [graph] = capture(module, (x, memory))
    values = evaluate(graph, {"input0": x[0].numpy(), "input1": memory[0].numpy()})
    assert {name: value.shape for name, value in values.items()} == {
        "early": (4, 3), "late": (4, 3), "tokens.out0": (4, DIM), "tokens.out1": (7, DIM)
    }  # fmt: skip
    with torch.no_grad():
        expected = tree_leaves(forward(module.eval(), x, memory))
    for value, leaf in zip(values.values(), expected, strict=True):
        np.testing.assert_allclose(value, leaf[0].numpy(), atol=1e-4)


ARGUMENTS: dict[str, tuple[tuple[Any, ...], tuple[str, ...] | None, str]] = {
    "int without tasks": ((torch.ones(1, 2), 0), None, "pass tasks="),
    "tasks without int": ((torch.ones(1, 2),), ("a",), "need forward to take the task as an int or a str"),
    "two ints": ((torch.ones(1, 2), 0, 1), ("a",), "at most one int or str, the task, not 2"),
    "no names": ((torch.ones(1, 2), 0), (), "at least one"),
    "equal names": ((torch.ones(1, 2), 0), ("a", "a"), "different names"),
    "integers": ((torch.ones(1, 2, dtype=torch.int64),), None, "must be a float tensor"),
    "text without tasks": ((torch.ones(1, 2), "a"), None, "pass tasks="),
    "an object": ((object(),), None, "must be a float tensor with a batch dimension, not object"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_checked(name: str):
    inputs, tasks, message = ARGUMENTS[name]
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(2, 2), inputs, tasks=tasks)
