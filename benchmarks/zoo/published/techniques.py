"""Techniques, each as a module whose integers can be measured."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.published.backbones import classifier
from benchmarks.zoo.published.modalities import Signal
from benchmarks.zoo.published.parts import (
    DIM,
    SIDE,
    Attention,
    Block,
    Mlp,
    Patches,
    as_map,
    as_tokens,
    encoder,
    published,
)
from benchmarks.zoo.row import IMAGE


class Unified(nn.Module):
    """Unified Normalization once trained: what divides is a constant, smoothed over batches."""

    def __init__(self) -> None:
        super().__init__()
        self.fluctuation, self.weight, self.bias = (
            nn.Parameter(torch.rand(DIM) + 0.5),
            nn.Parameter(torch.ones(DIM)),
            nn.Parameter(torch.zeros(DIM)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(self.fluctuation + 1e-5) * self.weight + self.bias


def unified_block() -> nn.Module:
    block = Block()
    block.norm1, block.norm2 = Unified(), Unified()
    return block


class Shift(nn.Linear):
    """Weights are signs times powers of two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.sign() * 2.0 ** torch.round(torch.log2(self.weight.abs() + 1e-9)), self.bias)


class ShiftAdd(nn.Module):
    """One expert multiplies, one shifts; a router sends each token to either."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, 2)
        self.experts = nn.ModuleList([Mlp(), nn.Sequential(Shift(DIM, 2 * DIM), nn.GELU(), Shift(2 * DIM, DIM))])

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        scores, which = self.gate(tokens).softmax(-1).topk(1, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(which == number)
            if len(rows):
                out.index_add_(0, rows, scores[rows, rank, None] * expert(tokens[rows]))
        return out.reshape(x.shape)


class Sequence(nn.Module):
    """Long Range Arena: a long sequence, one layer, the mean classified."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = Signal(8, tokens), Block(), nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class Exits(nn.Module):
    """A head behind every layer; the host, or a sequencer to come, takes the first that is confident."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.patches, self.blocks = Patches(), nn.ModuleList(Block() for _ in range(layers))
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 10)) for _ in range(layers))

    def forward(self, image: Tensor) -> list[Tensor]:
        x, made = self.patches(image), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            made.append(head(x.mean(1)))
        return made


class Density(nn.Module):
    """FlexDiT: few tokens in the first layers, then all, with what they were."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.few, self.all = Patches(), Block(), encoder(1)
        self.pixels = nn.Linear(DIM, 3 * 64)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image)
        few = as_tokens(F.avg_pool2d(as_map(x), 2))
        back = as_tokens(F.interpolate(as_map(self.few(few), SIDE // 2), scale_factor=2, mode="nearest"))
        return F.pixel_shuffle(as_map(self.pixels(self.all(x + back))), 8)


class Modalities(nn.Module):
    """Mixture-of-Transformers: each modality has its own weights of everything; attention is over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.signal = Patches(), Signal()
        self.norm1, self.norm2, self.mlp = (nn.ModuleList([make(), make()]) for make in (self.norm, self.norm, Mlp))
        self.qkv, self.proj = (nn.ModuleList([nn.Linear(DIM, n * DIM), nn.Linear(DIM, n * DIM)]) for n in (3, 1))
        self.head = nn.Linear(DIM, 10)

    @staticmethod
    def norm() -> nn.Module:
        return nn.LayerNorm(DIM)

    def forward(self, image: Tensor, signal: Tensor) -> Tensor:
        parts = [self.image(image), self.signal(signal)]
        made = [qkv(norm(x)) for qkv, norm, x in zip(self.qkv, self.norm1, parts, strict=True)]
        q, k, v = torch.cat(made, 1).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).split([x.shape[1] for x in parts], 1)
        parts = [x + proj(y) for proj, x, y in zip(self.proj, parts, seen, strict=True)]
        parts = [x + mlp(norm(x)) for mlp, norm, x in zip(self.mlp, self.norm2, parts, strict=True)]
        return self.head(torch.cat(parts, 1).mean(1))


class Centred(nn.Module):
    """Pre-RMSNorm: the mean is folded into the weights, so that the norm divides and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class PreRms(nn.Module):
    """What is added to the stream has no mean: of the embedding and of each branch it is taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.mlp = Patches(), Attention(), Mlp()
        self.norm1, self.norm2, self.head = Centred(), Centred(), nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = centred(self.patches(image))
        x = x + centred(self.attention(self.norm1(x)))
        x = x + centred(self.mlp(self.norm2(x)))
        return self.head(x.mean(1))


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def transport(cost: Tensor, rounds: int = 50) -> Tensor:
    """Sinkhorn's plan between equal shares, each row made to sum to 1."""
    plan = torch.exp(-cost / (0.05 * cost.mean()))
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True)
        plan = plan / plan.sum(1, keepdim=True)
    return plan


def fused_checkpoints() -> nn.Module:
    """Two models' MLPs averaged once the units of the second are moved to where the first has theirs."""
    first, second = classifier(Block()), classifier(Block())
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            if a.shape != first[1].mlp[0].weight.shape and a.shape != first[1].mlp[2].weight.shape:
                a.copy_((a + b) / 2)
        up, other = first[1].mlp[0], second[1].mlp[0]
        plan = transport(torch.cdist(up.weight, other.weight))
        up.weight.copy_((up.weight + plan @ other.weight) / 2)
        down = first[1].mlp[2].weight
        down.copy_((down + second[1].mlp[2].weight @ plan.T) / 2)
    return first


def fused_layers() -> nn.Module:
    """FuseGPT: a pruned block's weights go into its neighbour's, by learned factors of low rank."""
    kept, pruned = Block(), Block()
    with torch.no_grad():
        for a, b in zip(kept.parameters(), pruned.parameters(), strict=True):
            if a.ndim == 2:
                a.add_(torch.randn(len(a), 4) @ torch.randn(4, len(a)) / len(a) @ b)
    return classifier(kept)


class Outliers(nn.Module):
    """RepQuant's case: channels behind a LayerNorm differ by far, which a scale for all of them must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        spread = 2.0 ** torch.linspace(-3, 3, DIM)[torch.randperm(DIM)]
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block.norm1(x) * self.spread
        x = x + self.block.attention(y)
        return x + self.block.mlp(self.block.norm2(x) * self.spread)


def log_softmax_attention() -> nn.Module:
    """Attention whose probabilities are powers of two: RepQuant's other half."""

    class Powers(Attention):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            q, (k, v) = self.q(x), self.kv(x if y is None else y).chunk(2, -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (q, k, v))
            scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
            powers = 2 ** torch.round(torch.log2(scores) * 2).div(2)
            return self.proj((powers @ v).transpose(-3, -2).flatten(-2))

    return Powers()


ROWS = [
    published("Unified Normalization", "a norm that is constant once trained",
          lambda: classifier(unified_block(), unified_block())),
    published("ShiftAddViT", "experts that shift beside experts that multiply",
          lambda: classifier(Block(mlp=ShiftAdd()))),
    published("Long Range Arena, 1024", "a sequence of 1,024 tokens", lambda: Sequence(1024), (1024, 8)),
    published("Multiple Exiting", "a head behind every layer", Exits),
    published("FlexDiT", "fewer tokens in the first layers", Density),
    published("Mixture-of-Transformers", "weights of each modality, attention over all", Modalities, IMAGE, (6, 12)),
    published("Pre-RMSNorm", "RMSNorm of a stream without a mean", PreRms),
    published("Transformer Fusion", "checkpoints fused by optimal transport", fused_checkpoints),
    published("FuseGPT", "a pruned block fused into its neighbour", fused_layers),
    published("RepQuant, outliers", "channels behind a LayerNorm that differ by 64", lambda: classifier(Outliers())),
    published("RepQuant, log softmax", "probabilities that are powers of the square root of two",
          lambda: classifier(Block(attention=log_softmax_attention()))),
]  # fmt: skip
