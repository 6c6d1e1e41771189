"""A small multi-task Vision Transformer with a mixture of experts, in plain PyTorch.

One trunk sees the picture, one head per task reads it. The experts are shared by all tasks; each task has
its own gate in every mixture layer and so sends the same tokens to other experts.
"""

import torch
from torch import Tensor, nn

TASKS = ("segmentation", "depth")

HEIGHT, WIDTH, PATCH = 64, 128, 8
CLASSES = 11


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Linear, GELU, Linear; the dense feed-forward block and also one expert."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MixtureOfExperts(nn.Module):
    """Sends each token to its `top_k` best experts, chosen by the gate of the task."""

    def __init__(self, dim: int, hidden: int, experts: int, top_k: int, tasks: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.gates = nn.ModuleList(nn.Linear(dim, experts) for _ in range(tasks))
        self.experts = nn.ModuleList(Mlp(dim, hidden) for _ in range(experts))

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        score, index = self.gates[task](tokens).topk(self.top_k, dim=-1)
        weight = score.softmax(dim=-1)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(index == e)
            if rows.numel() == 0:
                continue
            out[rows] += weight[rows, slot, None] * expert(tokens[rows])
        return out.reshape(x.shape)


class DenseBlock(nn.Module):
    """Pre-norm transformer layer with a dense feed-forward block."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MoEBlock(nn.Module):
    """Pre-norm transformer layer with a mixture of experts in place of the feed-forward block."""

    def __init__(self, dim: int, heads: int, hidden: int, experts: int, top_k: int, tasks: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = MixtureOfExperts(dim, hidden, experts, top_k, tasks)

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.moe(self.norm2(x), task)


class FashionSceneViT(nn.Module):
    """Segments a [batch, 1, 64, 128] picture in [0, 1] (task 0) or estimates its depth (task 1).

    Task 0 returns class logits [batch, 11, 64, 128]; task 1 returns depth [batch, 1, 64, 128] as a fraction of
    the distance to the wall at the back.
    """

    def __init__(self, dim: int = 64, depth: int = 4, heads: int = 2, hidden: int = 256,
                 experts: int = 8, expert_hidden: int = 128, top_k: int = 2) -> None:  # fmt: skip
        super().__init__()
        tokens = (HEIGHT // PATCH) * (WIDTH // PATCH)
        self.patch_embed = nn.Conv2d(1, dim, kernel_size=PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, dim))
        self.blocks = nn.ModuleList(
            MoEBlock(dim, heads, expert_hidden, experts, top_k, len(TASKS)) if layer % 2
            else DenseBlock(dim, heads, hidden)
            for layer in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, channels * PATCH * PATCH) for channels in (CLASSES, 1))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, task)
        x = self.heads[task](self.norm(x)[:, 1:])
        x = x.reshape(x.shape[0], HEIGHT // PATCH, WIDTH // PATCH, -1, PATCH, PATCH)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(x.shape[0], -1, HEIGHT, WIDTH)
