"""A whole model: patches, class token, attention, experts, a head per task."""

import torch
from torch import Tensor, nn

from tests.compiler.frontend.forms import DIM


class Experts(nn.Module):
    """A mixture of experts as a loop, one gate per task."""

    def __init__(self, dim: int, hidden: int, experts: int, top_k: int, tasks: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.gates = nn.ModuleList(nn.Linear(dim, experts) for _ in range(tasks))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim), nn.Dropout(0.1))
            for _ in range(experts)
        )

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        logits, chosen = self.gates[task](tokens).topk(self.top_k)
        scores = logits.softmax(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            if len(rows) == 0:
                continue
            out.index_add_(0, rows, scores[rows, rank, None] * expert(tokens[rows]))
        return out.reshape(x.shape)


class Attend(nn.Module):
    """Fused qkv, attention written out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.drop = nn.Dropout(0.1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = self.drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attend(dim, heads)
        self.mlp = mlp

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return x + (self.mlp(y, task) if isinstance(self.mlp, Experts) else self.mlp(y))


class Vision(nn.Module):
    """Patches, class token, positions, blocks, one head per task, an image out."""

    def __init__(self, dim: int = DIM, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.zeros(1, 9, dim))
        dense = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, dense), Block(dim, heads, Experts(dim, 24, 4, 2, 2))])
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList([nn.Linear(dim, 5 * 16), nn.Linear(dim, 16)])

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        for block in self.blocks:
            x = block(x, task)
        x = self.heads[task](self.norm(x)[:, 1:])
        return x.reshape(len(x), 2, 4, -1, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, 8, 16)
