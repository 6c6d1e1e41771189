"""Every form of attention, compared with torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.graph import describe
from patchloom.compiler.nodes import Attention
from tests.compiler import graphs
from tests.compiler.frontend.forms import DIM, TOKENS, Function, check, embedded, kinds


def split(x: Tensor, heads: int = 2) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def written_out(m: Any, x: Tensor, scores: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    q, k, v = (split(part) for part in m.qkv(x).chunk(3, -1))
    return m.proj(joined(scores(q, k).softmax(-1) @ v))


ATTENTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sdpa": lambda m, x: joined(F.scaled_dot_product_attention(*(split(part) for part in m.qkv(x).chunk(3, -1)))),
    "sdpa with scale": lambda m, x: joined(
        F.scaled_dot_product_attention(*(split(p) for p in m.qkv(x).split(DIM, -1)), scale=0.5)
    ),
    "scale on q": lambda m, x: written_out(m, x, lambda q, k: (q * 0.3) @ k.transpose(-2, -1)),
    "scale on k": lambda m, x: written_out(m, x, lambda q, k: q @ (k.transpose(-2, -1) / 3)),
    "scale on scores": lambda m, x: written_out(m, x, lambda q, k: q @ k.mT / 8**0.5),
    "learned scale": lambda m, x: written_out(m, x, lambda q, k: q @ k.mT * m.temperature),
    "scale on v": lambda m, x: joined((m.q(x) @ m.k(x).mT).softmax(-1)[:, None] @ split(m.v(x) * 0.5)),
    "einsum": lambda m, x: torch.einsum(
        "bhij,bjhd->bihd",
        torch.einsum("bihd,bjhd->bhij", m.q(x).unflatten(-1, (2, 8)), m.k(x).unflatten(-1, (2, 8))).softmax(-1),
        m.v(x).unflatten(-1, (2, 8)),
    ).flatten(2),
    "bmm": lambda m, x: torch.bmm(F.softmax(torch.bmm(m.q(x), m.k(x).permute(0, 2, 1)) * 0.2, 2), m.v(x)),
    "separate layers": lambda m, x: joined(F.scaled_dot_product_attention(*(split(f(x)) for f in (m.q, m.k, m.v)))),
    "interleaved heads": lambda m, x: joined(
        F.scaled_dot_product_attention(*m.qkv(x).reshape(len(x), -1, 8, 3, 2).permute(3, 0, 4, 1, 2))
    ),
    "one query": lambda m, x: joined(
        F.scaled_dot_product_attention(split(m.q(x[:, :1])), split(m.k(x)), split(m.v(x)))
    ),
    "query rows of all": lambda m, x: joined(
        F.scaled_dot_product_attention(split(m.q(x)[:, 1:3]), split(m.k(x)), split(m.v(x)))
    ),
    "per-head temperature": lambda m, x: written_out(m, x, lambda q, k: (q * m.temperatures) @ k.mT),
    "mask of ones": lambda m, x: joined(
        F.scaled_dot_product_attention(
            *(split(p) for p in m.qkv(x).chunk(3, -1)), attn_mask=torch.arange(TOKENS)[None] >= 0
        )
    ),
    "mask alike for all keys": lambda m, x: joined(
        F.scaled_dot_product_attention(
            *(split(p) for p in m.qkv(x).chunk(3, -1)), attn_mask=torch.arange(1.0 * TOKENS)[:, None].expand(-1, TOKENS)
        )
    ),
    "scores plus zeros": lambda m, x: written_out(m, x, lambda q, k: q @ k.mT + torch.zeros(1, 1, TOKENS, TOKENS)),
    "scores times ones": lambda m, x: written_out(m, x, lambda q, k: q @ k.mT * torch.ones(1, 1, TOKENS, TOKENS)),
    "nothing filled": lambda m, x: written_out(
        m, x, lambda q, k: (q @ k.mT).masked_fill(torch.arange(TOKENS) < 0, float("-inf"))
    ),
    "nothing chosen": lambda m, x: written_out(
        m, x, lambda q, k: torch.where(torch.arange(TOKENS) >= 0, q @ k.mT, float("-inf"))
    ),
    "learned queries": lambda m, x: joined(
        F.scaled_dot_product_attention(split(m.queries), split(m.k(x)), split(m.v(x)))
    ),
    "learned queries, written out": lambda m, x: joined(
        (split(m.queries) @ split(m.k(x)).mT).softmax(-1) @ split(m.v(x))
    ),
    "learned queries of one head": lambda m, x: (m.queries @ x.mT).softmax(-1) @ x,
    "learned keys and values": lambda m, x: F.scaled_dot_product_attention(x, m.queries, m.queries * 2),
    "tokens weighed by a layer": lambda m, x: m.weigh(x).softmax(1).mT @ x,
    "heads weighed by a layer": lambda m, x: joined(m.weigh(x).softmax(1).mT[:, :, None] @ split(m.v(x), 4)),
    "norm of queries and keys": lambda m, x: joined(
        F.scaled_dot_product_attention(m.part(split(m.q(x))), m.part(split(m.k(x))), split(m.v(x)))
    ),
    "queries and keys of unit length": lambda m, x: joined(
        F.scaled_dot_product_attention(
            F.normalize(split(m.q(x)), dim=-1) * m.parts, F.normalize(split(m.k(x)), dim=-1), split(m.v(x))
        )
    ),
    "multihead of learned queries": lambda m, x: m.mha(m.queries, x, x)[0],
    "multihead, weights unused": lambda m, x: m.mha(x, x, x)[0],
    "multihead": lambda m, x: m.mha(x, x, x, need_weights=False)[0],
    "multihead across": lambda m, x: m.mha(x[:, :2], x, x, need_weights=False)[0],
}


def sdpa(m: Any, x: Tensor, **options: Any) -> Tensor:
    return joined(F.scaled_dot_product_attention(*(split(part) for part in m.qkv(x).chunk(3, -1)), **options))


EARLIER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
MASK = torch.zeros(TOKENS, TOKENS).masked_fill(~EARLIER, float("-inf"))
BIASED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "causal": lambda m, x: sdpa(m, x, is_causal=True),
    "flags": lambda m, x: sdpa(m, x, attn_mask=EARLIER),
    "mask": lambda m, x: sdpa(m, x, attn_mask=MASK, scale=-0.3),
    "bias": lambda m, x: sdpa(m, x, attn_mask=m.bias),
    "masked_fill": lambda m, x: written_out(m, x, lambda q, k: (q @ k.mT * 0.3).masked_fill(~EARLIER, float("-inf"))),
    "where": lambda m, x: written_out(m, x, lambda q, k: torch.where(EARLIER, q @ k.mT, torch.tensor(-1e9)) * 0.3),
    "added": lambda m, x: written_out(m, x, lambda q, k: q @ k.mT * 0.3 + m.bias),
    "added twice": lambda m, x: written_out(m, x, lambda q, k: (q @ k.mT - m.bias[0]) * 0.3 + MASK),
    "subtracted from": lambda m, x: written_out(m, x, lambda q, k: m.bias - q @ k.mT * m.temperature),
    "gathered": lambda m, x: written_out(
        m, x, lambda q, k: q @ k.mT + m.table[:, (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).flatten()
                                              + TOKENS - 1].view(1, 2, TOKENS, TOKENS)
    ),
    "multihead": lambda m, x: m.mha(x, x, x, need_weights=False, attn_mask=~EARLIER)[0],
    "multihead, weights unused": lambda m, x: m.mha(x, x, x, attn_mask=MASK)[0],
    "buffer": lambda m, x: sdpa(m, x, attn_mask=m.mask),
}  # fmt: skip


def attending(name: str, forms: dict[str, Callable[[Any, Tensor], Tensor]]) -> tuple[nn.Module, Tensor]:
    module, x = embedded(
        lambda m, x: forms[name](m, m.norm(x)),
        qkv=nn.Linear(DIM, 3 * DIM), proj=nn.Linear(DIM, DIM), norm=nn.LayerNorm(DIM),
        q=nn.Linear(DIM, DIM), k=nn.Linear(DIM, DIM), v=nn.Linear(DIM, DIM, bias=False),
        temperature=nn.Parameter(torch.ones(1)), temperatures=nn.Parameter(torch.ones(2, 1, 1)),
        bias=nn.Parameter(torch.randn(2, TOKENS, TOKENS)), table=nn.Parameter(torch.randn(2, 2 * TOKENS - 1)),
        mha=nn.MultiheadAttention(DIM, 2, batch_first=True, dropout=0.1), weigh=nn.Linear(DIM, 4),
        part=nn.LayerNorm(8), parts=nn.Parameter(torch.ones(2, 1, 8)), queries=nn.Parameter(torch.randn(1, 3, DIM)),
    )  # fmt: skip
    module.register_buffer("mask", MASK)
    return module, x


@pytest.mark.parametrize("name", BIASED)
def test_biased_attention(name: str):
    [graph] = check(*attending(name, BIASED))
    [made] = [node for node in graph.nodes() if isinstance(node, Attention)]
    assert made.bias is not None


def test_a_bias_that_says_nothing():
    """The same for all keys of a query."""
    module, x = embedded(
        lambda m, x: sdpa(m, x, attn_mask=torch.arange(TOKENS)[:, None] * 0.5), qkv=nn.Linear(DIM, 3 * DIM)
    )
    [graph] = check(module, x)
    assert "+ bias" not in describe(graph)


def test_shared_keys():
    """One head of keys and values for two of queries each."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))

    check(*embedded(forward, q=nn.Linear(DIM, DIM), k=nn.Linear(DIM, 8), v=nn.Linear(DIM, 8)))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str):
    [graph] = check(*attending(name, ATTENTIONS))
    assert kinds(graph).count("Attention") == 1


@pytest.mark.parametrize("scale", [0.3, -0.3])
@pytest.mark.parametrize("written", [True, False])
def test_a_negative_scale(scale: float, written: bool):
    """softmax(-q k'): the machine's factors are positive, so that the sign goes into the keys."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if written:
            return ((q @ k.transpose(-2, -1) * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)

    [graph] = check(Function(forward, qkv=nn.Linear(DIM, 3 * DIM)), torch.randn(2, TOKENS, DIM))
    assert all(node.scale > 0 for node in graph.nodes() if node.kind == "attention")


def test_biases_of_keys_cost_no_bits():
    """Softmax does not see them, however large they are; 60 dB with them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(m.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return m.proj(joined(F.scaled_dot_product_attention(q, k, v)))

    module = Function(forward, qkv=nn.Linear(DIM, 3 * DIM), norm=nn.LayerNorm(DIM), proj=nn.Linear(DIM, DIM))
    with torch.no_grad():
        module.qkv.weight.mul_(3)
        module.qkv.bias[DIM : 2 * DIM] = 30
    [graph] = check(module, torch.randn(2, TOKENS, DIM))
    graphs.check(graph, bound=70)
