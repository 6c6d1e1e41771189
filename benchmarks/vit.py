"""ViTs as DeiT and timm have them, in plain PyTorch with random weights: cycles depend on shapes alone."""

import torch
from torch import Tensor, nn

from benchmarks.m3vit_t.model import DenseBlock

SIZE, PATCH, CLASSES = 224, 16, 1000


class ViT(nn.Module):
    """[batch, 3, 224, 224] to scores of 1000 classes, [batch, 1000]."""

    def __init__(self, *, dim: int, heads: int, depth: int = 12) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(DenseBlock(dim, heads, 4 * dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, 0)
        scores: Tensor = self.head(self.norm(x)[:, 0])
        return scores


def deit_tiny() -> ViT:
    torch.manual_seed(0)
    return ViT(dim=192, heads=3).eval()


def vit_small() -> ViT:
    torch.manual_seed(0)
    return ViT(dim=384, heads=6).eval()
