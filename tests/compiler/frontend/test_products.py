"""Products of two tensors that depend on the input, and softmax, outside of attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.frontend.forms import DIM, TOKENS, check, embedded, kinds


def heads(m: Any, x: Tensor) -> Tensor:
    """q, k, v; of two heads."""
    return m.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m, x)
    return joined(q.relu() @ (k.relu().mT @ v))


def efficient_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m, x)
    return joined(q.softmax(-1) @ (k.softmax(-2).mT @ v))


def over_channels(m: Any, x: Tensor) -> Tensor:
    q, k, v = (part.mT for part in heads(m, x))
    return joined(((q @ k.mT * 0.3).softmax(-1) @ v).mT)


def masks(m: Any, x: Tensor) -> Tensor:
    """Queries times pixels."""
    return m.linear(x[:, :2]) @ m.linear(x[:, 2:]).mT


def soft_routing(m: Any, x: Tensor) -> Tensor:
    logits = x @ m.slots
    return logits.softmax(-1) @ m.linear(logits.softmax(1).mT @ x)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "linear attention": linear_attention,
    "efficient attention": efficient_attention,
    "attention over channels": over_channels,
    "masks": masks,
    "masks of a negative scale": lambda m, x: masks(m, x) * -0.5,
    "negative factor": lambda m, x: (x * -0.5) @ m.linear(x).mT,
    "einsum": lambda m, x: torch.einsum("bqc,bpc->bqp", m.linear(x), x),
    "soft routing": soft_routing,
    "softmax": lambda m, x: x.softmax(-1),
    "softmax of tokens": lambda m, x: (x * -2).softmax(1),
    "scores multiplied": lambda m, x: ((x @ m.linear(x).mT) * torch.arange(TOKENS)).softmax(-1) @ x,
    "a layer between": lambda m, x: m.linear((x @ m.linear(x).mT).softmax(-1) @ x) @ x.mT,
}


@pytest.mark.parametrize("name", FORMS)
def test_products(name: str):
    module, x = embedded(
        FORMS[name], linear=nn.Linear(DIM, DIM), qkv=nn.Linear(DIM, 3 * DIM), slots=nn.Parameter(torch.randn(DIM, 4))
    )
    [graph] = check(module, x)
    assert {"Products", "Shares", "Attention"} & set(kinds(graph))
