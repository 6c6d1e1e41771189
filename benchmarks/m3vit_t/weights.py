"""Random weights under which the workload behaves like the trained model that was published.

Residual stream and attention scores have about its ranges, layer by layer, and on the benchmark's own picture every
gate sends as many tokens to every expert as the trained one (`loads.json`). The trained weights themselves are not
needed: cycles and traffic depend on shapes and on these loads only.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.m3vit_t.model import PATCH, TASKS, Block, M3ViT, MixtureOfExperts, MoEBlock

LOADS = Path(__file__).parent / "loads.json"
SEED = 8  # routes as published whatever the BLAS rounds
LEAST_GROWTH = 0.02  # of the residual's variance in a layer whose published deviation does not grow
OUTLIERS = 6  # tokens with one large element in the position embedding, as trained models have
SCORE_SPAN = 16.0  # of attention scores within a row; a wider published span is of rows, which a softmax does not see
STEEPEST = 8.0  # gate logit; beyond, one expert's score is all there is of a token
BIAS_REACH = 8.0  # a gate's bias may be as large as this many weights before it costs as much


@cache
def published() -> dict[str, Any]:
    """Loads and activation ranges, with the text of their origin."""
    return dict(json.loads(LOADS.read_text()))


def loads(top_k: int, task: int, layer: int) -> list[int]:
    """Tokens of each expert."""
    return list(published()[f"top{top_k}"][f"task{task}"][str(layer)])


def build(top_k: int = 2) -> tuple[M3ViT, Tensor]:
    """The workload and the benchmark's picture; the same on every call."""
    generator = torch.Generator().manual_seed(SEED)
    model = M3ViT(top_k=top_k).eval()
    with torch.no_grad():
        image = picture(model, generator)
        draw(model, generator)
        fit(model, image, generator)
    return model, image


def picture(model: M3ViT, generator: torch.Generator) -> Tensor:
    """[1, 3, height, width]: waves of random direction and colour, and noise; deviation about 1."""
    height, width = (cells * PATCH for cells in model.grid)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 2, width), indexing="ij")
    image = 0.5 * torch.randn(3, height, width, generator=generator)
    for _ in range(12):
        frequency, phase = 12 * torch.randn(2, generator=generator), 6.28 * torch.rand(3, 1, 1, generator=generator)
        image += 0.3 * torch.sin(frequency[0] * x + frequency[1] * y + phase)
    return image[None]


def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the deviation of what they multiply."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
            nn.init.normal_(cast(Tensor, module.bias), 0, 0.02, generator=generator)


# --- One layer after the other: each needs the activations that those before it make ---


def fit(model: M3ViT, image: Tensor, generator: torch.Generator) -> None:
    ranges = published()["activation_ranges"]
    deviations, largest = ranges["residual_std_per_layer"], ranges["residual_absmax_per_layer"]
    fit_embedding(model, largest[0], generator)
    streams = [model.embed(image) for _ in TASKS]
    for layer, block in enumerate(model.layers()):
        low, high = ranges["attention_score_min_max"][layer]
        fit_attention(block, streams[0], high - low, deviations[layer], generator)
        streams = [block.attend(x) for x in streams]
        if isinstance(block, MoEBlock):
            for task, x in enumerate(streams):
                span = ranges["gate_logit_min_max"][str(layer)]
                fit_gate(block.moe, task, block.norm2(x)[0], loads(block.moe.top_k, task, layer), span, generator)
        fit_feed_forward(block, streams[0], deviations[layer], largest[layer])
        streams = [block.feed_forward(x, task) for task, x in enumerate(streams)]


def fit_embedding(model: M3ViT, largest: float, generator: torch.Generator) -> None:
    model.patch_embed.weight.mul_(0.7)
    model.cls_token.normal_(0, 0.7, generator=generator)
    model.pos_embed.normal_(0, 0.5, generator=generator)
    for token in range(OUTLIERS):
        model.pos_embed[0, token * 7, int(model.norm.normalized_shape[0]) // 2] = largest * 0.95


def fit_attention(block: Block, x: Tensor, span: float, deviation: float, generator: torch.Generator) -> None:
    """Scores from smallest to largest as published; half of the layer's growth."""
    attention, normalised = block.attn, block.norm1(x)
    qkv, dim = attention.qkv, x.shape[-1]
    scores, _ = attention.scores(normalised)
    factor = min(span, SCORE_SPAN) / float(scores.max() - scores.min())
    qkv.weight[: 2 * dim] *= factor**0.5
    qkv.bias[: 2 * dim] *= factor**0.5
    offset = torch.randn(dim, generator=generator)
    low, high = 0.0, 100.0
    keys = qkv.bias[dim : 2 * dim].clone()
    for _ in range(24):
        middle = (low + high) / 2
        qkv.bias[dim : 2 * dim] = keys + middle * offset
        scores, _ = attention.scores(normalised)
        low, high = (middle, high) if float(scores.max() - scores.min()) < span else (low, middle)
    scale_branch([attention.proj], attention(normalised), growth(x, deviation) / 2)


def growth(x: Tensor, deviation: float) -> float:
    """Variance that a layer adds to the residual stream."""
    variance = float(x.var())
    return max(deviation**2 - variance, LEAST_GROWTH * variance)


def scale_branch(layers: list[nn.Linear], branch: Tensor, variance: float) -> None:
    factor = (variance / float(branch.var())) ** 0.5
    for layer in layers:
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)


def fit_feed_forward(block: Block, x: Tensor, deviation: float, largest: float) -> None:
    """The rest of the layer's growth; one feature reaches the published magnitude where no other does."""
    layers = [expert.fc2 for expert in block.moe.mlps()] if isinstance(block, MoEBlock) else [block.mlp.fc2]
    branch = block.feed_forward(x, 0) - x
    scale_branch(layers, branch, growth(x, deviation))
    after = block.feed_forward(x, 0)
    if float(after.abs().max()) < 0.9 * largest:
        feature = x.shape[-1] // 2
        factor = largest / float((after - x)[..., feature].abs().max())
        for layer in layers:
            layer.weight[feature] *= factor
            layer.bias[feature] *= factor
        others = [f for f in range(x.shape[-1]) if f != feature]
        left = growth(x, deviation) - float((block.feed_forward(x, 0) - x)[..., feature].square().mean()) / x.shape[-1]
        for layer in layers:
            layer.weight[others] *= max(left / growth(x, deviation), LEAST_GROWTH) ** 0.5


# --- Gates ---


def assignment(counts: list[int], tokens: int, top_k: int, generator: torch.Generator) -> Tensor:
    """[tokens, experts] of bool: each token has `top_k` experts, expert e has `counts[e]` tokens.

    The fullest expert first, each takes the tokens that lack most: this finds one whenever there is one (Gale, Ryser).
    """
    chosen = torch.zeros(tokens, len(counts), dtype=torch.bool)
    lacking = torch.full((tokens,), top_k)
    for expert in sorted(range(len(counts)), key=lambda e: -counts[e]):
        order = (lacking + torch.rand(tokens, generator=generator)).argsort(descending=True)[: counts[expert]]
        chosen[order, expert] = True
        lacking[order] -= 1
    if lacking.any():
        raise ValueError(f"loads {counts} must be of {tokens} tokens with {top_k} experts each")
    return chosen


def fit_gate(
    moe: MixtureOfExperts, task: int, x: Tensor, counts: list[int], span: list[float], generator: torch.Generator
) -> None:
    """Weights by which the tokens `x`, fewer than features, go to exactly so many experts, with a wide margin."""
    chosen = assignment(counts, len(x), moe.top_k, generator)
    low, high = max(span[0], -STEEPEST), min(span[1], STEEPEST)
    level = torch.rand(chosen.shape, generator=generator)
    below = high * (0.3 + 0.15 * level)
    below.scatter_(1, (chosen * (1 + level)).argmax(dim=1, keepdim=True), 0.0)  # a clear first choice
    logits = torch.where(chosen, high - below, low * (0.2 + 0.3 * level)).double()
    operand = torch.cat([x.double(), torch.full((len(x), 1), BIAS_REACH, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(operand, logits, driver="gelsd").solution
    gate = moe.gate(task)
    gate.weight.copy_(solution[:-1].T)
    gate.bias.copy_(solution[-1] * BIAS_REACH)


def routing(model: M3ViT, image: Tensor, task: int) -> dict[int, list[int]]:
    """Tokens of each expert in every mixture layer, as the float model sends them."""
    seen: dict[int, list[int]] = {}
    x = model.embed(image)
    with torch.no_grad():
        for layer, block in enumerate(model.layers()):
            if isinstance(block, MoEBlock):
                logits = block.moe.gate(task)(block.norm2(block.attend(x)))
                index = logits.topk(block.moe.top_k, dim=-1).indices
                seen[layer] = torch.bincount(index.flatten(), minlength=logits.shape[-1]).tolist()
            x = block(x, task)
    return seen
