"""Functions that no activation is, from a torch module to every engine: near to float, and bit for bit alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.quantise.errors import QuantiseError
from tests.compiler.graphs import sqnr
from tests.forms import DIM, TOKENS, Form, compiled, joined
from tests.machine import agreed


class Functions(Form):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(run)
        self.slopes, self.heads_mixed = nn.PReLU(DIM), nn.Linear(2, 2)
        self.groups, self.instance = nn.GroupNorm(4, DIM), nn.InstanceNorm1d(DIM, affine=True)


def linear_attention(m: Functions, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return joined(q @ (k.mT @ v) / (q @ k.sum(2).unsqueeze(-1)))


def of_channels(m: Functions, x: Tensor) -> Tensor:
    q, k, v = m.heads(x).mT
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return (scores.softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2)


def talking(m: Functions, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    scores = m.heads_mixed((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return joined(scores.softmax(-1) @ v)


def turned(m: Functions, x: Tensor) -> Tensor:
    """Rotary embeddings."""
    q, k, v = m.heads(x)
    angles = torch.arange(TOKENS)[:, None] * 10 ** (-torch.arange(4) / 4)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    q, k = (h * cos + torch.cat([-h[..., 4:], h[..., :4]], -1) * sin for h in (q, k))
    return joined(F.scaled_dot_product_attention(q, k, v))


FORMS: dict[str, Callable[[Functions, Tensor], Tensor]] = {
    "sine": lambda m, x: x.sin(),
    "exponential": lambda m, x: x.exp(),
    "self-normalising": lambda m, x: F.selu(x),
    "soft sign": lambda m, x: x / (1 + x.abs()),
    "reciprocal": lambda m, x: 1 / (x.square() + 1),
    "root of a root": lambda m, x: (x.abs() + 1).sqrt().sqrt(),
    "leaky": lambda m, x: F.leaky_relu(x, 0.1),
    "slopes": lambda m, x: m.slopes(x.mT).mT,
    "gated": lambda m, x: F.glu(x),
    "larger": lambda m, x: torch.maximum(x, x.flip(1)),
    "largest token": lambda m, x: x + x.amax(1, keepdim=True),
    "groups over tokens": lambda m, x: m.groups(x.mT).mT,
    "channels over tokens": lambda m, x: m.instance(x.mT).mT,
    "deviation of tokens": lambda m, x: x / x.std(1, keepdim=True),
    "linear attention": linear_attention,
    "attention of channels": of_channels,
    "heads mixed": talking,
    "rotary": turned,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("precision", "decibels"), [("w8a8", 25), ("w16a16", 50)])
def test_form(form: str, precision: str, decibels: float):
    program, images, expected = compiled(lambda: Functions(FORMS[form]), precision)
    assert sqnr(expected, agreed(program, images, "hls", "rtl").outputs["main"]) >= decibels


def test_what_no_table_can_hold_is_told():
    with pytest.raises(QuantiseError, match=r"'reciprocal': changes too much between .* for a table of 512 entries"):
        compiled(lambda: Functions(lambda m, x: (x.abs() + 1e-5).reciprocal()), "w16a16")
