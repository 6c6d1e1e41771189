"""Every form of patches, class tokens and positions, compared with torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.frontend.forms import DIM, Function, check, kinds, let


def tokens_of(m: Any, x: Tensor) -> Tensor:
    return m.patch(x).flatten(2).transpose(1, 2)


def with_class(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.cls.expand(len(x), -1, -1), x], dim=1)


EMBEDDINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "plain": tokens_of,
    "positions": lambda m, x: tokens_of(m, x) + m.pos[:, 1:],
    "class token then positions": lambda m, x: with_class(m, tokens_of(m, x)) + m.pos,
    "positions then class token": lambda m, x: with_class(m, m.pos[:, 1:] + tokens_of(m, x)),
    "class token last": lambda m, x: torch.cat([tokens_of(m, x), m.cls], 1) + m.pos,
    "class token only": lambda m, x: with_class(m, tokens_of(m, x)),
    "two class tokens, computed positions": lambda m, x: with_class(m, with_class(m, tokens_of(m, x)))
    + torch.cat([m.pos, m.pos[:, :1] * 2], 1),
    "registers behind the class token": lambda m, x: let(
        with_class(m, tokens_of(m, x)) + m.pos, lambda y: torch.cat([y[:, :1], m.pos[:, :2], y[:, 1:]], 1)
    ),
    "normalised patches": lambda m, x: with_class(m, m.norm(tokens_of(m, x))) + m.pos,
    "image normalised": lambda m, x: with_class(m, tokens_of(m, (x - m.mean) / m.std)) + m.pos,
    "positions as image": lambda m, x: (m.patch(x) + m.pos[:, 1:].reshape(1, 16, 2, 4)).flatten(2).transpose(1, 2),
    "unfolded by hand": lambda m, x: m.flat(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3))
    .flatten(1, 2),
    "overlapping": lambda m, x: m.overlapping(x).flatten(2).transpose(1, 2),
    "reordered": lambda m, x: with_class(m, tokens_of(m, x).flip(1)) + m.pos,
}  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding(name: str):
    """Read by a norm, a residual and a head, as the first block does."""
    module = Function(
        lambda m, x: let(EMBEDDINGS[name](m, x), lambda y: y + m.head(m.last(y))),
        patch=nn.Conv2d(3, DIM, 4, 4),
        overlapping=nn.Conv2d(3, DIM, 5, 4, padding=2),
        flat=nn.Linear(48, DIM),
        cls=nn.Parameter(torch.zeros(1, 1, DIM)),
        pos=nn.Parameter(torch.zeros(1, 9, DIM)),
        norm=nn.LayerNorm(DIM),
        mean=nn.Parameter(torch.zeros(1, 3, 1, 1)),
        std=nn.Parameter(torch.ones(1, 3, 1, 1)),
        last=nn.LayerNorm(DIM),
        head=nn.Linear(DIM, DIM),
    )
    [graph] = check(module, torch.randn(1, 3, 8, 16))
    assert kinds(graph).count("Matmul") <= (3 if name == "normalised patches" else 2)
