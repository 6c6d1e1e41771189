"""Mixtures of experts, however the routing is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.nodes import Moe
from patchloom.compiler.problems import CaptureError
from tests.compiler.frontend.forms import DIM, TOKENS, Function, check, embedded
from tests.compiler.frontend.models import Experts


class Mixture(nn.Module):
    """Experts and gates; subclasses route."""

    def __init__(self, top_k: int = 2, experts: int = 4, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.top_k = top_k
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 24), activation(), nn.Linear(24, DIM)) for _ in range(experts)
        )
        self.gate = nn.Linear(DIM, experts, bias=False)

    def outputs(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts], -2)


class SelectedThenSoftmax(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        logits, chosen = self.gate(x).topk(self.top_k)
        outputs = self.outputs(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (logits.softmax(-1)[..., None] * outputs).sum(-2)


class SoftmaxThenSelected(Mixture):
    """Everything computed and masked."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        mask = torch.zeros_like(scores).scatter(-1, scores.topk(self.top_k).indices, 1.0)
        return torch.einsum("...e,...ed->...d", scores * mask, self.outputs(x))


class Peaked(SelectedThenSoftmax):
    """Selects three experts, of which the third weighs less than what a misfit may be."""

    def __init__(self) -> None:
        super().__init__(top_k=3, experts=5)
        self.gate.bias = nn.Parameter(torch.tensor([12.0, 11.0, 1.0, -12.0, -12.0]))


class Renormalised(Mixture):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, chosen = self.gate(x).softmax(-1).topk(self.top_k)
        weights = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, scores / scores.sum(-1, True))
        return (weights[..., None] * self.outputs(x)).sum(-2), weights.var()


class PerToken(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        result = []
        for token in x.flatten(0, 1):
            logits, chosen = self.gate(token).topk(self.top_k)
            parts = [s * self.experts[int(e)](token) for s, e in zip(logits.softmax(0), chosen, strict=True)]
            result.append(torch.stack(parts).sum(0))
        return torch.stack(result).reshape(x.shape)


class RawGate(Mixture):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = None
        self.w_gate = nn.Parameter(torch.zeros(2, DIM, len(self.experts)))

    def forward(self, x: Tensor) -> Tensor:
        logits, chosen = (x @ self.w_gate[1]).topk(self.top_k)
        weights = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, logits.softmax(-1))
        return (weights[..., None] * self.outputs(x)).sum(-2)


class Router(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, experts)

    def forward(self, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        logits, chosen = self.layer(x).topk(top_k)
        return logits.softmax(-1), chosen


class Nested(nn.Module):
    """Experts in a module that gets the choice, the gate in another."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = Mixture()
        self.bank.gate = None
        self.router = Router(4)

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x, 2)
        outputs = self.bank.outputs(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (scores[..., None] * outputs).sum(-2)


def as_block(mixture: nn.Module) -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        result = m.mixture(m.norm(x))
        return x + (result[0] if isinstance(result, tuple) else result)

    return embedded(forward, mixture=mixture, norm=nn.LayerNorm(DIM))


MIXTURES: dict[str, tuple[Callable[[], nn.Module], int, str, str]] = {
    "selected then softmax": (SelectedThenSoftmax, 2, "softmax_of_selected", "gelu"),
    "softmax then selected": (SoftmaxThenSelected, 2, "softmax_of_all", "gelu"),
    "renormalised, with a loss": (Renormalised, 2, "softmax_of_selected", "gelu"),
    "token by token": (PerToken, 2, "softmax_of_selected", "gelu"),
    "one of three": (lambda: SoftmaxThenSelected(top_k=1, experts=3), 1, "softmax_of_all", "gelu"),
    "three of five": (lambda: SelectedThenSoftmax(top_k=3, experts=5), 3, "softmax_of_selected", "gelu"),
    "three of five, the third hardly felt": (Peaked, 3, "softmax_of_selected", "gelu"),
    "all": (lambda: SoftmaxThenSelected(top_k=4), 4, "softmax_of_selected", "gelu"),
    "relu": (lambda: SelectedThenSoftmax(activation=nn.ReLU), 2, "softmax_of_selected", "relu"),
    "relu6": (lambda: SelectedThenSoftmax(activation=nn.ReLU6), 2, "softmax_of_selected", "relu6"),
    "raw gate matrices": (RawGate, 2, "softmax_of_selected", "gelu"),
    "experts in a module of their own": (Nested, 2, "softmax_of_selected", "gelu"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture(name: str):
    make, top_k, scoring, activation = MIXTURES[name]
    module, x = as_block(make())
    [graph] = check(module, x)
    [moe] = [node for node in graph.nodes() if isinstance(node, Moe)]
    assert (moe.top_k, moe.scoring, moe.activation) == (top_k, scoring, activation)
    assert moe.epsilon is not None
    assert moe.residual is not None


def test_mixture_called_once_per_task_with_keyword():
    module = Function(lambda m, x, task: m.mixture(m.mixture(x, task=0), task=task), mixture=Experts(DIM, 24, 4, 2, 3))
    graphs = check(module, torch.randn(2, TOKENS, DIM), 0, tasks=("a", "b", "c"))
    gates = [[node.gate_weight for node in graph.nodes() if isinstance(node, Moe)] for graph in graphs]
    assert all(first is gates[0][0] for first, _ in gates)
    assert len({id(second) for _, second in gates}) == 3


@pytest.mark.parametrize("zeros", [False, True])
def test_a_gate_that_always_ties_is_told(zeros: bool):
    module = SelectedThenSoftmax()
    with torch.no_grad():
        module.gate.weight[2] = module.gate.weight[0]
        if zeros:
            module.gate.weight.zero_()
    with pytest.raises(CaptureError, match=r"has the same weights for experts 0 and [12]: all tokens are a tie"):
        capture(module, (torch.randn(1, 6, DIM),))


class Limited(Mixture):
    """An expert takes no more than so many tokens of a batch."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x).reshape(-1, len(self.experts))
        values, chosen = logits.topk(self.top_k)
        scores = torch.zeros_like(logits).scatter(-1, chosen, values.softmax(-1))
        scores = torch.where((scores > 0).cumsum(0) <= self.capacity, scores, torch.zeros_like(scores))
        return torch.einsum("...e,...ed->...d", scores.reshape(*x.shape[:-1], -1), self.outputs(x))


@pytest.mark.parametrize("capacity", [TOKENS // 2, TOKENS - 1, TOKENS])
def test_a_limit_of_tokens_is_found_and_nothing_else_told(capacity: int):
    """Even one that no picture alone reaches: the block is not the function of a token that it seems to be."""
    module, x = as_block(Limited(capacity))
    with pytest.raises(CaptureError) as refusal:
        capture(module, (x,))
    [problem] = refusal.value.problems
    assert "Limited.forward" in problem
