"""Ways to write heads, activations, norms, attention, orders of tokens and mixers, each in a model of a few layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.row import IMAGE, Row

DIM, HEADS, SIDE = 32, 4, 4
TOKENS = SIDE * SIDE
Parts = Callable[[], dict[str, Any]]
Forward = Callable[["Form", Tensor], Any]


class Form(nn.Module):
    """Patches and positions, then `run` with the usual parts and those of its own."""

    def __init__(self, run: Forward, parts: dict[str, Any]) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, DIM, 8, 8), nn.Parameter(0.5 * torch.randn(1, TOKENS, DIM))
        self.up, self.down, self.mix = nn.Linear(DIM, 64), nn.Linear(64, DIM), nn.Linear(DIM, DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 8)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, image: Tensor) -> Any:
        return self.run(self, self.patch(image).flatten(2).transpose(1, 2) + self.position)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, [batch, heads, tokens, features]."""
        return self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def join(self, heads: Tensor) -> Tensor:
        return self.proj(heads.transpose(1, 2).flatten(2))


def form(name: str, run: Forward, parts: Parts = dict) -> Row:
    return Row(f"form/{name}", name, lambda: Form(run, parts()))


# --- Activations ----------------------------------------------------------------------------------------------------


def activation(name: str, function: Callable[[Tensor], Tensor]) -> Row:
    return form(f"activation {name}", lambda m, x: m.head(m.down(function(m.up(x)))))


def written_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def written_tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = [
    activation("GELU", F.gelu),
    activation("GELU by tanh", lambda x: F.gelu(x, approximate="tanh")),
    activation("GELU written out", written_gelu),
    activation("GELU by tanh written out", written_tanh_gelu),
    activation("QuickGELU", lambda x: x * torch.sigmoid(1.702 * x)),
    activation("ReLU", F.relu),
    activation("ReLU by clamp", lambda x: x.clamp(min=0)),
    activation("ReLU by maximum", lambda x: torch.maximum(x, torch.zeros_like(x))),
    activation("ReLU6", F.relu6),
    activation("squared ReLU", lambda x: F.relu(x) ** 2),
    activation("leaky ReLU", F.leaky_relu),
    activation("SiLU", F.silu),
    activation("hard-swish", F.hardswish),
    activation("sigmoid", torch.sigmoid),
    activation("tanh", torch.tanh),
    activation("ELU", F.elu),
    activation("softplus", F.softplus),
    activation("Mish", F.mish),
    activation("StarReLU", lambda x: 0.8 * F.relu(x) ** 2 - 0.4),
    form("activation PReLU", lambda m, x: m.head(m.down(m.act(m.up(x)))), lambda: {"act": nn.PReLU()}),
    form("activation GLU", lambda m, x: m.head(m.narrow(F.glu(m.up(x)))), lambda: {"narrow": nn.Linear(32, DIM)}),
    form("activation SwiGLU", lambda m, x: m.head(m.down(F.silu(m.gate(x)) * m.up(x))),
          lambda: {"gate": nn.Linear(DIM, 64)}),
    form("activation GEGLU", lambda m, x: m.head(m.down(F.gelu(m.gate(x)) * m.up(x))),
          lambda: {"gate": nn.Linear(DIM, 64)}),
    form("activation none", lambda m, x: m.head(m.down(m.up(x)))),
]  # fmt: skip


# --- Norms ----------------------------------------------------------------------------------------------------------


def norm(name: str, run: Forward, parts: Parts = dict) -> Row:
    """Of tokens, between two layers."""
    return form(f"norm {name}", lambda m, x: m.head(x + m.mix(run(m, m.proj(x)))), parts)


def on_channels(run: Forward) -> Forward:
    """Of a map [batch, channels, rows, columns]."""
    return lambda m, x: run(m, x.transpose(1, 2).unflatten(2, (SIDE, SIDE))).flatten(2).transpose(1, 2)


def written_norm(m: Form, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * m.gain + m.shift


def written_channel_norm(m: Form, x: Tensor) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * m.gain[:, None, None] + m.shift[:, None, None]


def written_rms(m: Form, x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * m.gain


def affine() -> dict[str, Any]:
    return {"gain": nn.Parameter(torch.ones(DIM)), "shift": nn.Parameter(torch.zeros(DIM))}


def unified(m: Form, x: Tensor) -> Tensor:
    """Unified Normalization at inference: a fluctuation that was smoothed in training divides."""
    return x / torch.sqrt(m.fluctuation + 1e-5) * m.gain + m.shift


NORMS = [
    norm("LayerNorm", lambda m, x: m.norm(x)),
    norm("LayerNorm without affine", lambda m, x: F.layer_norm(x, (DIM,))),
    norm("LayerNorm written out", written_norm, affine),
    norm("LayerNorm over channels",
          on_channels(lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (DIM,)).permute(0, 3, 1, 2))),
    norm("LayerNorm over channels written out", on_channels(written_channel_norm), affine),
    norm("GroupNorm of one group", on_channels(lambda m, x: m.group(x)), lambda: {"group": nn.GroupNorm(1, DIM)}),
    norm("GroupNorm", on_channels(lambda m, x: m.group(x)), lambda: {"group": nn.GroupNorm(4, DIM)}),
    norm("InstanceNorm", on_channels(lambda m, x: F.instance_norm(x))),
    norm("BatchNorm of tokens", lambda m, x: m.batch(x.transpose(1, 2)).transpose(1, 2),
          lambda: {"batch": nn.BatchNorm1d(DIM)}),
    norm("BatchNorm of a map", on_channels(lambda m, x: m.batch(x)), lambda: {"batch": nn.BatchNorm2d(DIM)}),
    form("norm BatchNorm behind a ReLU", lambda m,
          x: m.head(m.down(m.batch(F.relu(m.up(x)).transpose(1, 2)).transpose(1, 2))),
          lambda: {"batch": nn.BatchNorm1d(64)}),
    norm("RMSNorm", lambda m, x: m.rms(x), lambda: {"rms": nn.RMSNorm(DIM)}),
    norm("RMSNorm written out", written_rms, affine),
    norm("L2", lambda m, x: F.normalize(x, dim=-1)),
    norm("affine", lambda m, x: x * m.gain + m.shift, affine),
    norm("Unified Normalization", unified, lambda: {**affine(), "fluctuation": nn.Parameter(torch.rand(DIM) + 0.5)}),
    norm("DyT", lambda m, x: torch.tanh(0.8 * x) * m.gain + m.shift, affine),
    form("norm post-norm", lambda m, x: m.head(m.norm(x + m.down(F.gelu(m.up(x)))))),
    form("norm sandwich", lambda m, x: m.head(x + m.second(m.down(F.gelu(m.up(m.norm(x)))))),
          lambda: {"second": nn.LayerNorm(DIM)}),
    form("norm layer scale", lambda m, x: m.head(x + m.gain * m.down(F.gelu(m.up(m.norm(x))))), affine),
]  # fmt: skip


# --- Attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """softmax(change(q k / sqrt) ) v, written out."""

    change: Callable[[Form, Tensor], Tensor]

    def __call__(self, m: Form, x: Tensor) -> Tensor:
        q, k, v = m.split(m.norm(x))
        scores = self.change(m, q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5)
        return m.head(x + m.join(scores.softmax(-1) @ v))


def attention(name: str, run: Forward, parts: Parts = dict) -> Row:
    return form(f"attention {name}", run, parts)


def fused(**options: Any) -> Forward:
    return lambda m, x: m.head(x + m.join(F.scaled_dot_product_attention(*m.split(m.norm(x)), **options)))


def of_heads(change: Callable[[Form, Tensor, Tensor, Tensor], Sequence[Tensor]]) -> Forward:
    """Queries, keys and values changed, then attention."""
    return lambda m, x: m.head(x + m.join(F.scaled_dot_product_attention(*change(m, *m.split(m.norm(x))))))


def relative(m: Form, scores: Tensor) -> Tensor:
    return scores + m.table[:, m.index]


def relative_parts() -> dict[str, Any]:
    place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None] + SIDE - 1
    return {
        "table": nn.Parameter(torch.randn(HEADS, (2 * SIDE - 1) ** 2)),
        "index": apart[0] * (2 * SIDE - 1) + apart[1],
    }


def causal(_: Form, scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)


def rotary(_: Form, q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    angles = torch.arange(TOKENS)[:, None] * 100 ** (-torch.arange(0, 4) / 4)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    turned = [x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (q, k)]
    return (*turned, v)


def cosine(_: Form, q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    return F.normalize(q, dim=-1) * 5, F.normalize(k, dim=-1) * 5, v


def query_key_norm(m: Form, q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    return m.of_q(q), m.of_k(k), v


def windows(shift: int) -> Forward:
    """Attention in windows of 2 x 2 tokens; shifted ones are masked as in Swin."""

    def run(m: Form, x: Tensor) -> Tensor:
        grid = m.norm(x).unflatten(1, (SIDE, SIDE))
        grid = torch.roll(grid, (-shift, -shift), (1, 2)) if shift else grid
        parts = grid.unflatten(1, (2, 2)).unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(0, 1)
        q, k, v = m.split(parts)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if shift:
            scores = (scores.unflatten(0, (-1, 4)) + m.mask[:, None]).flatten(0, 1)
        made = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        made = made.unflatten(0, (-1, 2, 2)).unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        made = torch.roll(made, (shift, shift), (1, 2)) if shift else made
        return m.head(x + m.proj(made.flatten(1, 2)))

    return run


def window_mask() -> dict[str, Any]:
    region = torch.tensor([0, 0, 1, 2])
    grid = (region[:, None] * 3 + region).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    return {"mask": torch.where(grid[:, :, None] == grid[:, None], 0.0, -100.0)}


def linear(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    q, k = F.relu(q), F.relu(k)
    return m.head(x + m.join(q @ (k.transpose(-2, -1) @ v)))


def linear_normalised(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    below = q @ k.sum(2).unsqueeze(-1)
    return m.head(x + m.join(q @ (k.transpose(-2, -1) @ v) / below))


def efficient(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    return m.head(x + m.join(q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)))


def of_channels(m: Form, x: Tensor) -> Tensor:
    q, k, v = (y.transpose(-2, -1) for y in m.split(m.norm(x)))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return m.head(x + m.join((scores.softmax(-1) @ v).transpose(-2, -1)))


def talking(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    mixed = m.after(m.before(scores.permute(0, 2, 3, 1)).softmax(2)).permute(0, 3, 1, 2)
    return m.head(x + m.join(mixed @ v))


def reduced(m: Form, x: Tensor) -> Tensor:
    """PVT: keys and values of a coarser map."""
    grid = m.norm(x).transpose(1, 2).unflatten(2, (SIDE, SIDE))
    few = m.reduce(grid).flatten(2).transpose(1, 2)
    q = m.proj(m.norm(x)).unflatten(2, (HEADS, -1)).transpose(1, 2)
    k, v = m.kv(few).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return m.head(x + m.join(F.scaled_dot_product_attention(q, k, v)))


def learned_queries(m: Form, x: Tensor) -> Tensor:
    q = m.queries.expand(len(x), -1, -1).unflatten(2, (HEADS, -1)).transpose(1, 2)
    _, k, v = m.split(m.norm(x))
    return m.head(m.join(F.scaled_dot_product_attention(q, k, v)))


def cross(m: Form, x: Tensor) -> Tensor:
    """Half of the tokens look at the other half."""
    q, k, v = m.split(m.norm(x))
    return m.head(m.join(F.scaled_dot_product_attention(q[:, :, :6], k[:, :, 6:], v[:, :, 6:])))


def grouped(m: Form, q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    return q, k[:, ::2].repeat_interleave(2, 1), v[:, ::2].repeat_interleave(2, 1)


def gated(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return m.head(x + m.proj(made * torch.sigmoid(m.mix(x))))


def shared_qkv(m: Form, x: Tensor) -> Tensor:
    """CRATE: one projection is query, key and value."""
    w = m.mix(m.norm(x)).unflatten(2, (HEADS, -1)).transpose(1, 2)
    return m.head(x + m.join(F.scaled_dot_product_attention(w, w, w)))


def einsum(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.norm(x)).unflatten(2, (3, HEADS, -1)).unbind(2)
    scores = (torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return m.head(x + m.proj(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2)))


def differential(m: Form, x: Tensor) -> Tensor:
    q, k, v = m.split(m.norm(x))
    first, second = (
        F.scaled_dot_product_attention(*(y[..., part] for y in (q, k)), v) for part in (slice(0, 4), slice(4, 8))
    )
    return m.head(x + m.join(first - 0.3 * second))


ATTENTION = [
    attention("scaled_dot_product_attention", fused()),
    attention("written out", Scores(lambda m, s: s)),
    attention("by einsum", einsum),
    attention("with another scale", fused(scale=0.2)),
    attention("causal, flag", fused(is_causal=True)),
    attention("causal, masked_fill", Scores(causal)),
    attention("with a mask that masks nothing", fused(attn_mask=torch.ones(TOKENS, TOKENS, dtype=torch.bool))),
    attention("with a mask of zeros", fused(attn_mask=torch.zeros(1, 1, TOKENS, TOKENS))),
    attention("with some keys masked", fused(attn_mask=torch.arange(TOKENS).expand(1, 1, 1, -1) < 12)),
    attention("with a bias of scores", Scores(lambda m, s: s + m.bias),
          lambda: {"bias": nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))}),
    attention("with relative positions", Scores(relative), relative_parts),
    attention("ALiBi", Scores(lambda m, s: s - m.slope * (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs()),
              lambda: {"slope": 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]}),
    attention("windows", windows(0)),
    attention("shifted windows", windows(1), window_mask),
    attention("rotary", of_heads(rotary)),
    attention("cosine", of_heads(cosine)),
    attention("with norm of q and k", of_heads(query_key_norm),
          lambda: {"of_q": nn.LayerNorm(8), "of_k": nn.LayerNorm(8)}),
    attention("grouped queries", of_heads(grouped)),
    attention("linear, ReLU", linear),
    attention("linear, normalised", linear_normalised),
    attention("efficient", efficient),
    attention("of channels", of_channels),
    attention("talking heads", talking, lambda: {"before": nn.Linear(HEADS, HEADS), "after": nn.Linear(HEADS, HEADS)}),
    attention("spatial reduction", reduced,
          lambda: {"reduce": nn.Conv2d(DIM, DIM, 2, 2), "kv": nn.Linear(DIM, 2 * DIM)}),
    attention("learned queries", learned_queries, lambda: {"queries": nn.Parameter(torch.randn(1, 3, DIM))}),
    attention("of some tokens to others", cross),
    attention("gated", gated),
    attention("one projection for q, k and v", shared_qkv),
    attention("differential", differential),
    attention("one wide layer of many heads", lambda m, x: m.head(x + m.wide_out(F.scaled_dot_product_attention(
        *m.wide(m.norm(x)).unflatten(2, (3, 16, 8)).permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2))),
        lambda: {"wide": nn.Linear(DIM, 3 * 128), "wide_out": nn.Linear(128, DIM)}),
]  # fmt: skip


# --- Heads and outputs ----------------------------------------------------------------------------------------------


def head(name: str, run: Forward, parts: Parts = dict) -> Row:
    return form(f"head {name}", lambda m, x: run(m, x + m.down(F.gelu(m.up(m.norm(x))))), parts)


def as_map(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (SIDE, SIDE))


class Seen(NamedTuple):
    depth: Tensor
    masks: Tensor


def pixels(m: Form, x: Tensor) -> Tensor:
    made = m.to_pixels(m.norm(x)).unflatten(1, (SIDE, SIDE)).unflatten(3, (2, 8, 8))
    return made.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


HEADS_AND_OUTPUTS = [
    head("mean of tokens", lambda m, x: m.head(m.norm(x).mean(1))),
    head("norm of the mean", lambda m, x: m.head(m.norm(x.mean(1)))),
    head("first token", lambda m, x: m.head(m.norm(x)[:, 0])),
    head("maximum of tokens", lambda m, x: m.head(m.norm(x).amax(1))),
    head("mean and maximum", lambda m, x: m.head(torch.cat([x.mean(1), x.amax(1)], -1)),
          lambda: {"head": nn.Linear(2 * DIM, 8)}),
    head("adaptive pooling", lambda m, x: m.head(F.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1))),
    head("average pooling of a map", lambda m, x: m.head(F.avg_pool2d(as_map(x), 2).flatten(2).transpose(1, 2))),
    head("maximum pooling of a map", lambda m, x: m.head(F.max_pool2d(as_map(x), 2).flatten(2).transpose(1, 2))),
    head("sequence pooling", lambda m, x: m.head((m.score(x).softmax(1).transpose(1, 2) @ x)[:, 0]),
          lambda: {"score": nn.Linear(DIM, 1)}),
    head("pixels", pixels, lambda: {"to_pixels": nn.Linear(DIM, 128)}),
    head("pixel shuffle", lambda m, x: F.pixel_shuffle(m.one(as_map(x)), 8), lambda: {"one": nn.Conv2d(DIM, 64, 1)}),
    head("transposed convolution", lambda m, x: m.bigger(as_map(x)),
          lambda: {"bigger": nn.ConvTranspose2d(DIM, 4, 2, 2)}),
    head("overlapping transposed convolution", lambda m, x: m.bigger(as_map(x)),
          lambda: {"bigger": nn.ConvTranspose2d(DIM, 4, 4, 2, 1)}),
    head("bilinear upsampling", lambda m, x: F.interpolate(m.one(as_map(x)), scale_factor=2, mode="bilinear"),
          lambda: {"one": nn.Conv2d(DIM, 4, 1)}),
    head("bicubic upsampling", lambda m, x: F.interpolate(m.one(as_map(x)), scale_factor=2, mode="bicubic"),
          lambda: {"one": nn.Conv2d(DIM, 4, 1)}),
    head("nearest upsampling", lambda m, x: F.interpolate(m.one(as_map(x)), scale_factor=2, mode="nearest"),
          lambda: {"one": nn.Conv2d(DIM, 4, 1)}),
    head("3 x 3 convolution", lambda m, x: m.three(as_map(x)), lambda: {"three": nn.Conv2d(DIM, 4, 3, padding=1)}),
    head("softmax", lambda m, x: m.head(m.norm(x).mean(1)).softmax(-1)),
    head("sigmoid", lambda m, x: m.head(m.norm(x).mean(1)).sigmoid()),
    head("log of softmax", lambda m, x: F.log_softmax(m.head(m.norm(x).mean(1)), -1)),
    head("unit length", lambda m, x: F.normalize(m.head(m.norm(x).mean(1)), dim=-1)),
    head("cosine classifier", lambda m, x: F.normalize(x.mean(1), dim=-1) @ F.normalize(m.classes, dim=-1).T,
          lambda: {"classes": nn.Parameter(torch.randn(8, DIM))}),
    head("mask of queries", lambda m, x: m.proj(m.queries) @ m.mix(m.norm(x)).transpose(1, 2),
          lambda: {"queries": nn.Parameter(torch.randn(1, 3, DIM))}),
    head("mask of tokens", lambda m, x: m.proj(x[:, :3]) @ m.mix(m.norm(x)).transpose(1, 2)),
    head("two outputs", lambda m, x: (m.head(x), m.proj(x))),
    head("a dictionary", lambda m, x: {"depth": m.head(x), "seen": {"mean": m.proj(x).mean(1)}}),
    head("a named tuple", lambda m, x: Seen(m.head(x), m.proj(x))),
    head("early exits", lambda m, x: [m.head(x), m.head(m.norm(x + m.mix(x)))]),
]  # fmt: skip


# --- Orders and mixers of tokens ------------------------------------------------------------------------------------


def order(name: str, run: Forward, parts: Parts = dict) -> Row:
    """Tokens that another layer has made are moved or mixed, and layers follow."""
    return form(f"tokens {name}", lambda m, x: m.head(run(m, m.proj(x))), parts)


def shuffled(m: Form, x: Tensor) -> Tensor:
    y = x.unflatten(1, (SIDE, SIDE)).transpose(1, 2).flatten(1, 2)
    return y + m.down(F.gelu(m.up(m.norm(y))))


def sum_of_orders(m: Form, x: Tensor) -> Tensor:
    return m.norm(x.flip(1)) + x


def merged(m: Form, x: Tensor) -> Tensor:
    grid = x.unflatten(1, (SIDE, SIDE))
    parts = [grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return m.merge(torch.cat(parts, -1).flatten(1, 2))


def split_and_joined(m: Form, x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([F.relu(m.narrow(first)), second], -1)


ORDERS = [
    order("transposed grid", shuffled),
    order("flipped and added", sum_of_orders),
    order("rolled", lambda m, x: m.mix(torch.roll(x, 3, 1)) + x),
    order("repeated", lambda m, x: m.mix(x.repeat_interleave(2, 1))),
    order("a class token in the middle", lambda m,
          x: m.mix(torch.cat([x[:, :8], m.token.expand(len(x), -1, -1), x[:, 8:]], 1)),
          lambda: {"token": nn.Parameter(torch.randn(1, 1, DIM))}),
    order("merged patches", merged, lambda: {"merge": nn.Linear(4 * DIM, DIM)}),
    order("mixed by a layer", lambda m, x: x + m.mixer(m.norm(x).transpose(1, 2)).transpose(1, 2),
          lambda: {"mixer": nn.Linear(TOKENS, TOKENS)}),
    order("Fourier transform", lambda m, x: x + torch.fft.fft2(m.norm(x)).real),
    order("convolution 1 x 1", lambda m, x: m.one(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"one": nn.Conv2d(DIM, DIM, 1)}),
    order("convolution 2 x 2, stride 2", lambda m, x: m.two(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"two": nn.Conv2d(DIM, DIM, 2, 2)}),
    order("convolution 3 x 3", lambda m, x: m.three(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"three": nn.Conv2d(DIM, DIM, 3, padding=1)}),
    order("convolution 3 x 3, stride 2", lambda m, x: m.three(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"three": nn.Conv2d(DIM, DIM, 3, 2, 1)}),
    order("dilated convolution", lambda m, x: m.three(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"three": nn.Conv2d(DIM, DIM, 3, padding=2, dilation=2)}),
    order("depthwise convolution", lambda m, x: x + m.deep(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"deep": nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM)}),
    order("grouped convolution", lambda m, x: m.deep(as_map(x)).flatten(2).transpose(1, 2),
          lambda: {"deep": nn.Conv2d(DIM, DIM, 1, groups=4)}),
    order("squeeze-excite", lambda m, x: x * torch.sigmoid(m.mix(x.mean(1, keepdim=True)))),
    order("FiLM", lambda m, x: x * m.mix(x[:, :1]) + m.proj(x[:, :1])),
    order("split features", split_and_joined, lambda: {"narrow": nn.Linear(16, 16)}),
    order("mean taken off", lambda m, x: m.mix(x - x.mean(1, keepdim=True))),
    order("pooled as a mixer", lambda m,
          x: x + (F.avg_pool2d(as_map(x), 3, 1, 1, count_include_pad=False) - as_map(x)).flatten(2).transpose(1, 2)),
]  # fmt: skip


# --- Inputs ---------------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """An image and a signal: joined along the tokens, added, or one looks at the other."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.patch, self.embed = how, nn.Conv2d(3, DIM, 8, 8), nn.Linear(12, DIM)
        self.attention, self.norm = nn.MultiheadAttention(DIM, HEADS, batch_first=True), nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 8)

    def forward(self, image: Tensor, signal: Tensor) -> Tensor:
        x, y = self.patch(image).flatten(2).transpose(1, 2), self.embed(signal)
        x = torch.cat([x, y], 1) if self.how == "joined" else x + y if self.how == "added" else x
        keys = self.norm(y) if self.how == "cross" else self.norm(x)
        return self.head(x + self.attention(self.norm(x), keys, keys, need_weights=False)[0])


def two_inputs(how: str, tokens: int) -> Row:
    return Row(f"form/inputs {how}", f"two inputs, {how}", lambda: TwoInputs(how), (IMAGE, (tokens, 12)))


INPUTS = [two_inputs("joined", 6), two_inputs("added", TOKENS), two_inputs("cross", 6)]

ROWS = [*ACTIVATIONS, *NORMS, *ATTENTION, *HEADS_AND_OUTPUTS, *ORDERS, *INPUTS]
