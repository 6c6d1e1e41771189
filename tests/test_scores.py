"""Scores, gathered tokens and products from a torch module to every engine: near to float, and bit for bit alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiler.graphs import sqnr
from tests.forms import DIM, TOKENS, Form, compiled, joined
from tests.machine import agreed


class Scores(Form):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(run)
        self.tokens, self.norm = nn.Linear(TOKENS, TOKENS), nn.LayerNorm(DIM)
        self.linear, self.conv = nn.Linear(DIM, DIM), nn.Conv2d(DIM, DIM, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(2, TOKENS, TOKENS))


def biased(m: Scores, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return joined((q @ k.mT * 0.3 + m.bias).softmax(-1) @ v)


def linear_attention(m: Scores, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return joined(q.softmax(-1) @ (k.relu().mT @ v))


def windows(m: Scores, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return (q @ k.mT * 0.3 + m.bias[:, :3, :3] + m.bias[0, :4, None, None, :3].repeat(len(x) // 4, 1, 1, 1)).softmax(
        -1
    ) @ v


FORMS: dict[str, Callable[[Scores, Tensor], Tensor]] = {
    "biased": biased,
    "tokens in another order": lambda m, x: m.linear(x.flip(1)) + x.roll(1, 1),
    "tokens mixed": lambda m, x: m.tokens(m.norm(x).mT).relu().mT,
    "tokens side by side": lambda m, x: F.layer_norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1), (2 * DIM,)),
    "convolution": lambda m, x: m.conv(x.view(len(x), 3, 4, DIM).permute(0, 3, 1, 2)).flatten(2).mT,
    "windows": lambda m, x: joined(windows(m, x.roll(2, 1).view(-1, 3, DIM))).view(len(x), TOKENS, DIM),
    "linear attention": linear_attention,
    "softmax of tokens": lambda m, x: m.linear(x).softmax(1).mT @ x,
    "pooled": lambda m, x: F.avg_pool1d(m.norm(x).mT, 2).mT,
    "causal": lambda m, x: joined(F.scaled_dot_product_attention(*m.heads(x), is_causal=True)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("precision", "decibels"), [("w8a8", 25), ("w16a16", 50)])
def test_form(form: str, precision: str, decibels: float):
    program, images, expected = compiled(lambda: Scores(FORMS[form]), precision)
    assert sqnr(expected, agreed(program, images, "hls", "rtl").outputs["main"]) >= decibels
