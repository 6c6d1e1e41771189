"""M3ViT-T, the workload that published accelerators are compared by, in plain PyTorch.

A 128 x 256 picture in 16 x 16 patches and a class token: 129 tokens of 192 features, 12 layers. Even layers have a
dense feed-forward block, odd ones 16 experts; each task has a gate of its own in each of those, and a linear head.
"""

from typing import cast

import torch
from torch import Tensor, nn

TASKS = ("segmentation", "depth")
CHANNELS = (19, 1)  # of a token, per task

HEIGHT, WIDTH, PATCH = 128, 256, 16


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scores before the softmax, values), each [batch, heads, tokens, ...]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return q @ k.transpose(-2, -1) * self.scale, v

    def forward(self, x: Tensor) -> Tensor:
        scores, v = self.scores(x)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape))


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

    def gate(self, task: int) -> nn.Linear:
        return cast(nn.Linear, self.gates[task])

    def mlps(self) -> list[Mlp]:
        return cast(list[Mlp], [*self.experts])

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

    def attend(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x))

    def feed_forward(self, x: Tensor, task: int) -> Tensor:
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.feed_forward(self.attend(x), task)


class MoEBlock(nn.Module):
    """Pre-norm transformer layer with a mixture of experts in place of the feed-forward block."""

    def __init__(self, dim: int, heads: int, hidden: int, experts: int, top_k: int, tasks: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = MixtureOfExperts(dim, hidden, experts, top_k, tasks)

    def attend(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x))

    def feed_forward(self, x: Tensor, task: int) -> Tensor:
        return x + self.moe(self.norm2(x), task)

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.feed_forward(self.attend(x), task)


Block = DenseBlock | MoEBlock


class M3ViT(nn.Module):
    """[batch, 3, height, width] to what a task says of each patch, [batch, channels, rows, columns]."""

    def __init__(self, *, top_k: int = 2, dim: int = 192, depth: int = 12, heads: int = 3, hidden: int = 768,
                 experts: int = 16, expert_hidden: int = 384,
                 height: int = HEIGHT, width: int = WIDTH) -> None:  # fmt: skip
        super().__init__()
        self.grid = height // PATCH, width // PATCH
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, dim))
        self.blocks = nn.ModuleList(
            MoEBlock(dim, heads, expert_hidden, experts, top_k, len(TASKS)) if layer % 2
            else DenseBlock(dim, heads, hidden)
            for layer in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, channels) for channels in CHANNELS)

    def layers(self) -> list[Block]:
        return cast(list[Block], [*self.blocks])

    def embed(self, image: Tensor) -> Tensor:
        """Tokens, the class token first."""
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x, task)
        x = self.heads[task](self.norm(x)[:, 1:])
        return x.transpose(1, 2).reshape(x.shape[0], -1, *self.grid)


def trunk_macs(model: M3ViT) -> int:
    """Multiply-accumulates of one frame up to the head, as the papers count them: no norms, no softmax."""
    dim, patches = model.cls_token.shape[-1], model.grid[0] * model.grid[1]
    tokens, total = patches + 1, patches * model.patch_embed.weight.numel()
    for block in model.layers():
        total += 2 * tokens * tokens * dim
        total += tokens * sum(layer.weight.numel() for layer in (block.attn.qkv, block.attn.proj, *used(block)))
    return total


def used(block: Block) -> list[nn.Linear]:
    """Layers of the feed-forward block that one token goes through."""
    if isinstance(block, DenseBlock):
        return [block.mlp.fc1, block.mlp.fc2]
    mlps = block.moe.mlps()[: block.moe.top_k]
    return [block.moe.gate(0), *(layer for mlp in mlps for layer in (mlp.fc1, mlp.fc2))]


def trunk_weights(model: M3ViT) -> int:
    """Weights and biases of the products of one task up to the head, all experts included."""
    layers: list[nn.Module] = [model.patch_embed]
    for block in model.layers():
        layers += [block.attn, block.mlp] if isinstance(block, DenseBlock) else [block.attn, *block.moe.mlps()]
        layers += [block.moe.gate(0)] if isinstance(block, MoEBlock) else []
    return sum(weight.numel() for layer in layers for weight in layer.parameters())
