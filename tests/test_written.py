"""Forms in which users write layers, from torch to the RTL: near the float model, and alike on all engines."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patchloom
from tests.compiler.graphs import sqnr
from tests.machine import MACHINE, agreed

DIM, TOKENS, HEADS = 16, 6, 2
BOUNDS = {"w8a8": 25, "w16a16": 50}  # dB

Forward = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    """Tokens of a layer with positions, the form, a head."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.run = forward
        self.first, self.last = nn.Linear(DIM, DIM), nn.Linear(DIM, 8)
        self.positions = nn.Parameter(torch.randn(TOKENS, DIM))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self, self.first(x) + self.positions))


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def masked_by_ones(_: Any, x: Tensor) -> Tensor:
    q = split(x)
    return joined(F.scaled_dot_product_attention(q, q, q, attn_mask=torch.arange(TOKENS)[None] >= 0))


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def normal(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def trained(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """With statistics."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
    return norm


FORMS: dict[str, Callable[[], Model]] = {
    "mask of ones": lambda: Model(masked_by_ones),
    "learned queries": lambda: Model(
        lambda m, x: m.attend(m.queries.expand(len(x), -1, -1), x, x)[0],
        queries=nn.Parameter(torch.randn(1, 3, DIM)), attend=nn.MultiheadAttention(DIM, HEADS, batch_first=True),
    ),
    "batch norms": lambda: Model(
        lambda m, x: x + m.second(m.norm(x.mT).mT).relu(), second=nn.Linear(DIM, DIM), norm=trained(nn.BatchNorm1d(DIM))
    ),
    "gated by a layer": lambda: Model(
        lambda m, x: x + m.down(F.gelu(m.gate(m.norm(x))) * m.up(m.norm(x))), norm=nn.LayerNorm(DIM),
        gate=nn.Linear(DIM, 24), up=nn.Linear(DIM, 24), down=nn.Linear(24, DIM),
    ),
    "bilinear, of halves": lambda: Model(
        lambda m, x: m.down(torch.mul(*m.both(x).chunk(2, -1)).mul(0.5)),
        both=nn.Linear(DIM, 48), down=nn.Linear(24, DIM),
    ),
    "squared ReLU": lambda: Model(
        lambda m, x: x + m.down(m.up(x).relu().pow(2)), up=nn.Linear(DIM, 24), down=nn.Linear(24, DIM)
    ),
    "rotated tokens": lambda: Model(
        lambda m, x: x * m.cosines + x.roll(1, -1) * m.sines,
        cosines=nn.Parameter(torch.rand(TOKENS, DIM)), sines=nn.Parameter(torch.rand(TOKENS, DIM)),
    ),
    "one gate a token": lambda: Model(
        lambda m, x: m.gate(x).relu() * m.up(x), gate=nn.Linear(DIM, 1), up=nn.Linear(DIM, DIM)
    ),
    "GELU written out": lambda: Model(
        lambda m, x: x + m.second(erf_gelu(m.norm(x))), second=nn.Linear(DIM, DIM), norm=nn.LayerNorm(DIM)
    ),
    "norm written out": lambda: Model(lambda m, x: x + m.second(normal(x)), second=nn.Linear(DIM, DIM)),
    "norms by the root mean square": lambda: Model(
        lambda m, x: m.norm(x + m.second(m.norm(x)).relu()), second=nn.Linear(DIM, DIM), norm=nn.RMSNorm(DIM)
    ),
    "tokens in another order": lambda: Model(
        lambda m, x: m.norm(x.flip(1) + m.second(x.flip(1)).relu()),
        second=nn.Linear(DIM, DIM), norm=nn.LayerNorm(DIM),
    ),
    "norms of queries and keys": lambda: Model(
        lambda m, x: joined(F.scaled_dot_product_attention(m.norm(split(x)), m.norm(split(m.key(x))), split(x))),
        key=nn.Linear(DIM, DIM), norm=nn.LayerNorm(DIM // HEADS),
    ),
    "tokens weighed by a layer": lambda: Model(lambda m, x: m.weigh(x).softmax(1).mT @ x, weigh=nn.Linear(DIM, 2)),
}  # fmt: skip


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", FORMS)
def test_form(name: str, precision: str):
    torch.manual_seed(0)
    model, x = FORMS[name]().eval(), torch.randn(16, TOKENS, DIM)
    program = patchloom.compile(model, x[:1], calibration=x, config=MACHINE, precision=precision)
    with torch.no_grad():
        expected = model(x[:2]).numpy()
    assert sqnr(expected, agreed(program, x[:2], "rtl").outputs["main"]) > BOUNDS[precision]
