"""Layers that the small instances share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.row import IMAGE, Row

DIM, HEADS, SIDE = 32, 4, 4
TOKENS = SIDE * SIDE


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape))


class Patches(nn.Module):
    """An image of SIDE x SIDE patches, or a coarser one, to tokens with positions."""

    def __init__(self, patch: int = 8, dim: int = DIM, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, dim, patch, patch)
        self.position = learned(1, (size // patch) ** 2, dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.cut(image).flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Of x to y, or to itself."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        k, v = self.kv(x if y is None else y).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (self.q(x), k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))


class Mlp(nn.Sequential):
    def __init__(self, dim: int = DIM, out: int | None = None, hidden: int | None = None) -> None:
        hidden = hidden or 2 * dim
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out or dim))


class Block(nn.Module):
    """Pre-norm; attention and MLP may be others."""

    def __init__(self, dim: int = DIM, attention: nn.Module | None = None, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = attention or Attention(dim), mlp or Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Post-norm layer of DETR: queries see each other, then the memory."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.own, self.cross, self.mlp = Attention(dim), Attention(dim), Mlp(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        queries = self.norm1(queries + self.own(queries))
        queries = self.norm2(queries + self.cross(queries, memory))
        return self.norm3(queries + self.mlp(queries))


def encoder(layers: int = 2, dim: int = DIM) -> nn.Sequential:
    return nn.Sequential(*(Block(dim) for _ in range(layers)), nn.LayerNorm(dim))


def as_map(tokens: Tensor, side: int = SIDE) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def as_tokens(grid: Tensor) -> Tensor:
    return grid.flatten(2).transpose(1, 2)


def published(
    name: str, stands_for: str, make: Callable[[], nn.Module], *shapes: tuple[int, ...], heart: str = "",
    tasks: tuple[str, ...] = (),
) -> Row:  # fmt: skip
    return Row(f"published/{name}", stands_for, make, shapes or (IMAGE,), tasks, heart)
