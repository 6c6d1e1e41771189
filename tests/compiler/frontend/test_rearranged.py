"""Tokens in another order, beside one another, or as features: what constant matrices gather."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiler.frontend.forms import DIM, TOKENS, check, embedded, kinds


def grid(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, 3, DIM).permute(0, 3, 1, 2)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "rolled": lambda m, x: m.linear(x.roll(2, 1)),
    "rolled, with a norm": lambda m, x: m.linear(m.norm(x.roll(1, 1))),
    "heads of rolled tokens": lambda m, x: F.scaled_dot_product_attention(*heads(m.qkv(x).roll(1, 1))),
    "flipped and added": lambda m, x: x + x.flip(1),
    "transposed grid": lambda m, x: m.linear(x.reshape(len(x), 2, 3, DIM).transpose(1, 2).flatten(1, 2)),
    "tokens side by side": lambda m, x: m.wide(x.reshape(len(x), 3, 2 * DIM)),
    "merged, with a norm": lambda m, x: m.wide(m.wide_norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1))),
    "tokens of two layers": lambda m, x: m.linear(torch.cat([m.linear(x), x[:, :2]], 1)),
    "tokens mixed": lambda m, x: m.tokens(x.mT).mT,
    "tokens mixed twice": lambda m, x: x + m.fewer(F.gelu(m.more(m.norm(x).mT))).mT,
    "convolution": lambda m, x: m.conv(grid(x)),
    "convolution twice": lambda m, x: m.conv(m.conv(grid(x)).relu()),
    "strided": lambda m, x: F.conv2d(grid(x), m.conv.weight[:, :, :2], m.conv.bias, stride=(1, 2), padding=(1, 0)),
    "pooled": lambda m, x: F.avg_pool2d(grid(x), (2, 1), padding=(1, 0), count_include_pad=False),
    "pooled to fewer": lambda m, x: m.linear(F.adaptive_avg_pool2d(grid(x) * 2, (1, 2)).flatten(2).mT),
    "pooled in one dimension": lambda m, x: m.norm(F.avg_pool1d(x.mT, 3, 1).mT),
    "interpolated": lambda m, x: m.conv(F.interpolate(grid(x), scale_factor=2, mode="bilinear")),
    "dilated": lambda m, x: F.conv2d(grid(x), m.conv.weight, dilation=(1, 2), padding=(1, 2)),
    "padded to the same": lambda m, x: F.conv2d(grid(x), m.conv.weight, padding="same"),
    "enlarged": lambda m, x: m.conv(F.interpolate(grid(x), scale_factor=2)),
    "returned in two pieces": lambda m, x: torch.cat([m.linear(x).flip(1), x], 1),
}


FREE = {"rolled", "rolled, with a norm", "heads of rolled tokens", "transposed grid"}  # are computed as they lie
PATCHES = {"tokens side by side", "convolution", "convolution twice", "strided", "dilated", "padded to the same"}


@pytest.mark.parametrize("name", FORMS)
def test_rearranged(name: str):
    module, x = embedded(
        FORMS[name], linear=nn.Linear(DIM, DIM), wide=nn.Linear(2 * DIM, DIM), tokens=nn.Linear(TOKENS, TOKENS),
        conv=nn.Conv2d(DIM, DIM, 3, padding=1), norm=nn.LayerNorm(DIM), wide_norm=nn.LayerNorm(2 * DIM),
        qkv=nn.Linear(DIM, 3 * DIM), more=nn.Linear(TOKENS, 24), fewer=nn.Linear(24, TOKENS),
    )  # fmt: skip
    [graph] = check(module, x)
    assert ("Mix" in kinds(graph)) == (name not in FREE | PATCHES)
