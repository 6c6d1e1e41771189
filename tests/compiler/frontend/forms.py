"""Models written as functions, captured, evaluated and compared with torch."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.graph import Graph, evaluate

DIM, TOKENS = 16, 6


def randomise(module: nn.Module) -> nn.Module:
    """No parameter at an initial zero or one, so that none can be forgotten."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def check(module: nn.Module, *inputs: Any, tasks: tuple[str, ...] | None = None) -> list[Graph]:
    """Capture, evaluate and compare with torch to 1e-4; return the graphs."""
    randomise(module)
    graphs = capture(module, inputs, tasks=tasks)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    for number, graph in enumerate(graphs):
        arguments = [value[:1] if isinstance(value, Tensor) else number for value in inputs]
        with torch.no_grad():
            expected = module.eval()(*arguments)
        names = [name for name in inspect.signature(module.forward).parameters if name != "task"]
        if len(names) < len(tensors) or names == ["inputs"]:
            names = [f"input{i}" for i in range(len(tensors))]
        actual = evaluate(graph, {name: value[0].numpy() for name, value in zip(names, tensors, strict=True)})
        compare(expected, actual)
    return graphs


def compare(expected: Any, actual: dict[str, Any]) -> None:
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        parts = list(expected.values())
    else:
        parts = list(expected) if isinstance(expected, tuple) else [expected]
    assert len(actual) == len(parts)
    for result, part in zip(actual.values(), parts, strict=True):
        assert result.shape == part.shape[1:]
        np.testing.assert_allclose(result, part[0].numpy(), atol=1e-4, rtol=1e-4)


class Function(nn.Module):
    """A forward given as a function of the module's parts and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def embedded(forward: Callable[..., Any], **parts: Any) -> tuple[nn.Module, Tensor]:
    """The function on tokens that a linear layer made, so that no operand is an input."""
    first = nn.Linear(DIM, DIM)
    module = Function(lambda m, x: forward(m, m.first(x)), first=first, **parts)
    return module, torch.randn(2, TOKENS, DIM)


def let(value: Tensor, use: Callable[[Tensor], Any]) -> Any:
    """A value used twice."""
    return use(value)


def kinds(graph: Graph) -> list[str]:
    return [type(node).__name__ for node in graph.nodes()]
