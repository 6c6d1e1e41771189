"""Striped pictures, and a small Vision Transformer with a mixture of experts that tells in which direction they run."""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from examples.fashion_scenes.model import DenseBlock, MoEBlock

SIZE, PATCH, DIM = 16, 4, 32
CLASSES = 6  # directions, 30 degrees apart
STEPS, BATCH = 150, 64


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes of any phase and several widths under noise, [count, 1, SIZE, SIZE], and their classes [count]."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, CLASSES, count)
    angle = classes[:, None, None] * np.pi / CLASSES
    rows, columns = np.mgrid[:SIZE, :SIZE]
    wave = 2 * np.pi / random.uniform(4, 8, (count, 1, 1))  # radians a pixel
    phase = random.uniform(0, 2 * np.pi, (count, 1, 1))
    images = np.sin(wave * (rows * np.sin(angle) + columns * np.cos(angle)) + phase) + random.normal(
        0, 0.3, (count, SIZE, SIZE)
    )
    return torch.from_numpy(images[:, None].astype(np.float32)), torch.from_numpy(classes)


class Body(nn.Module):
    """[batch, 1, SIZE, SIZE] to the class token's features [batch, DIM]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2 + 1, DIM))
        self.dense = DenseBlock(DIM, heads=2, hidden=64)
        self.mixture = MoEBlock(DIM, heads=2, hidden=64, experts=4, top_k=2, tasks=1)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.mixture(self.dense(x, 0), 0))[:, 0]


def trained(steps: int = STEPS) -> nn.Module:
    """`body`, the transformer, and `head`, a Linear, trained for a few seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(body=Body(), head=nn.Linear(DIM, CLASSES)))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        images, classes = pictures(BATCH, seed=1000 + step)
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(images), classes))
        optimiser.step()
    return model.eval()
