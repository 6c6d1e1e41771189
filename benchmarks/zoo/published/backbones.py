"""Systems whose heart is how tokens of one input are mixed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.published.parts import (
    DIM,
    HEADS,
    SIDE,
    TOKENS,
    Attention,
    Block,
    Mlp,
    Patches,
    as_map,
    as_tokens,
    encoder,
    learned,
    published,
)


class Local(nn.Module):
    """UniFormer's local block: positions by depthwise convolution, then convolution in place of attention."""

    def __init__(self, dim: int, rank: int, widened: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if rank == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if rank == 2 else nn.BatchNorm3d
        self.position = convolution(dim, dim, 3, padding=1, groups=dim)
        self.mix = nn.Sequential(
            norm(dim),
            convolution(dim, dim, 1),
            convolution(dim, dim, 5, padding=2, groups=dim),
            convolution(dim, dim, 1),
        )
        wide = widened * dim
        self.mlp = nn.Sequential(norm(dim), convolution(dim, wide, 1), nn.GELU(), convolution(wide, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.mix(x)
        return x + self.mlp(x)


class UniFormerVideo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.local = nn.Conv3d(3, DIM, (1, 8, 8), (1, 8, 8)), Local(DIM, 3)
        self.position, self.blocks, self.head = (
            nn.Conv3d(DIM, DIM, 3, padding=1, groups=DIM),
            encoder(1),
            nn.Linear(DIM, 10),
        )

    def forward(self, video: Tensor) -> Tensor:
        x = self.local(self.patch(video))
        return self.head(self.blocks(as_tokens(x + self.position(x))).mean(1))


class UniFormerDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.local, self.norm = nn.Conv2d(3, DIM, 8, 8), Local(DIM, 2), nn.LayerNorm(DIM)
        self.position, self.blocks = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM), encoder(1)
        self.head = nn.Conv2d(DIM, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.local(as_map(self.norm(as_tokens(self.patch(image)))))
        x = as_map(self.blocks(as_tokens(x + self.position(x))))
        return F.interpolate(self.head(x), scale_factor=4, mode="bilinear")


class Reduced(Attention):
    """PVT: keys and values of a map that a strided convolution made coarser."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(DIM, DIM, 2, 2), nn.LayerNorm(DIM)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x, self.norm(as_tokens(self.reduce(as_map(x)))) if y is None else y)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.stage1, self.norm = Patches(), Block(attention=Reduced()), nn.LayerNorm(DIM)
        self.merge, self.position, self.stage2 = nn.Conv2d(DIM, DIM, 2, 2), learned(1, 4, DIM), encoder(1)
        self.head = nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stage1(self.first(image)))
        return self.head(self.stage2(as_tokens(self.merge(as_map(x))) + self.position).mean(1))


class Subspaces(nn.Module):
    """CRATE's compression: one projection is query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        w = self.project(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(w, w, w).transpose(1, 2).flatten(2))


class CrateBlock(nn.Module):
    """Compression, then one step of ISTA towards a sparse code."""

    def __init__(self, step: float = 0.1, sparsity: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2, self.subspaces = nn.LayerNorm(DIM), nn.LayerNorm(DIM), Subspaces()
        self.dictionary, self.step, self.sparsity = learned(DIM, DIM), step, sparsity

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(x + self.subspaces(self.norm1(x)))
        wrong = F.linear(x, self.dictionary) - x
        update = self.step * (F.linear(wrong, self.dictionary.T) + self.sparsity)
        return F.relu(x - update)


class Seeds(nn.Module):
    """USAGE: a map of every class, of which the image's classes are the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks, self.classes = Patches(), encoder(), nn.Conv2d(DIM, 5, 1, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.classes(as_map(self.blocks(self.patches(image))))
        return F.relu(maps), maps.mean((2, 3))


class WindowedExpansion(nn.Module):
    """EMOv2's block: attention in windows inside an inverted residual, then depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qk = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM)
        self.expand, self.deep = nn.Linear(DIM, 2 * DIM), nn.Conv2d(2 * DIM, 2 * DIM, 3, padding=1, groups=2 * DIM)
        self.batch, self.shrink = nn.BatchNorm2d(2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = windows(self.norm(x))
        q, k = self.qk(y).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        v = self.expand(y).unflatten(2, (HEADS, -1)).transpose(1, 2)
        grid = as_map(from_windows(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        grid = grid + F.silu(self.batch(self.deep(grid)))
        return x + self.shrink(as_tokens(grid))


def windows(x: Tensor) -> Tensor:
    """Of 2 x 2 tokens, as a batch."""
    return x.unflatten(1, (2, 2, 2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(0, 1)


def from_windows(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 2)).unflatten(0, (-1, 2, 2)).transpose(2, 3).flatten(1, 4)


class Discrepancy(nn.Module):
    """FOD: tokens look at each other, and at references that were learned from normal images."""

    def __init__(self) -> None:
        super().__init__()
        self.intra, self.inter, self.references = Attention(), Attention(), learned(1, 8, DIM)
        self.norm, self.mlp = nn.LayerNorm(DIM), Mlp(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        seen = [self.intra(y), self.inter(y, self.references.expand(len(x), -1, -1))]
        return x + self.mlp(torch.cat(seen, -1))


class Memory(nn.Module):
    """LMU: a linear memory of what came before, here as its impulse response; then a layer over channels."""

    def __init__(self, tokens: int = TOKENS, order: int = 4) -> None:
        super().__init__()
        self.encode, self.mix = nn.Linear(DIM, DIM), nn.Linear((order + 1) * DIM, DIM)
        matrix = torch.diag(0.9 - 0.2 * torch.arange(order)) + torch.diag(0.2 * torch.ones(order - 1), 1)
        powers = [torch.linalg.matrix_power(matrix, step) @ torch.ones(order) for step in range(tokens)]
        response = torch.zeros(order, tokens, tokens)
        for now in range(tokens):
            for before in range(now + 1):
                response[:, now, before] = powers[now - before]
        self.register_buffer("response", response)

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.encode(x))
        memory = [self.response[i] @ u for i in range(len(self.response))]
        return self.mix(torch.cat([x, *memory], -1))


class ChannelMixing(nn.Module):
    """LMUFormer: convolution over channels with BatchNorm, in place of an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(DIM, 2 * DIM, 1), nn.Conv1d(2 * DIM, DIM, 1)
        self.norm1, self.norm2 = nn.BatchNorm1d(2 * DIM), nn.BatchNorm1d(DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.up(x.transpose(1, 2))))
        return self.norm2(self.down(y)).transpose(1, 2)


class Scales(nn.Module):
    """MAFormer: attention in windows, and global tokens that a layer over all tokens made; fused by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.local, self.fewer, self.fuse, self.norm = Attention(), nn.Linear(TOKENS, 4), Attention(), nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        local = from_windows(self.local(windows(x)))
        return self.fuse(self.norm(local), self.fewer(x.transpose(1, 2)).transpose(1, 2))


class InnerOuter(nn.Module):
    """TNT: pixels of a patch see each other; a patch sees what its pixels became."""

    def __init__(self, inner: int = 8) -> None:
        super().__init__()
        self.pixels, self.position = nn.Conv2d(3, inner, 4, 4), learned(1, 4, inner)
        self.inner, self.norm, self.outward = (
            Block(inner, Attention(inner, 2)),
            nn.LayerNorm(4 * inner),
            nn.Linear(4 * inner, DIM),
        )
        self.patches, self.outer, self.head = Patches(), encoder(1), nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.pixels(image).permute(0, 2, 3, 1)
        pixels = grid.unflatten(1, (SIDE, 2)).unflatten(3, (SIDE, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        pixels = self.inner(pixels + self.position).flatten(1).unflatten(0, (-1, TOKENS))
        return self.head(self.outer(self.patches(image) + self.outward(self.norm(pixels))).mean(1))


class Variates(nn.Module):
    """iTransformer: every variate's past is a token."""

    def __init__(self, steps: int = 48, horizon: int = 12) -> None:
        super().__init__()
        self.embed, self.blocks, self.forecast = nn.Linear(steps, DIM), encoder(), nn.Linear(DIM, horizon)

    def forward(self, series: Tensor) -> Tensor:
        return self.forecast(self.blocks(self.embed(series.transpose(1, 2)))).transpose(1, 2)


class Gate(nn.Module):
    """Activator: a gated linear unit where others attend."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * F.gelu(self.gate(x)))


class CrossBranches(nn.Module):
    """CrossViT: the class token of either branch looks at the patches of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = Patches(8), Patches(16)
        self.tokens = nn.ParameterList([learned(1, 1, DIM), learned(1, 1, DIM)])
        self.own, self.cross = nn.ModuleList([encoder(1), encoder(1)]), nn.ModuleList([Attention(), Attention()])
        self.heads = nn.ModuleList([nn.Linear(DIM, 10), nn.Linear(DIM, 10)])

    def forward(self, image: Tensor) -> Tensor:
        branches = [
            blocks(torch.cat([token.expand(len(image), -1, -1), patches(image)], 1))
            for token, patches, blocks in zip(self.tokens, (self.fine, self.coarse), self.own, strict=True)
        ]
        made = []
        for this, other, cross, head in zip(branches, branches[::-1], self.cross, self.heads, strict=True):
            seen = torch.cat([this[:, :1], other[:, 1:]], 1)
            made.append(head(this[:, 0] + cross(this[:, :1], seen)[:, 0]))
        return made[0] + made[1]


class Structured(nn.Module):
    """Combiner: a token sees its own block, and of each block its mean."""

    def __init__(self, block: int = 4) -> None:
        super().__init__()
        self.block, self.qkv, self.proj = block, nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (-1, self.block)).unflatten(3, (3, HEADS, -1)).permute(3, 0, 1, 4, 2, 5)
        k, v = (torch.cat([y, self.means(y)], 3) for y in (k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3).flatten(1, 2))

    def means(self, x: Tensor) -> Tensor:
        return x.mean(3).transpose(1, 2)[:, None].expand(-1, x.shape[1], -1, -1, -1)


class Wide(nn.Module):
    """One layer of attention with many heads."""

    def __init__(self, heads: int = 16) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(DIM, 3 * heads * 8), nn.Linear(heads * 8, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, 8)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def classifier(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(Patches(), *blocks, nn.LayerNorm(DIM), nn.Linear(DIM, 10))


ROWS = [
    published("UniFormer, video", "local blocks of depthwise 3D convolution, then attention", UniFormerVideo,
          (3, 4, 32, 32)),
    published("UniFormer, dense", "local blocks of depthwise convolution, attention, a dense head", UniFormerDense),
    published("Pyramid Vision Transformer", "attention to a coarser map", Pyramid),
    published("CRATE", "one projection for q, k and v; a step of ISTA", lambda: classifier(CrateBlock(), CrateBlock())),
    published("USAGE", "ViT with a map of every class", Seeds),
    published("EMOv2", "attention in windows and depthwise convolution in one inverted residual",
          lambda: classifier(WindowedExpansion())),
    published("Focus the Discrepancy", "attention within the image and to learned references",
          lambda: classifier(Discrepancy()),
              heart="reconstruction; the divergence of attention maps, which scores anomalies, is left to the host"),
    published("LMUFormer", "linear memory and convolution over channels",
          lambda: classifier(Block(attention=Memory(), mlp=ChannelMixing())),
              heart="as run on a whole sequence: the memory as its impulse response"),
    published("MAFormer", "windows and global tokens, fused by attention",
          lambda: classifier(Block(attention=Scales()))),
    published("Transformer in Transformer", "inner and outer tokens", InnerOuter),
    published("iTransformer", "variates as tokens", Variates, (48, 7),
          heart="without rescaling by each series' own spread"),
    published("Activator", "gated linear units in place of attention",
          lambda: classifier(Block(attention=Gate(), mlp=Gate()))),
    published("Wide Attention", "one layer, 16 heads", lambda: classifier(Block(attention=Wide()))),
    published("CrossViT", "two branches, cross-attention of class tokens", CrossBranches),
    published("Combiner", "structured attention: a block, and means of all blocks",
          lambda: classifier(Block(attention=Structured()))),
]  # fmt: skip
