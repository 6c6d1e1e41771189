"""Layers, activations, factors, residuals in every form that users write, compared with torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.graph import describe, evaluate
from tests.compiler.frontend.forms import DIM, TOKENS, Function, check, embedded, kinds, let


def centred(x: Tensor, axis: int = -1) -> Tensor:
    return x - x.mean(axis, keepdim=True)


WRITTEN: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {  # likewise
    "gelu": (lambda m, x: m.b(let(m.a(x), lambda y: y * 0.5 * (1 + torch.erf(y / 2**0.5)))), 3),
    "gelu as a sum": (lambda m, x: m.b(let(m.a(x), lambda y: 0.5 * y + 0.5 * y * torch.erf(y * 2**-0.5))), 3),
    "gelu of the first layer": (lambda _, x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), 1),
    "gelu of half the features": (
        lambda m, x: m.eighth(let(m.a(x)[..., 8:], lambda y: 0.5 * y * (1 + torch.erf(y / 2**0.5)))),
        3,
    ),
    "relu as clamp": (lambda m, x: m.a(x).clamp(min=0), 2),
    "relu as maximum": (lambda m, x: torch.maximum(torch.zeros(1), m.a(x)), 2),
    "relu as threshold": (lambda m, x: F.threshold(m.a(x), 0, 0), 2),
    "relu by abs": (lambda m, x: let(m.a(x), lambda y: (y + y.abs()) / 2), 2),
    "relu6 as minimum": (lambda m, x: m.b(torch.minimum(m.a(x * 9).relu(), torch.tensor(6.0))), 3),
    "leaky relu that does not leak": (lambda m, x: F.leaky_relu(m.a(x), 0.0), 2),
    "norm": (
        lambda m, x: m.a(centred(x) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * m.vector + m.vector),
        2,
    ),
    "norm by squares": (
        lambda m, x: m.a(centred(x) * torch.rsqrt(centred(x).pow(2).mean(-1, keepdim=True) + 1e-5)),
        2,
    ),
    "norm by deviation": (lambda m, x: m.a(centred(x) / x.std(-1, keepdim=True)), 2),
    "norm with its factor inside": (
        lambda m, x: m.a(centred(x) * (m.vector / (torch.var_mean(x, -1, keepdim=True)[0] + 1e-5).sqrt())),
        2,
    ),
    "norm of channels": (
        lambda m, x: m.conv(
            let(x.mT.unflatten(2, (2, 3)), lambda y: centred(y, 1) / (y.var(1, keepdim=True) + 1e-3).sqrt())
        ),
        2,
    ),
    "norm of a group": (lambda m, x: m.a(m.group(x[0])[None]), 2),
    "norm by the root mean square": (lambda m, x: x + m.a(m.rms(x)), 2),
    "its square written out": (lambda m, x: m.a(x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * m.vector), 2),
    "norm to unit length": (lambda m, x: m.a(F.normalize(x, dim=-1) * 4), 2),
    "norms of one stream": (lambda m, x: let(x + m.a(m.rms(x)), lambda y: m.rms(y + m.b(m.rms(y)).relu())), 4),
    "norm of halves": (lambda m, x: m.part(x.unflatten(-1, (2, 8))).flatten(2), 4),
    "mean of features": (lambda m, x: x.mean(-1, keepdim=True), 2),
    "mean of heads": (lambda m, x: x.unflatten(-1, (2, 8)).mean(2), 2),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name: str):
    forward, matmuls = WRITTEN[name]
    module, x = embedded(
        forward,
        a=nn.Linear(DIM, DIM), b=nn.Linear(DIM, DIM), eighth=nn.Linear(8, DIM), conv=nn.Conv2d(DIM, DIM, 1),
        group=nn.GroupNorm(1, DIM), part=nn.LayerNorm(8), rms=nn.RMSNorm(DIM, eps=1e-5),
        vector=nn.Parameter(torch.ones(DIM)),
    )  # fmt: skip
    [graph] = check(module, x[:1])
    assert kinds(graph).count("Matmul") == matmuls, describe(graph)


def trained(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """With statistics."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
    return norm


LAYERS: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {  # with the number of matmuls, the first included
    "linear": (lambda m, x: m.a(x), 2),
    "functional linear": (lambda m, x: F.linear(x, m.weight), 2),
    "matrix": (lambda m, x: x @ m.weight, 2),
    "matrix with bias": (lambda m, x: x @ m.weight + m.vector, 2),
    "addmm": (lambda m, x: torch.addmm(m.vector, x.flatten(0, 1), m.weight).unsqueeze(0), 2),
    "computed weight": (lambda m, x: F.linear(x, m.weight @ m.weight.softmax(-1), m.vector * 2), 2),
    "1x1 convolution": (lambda m, x: m.conv(x.transpose(1, 2).unflatten(2, (2, 3))).relu(), 2),
    "gelu": (lambda m, x: F.gelu(m.a(x)), 2),
    "relu": (lambda m, x: m.relu(m.a(x)), 2),
    "relu6": (lambda m, x: m.b(F.relu6(m.a(x * 9))), 3),
    "relu6 in place": (lambda m, x: m.b(m.relu6(m.a(x * 9))), 3),
    "relu6 as hardtanh": (lambda m, x: m.b(F.hardtanh(m.a(x * 9), 0, 6)), 3),
    "relu6 as clamp": (lambda m, x: m.b(m.a(x * 9).clamp(0, 6)), 3),
    "relu6 returned": (lambda m, x: F.relu6(m.a(x * 9)), 3),
    "relu6 and residual": (lambda m, x: x + F.relu6(m.a(x * 9)), 3),
    "relu6 and positions": (lambda m, x: F.relu6(m.a(x * 9)) + m.positions, 3),
    "relu, also used without": (lambda m, x: let(m.a(x), lambda y: y.relu() + m.b(y)), 4),
    "relu of residual": (lambda m, x: (m.a(x) + x).relu(), 3),
    "norm": (lambda m, x: m.norm(x), 2),
    "norm read by two": (lambda m, x: let(m.norm(x), lambda y: m.a(y) + m.b(y)), 3),
    "norm as residual": (lambda m, x: let(m.norm(x), lambda y: m.a(y) + y), 3),
    "norm without parameters": (lambda m, x: m.a(F.layer_norm(x, (DIM,))), 2),
    "norm of scaled": (lambda m, x: m.a(m.norm(x * -0.01)), 2),
    "batch norm behind a layer": (lambda m, x: m.batch(m.a(x).mT).mT, 2),
    "batch norm before a layer": (lambda m, x: let(x + m.a(x), lambda y: y + m.b(m.batch(y.mT).mT)), 3),
    "batch norm before two": (lambda m, x: let(m.batch((x + m.a(x)).mT).mT, lambda y: m.b(y) + m.b(m.a(y))), 5),
    "batch norm behind a convolution": (
        lambda m, x: m.batch(m.conv(x.mT.unflatten(2, (2, 3))).flatten(2)).unflatten(2, (2, 3)).relu(),
        2,
    ),
    "batch norm behind an activation": (lambda m, x: m.batch(m.a(x).relu().mT).mT, 3),
    "batch norm before an activation": (lambda m, x: m.batch((x + m.a(x)).mT).relu(), 3),
    "batch norm of tokens": (lambda m, x: m.batch(m.a(x)[0])[None], 2),
    "batch norm in place": (lambda m, x: m.batch(m.a(x).mT).mT.mul_(2), 2),
    "norm, then factor and shift": (lambda m, x: m.norm(x) * m.vector + m.vector, 2),
    "factor and shift before a layer": (lambda m, x: m.a((x + m.b(x)) * m.vector + m.vector), 3),
    "tokens backwards": (lambda m, x: let(x.flip(1), lambda y: m.norm2(y + m.b(m.norm(y)).relu())), 3),
    "tokens in two orders": (lambda m, x: m.b(m.a(x[:, [3, 1, 5, 0, 2, 4]]).flip(1).relu()), 3),
    "tokens repeated": (lambda m, x: m.a(m.norm(x.repeat_interleave(3, 1))), 2),
    "tokens as a map": (lambda m, x: m.a(x.unflatten(1, (2, 3)).transpose(1, 2)).flatten(1, 2) + m.positions, 2),
    "norm of zeros": (lambda m, x: m.a(x) + m.norm(x * 0), 2),
    "nothing added": (lambda m, x: m.a(x + torch.zeros_like(x)) - 0, 2),
    "times ones": (lambda m, x: m.a(x * torch.ones(TOKENS, 1)), 2),
    "chosen by a constant": (lambda m, x: torch.where(torch.arange(DIM) < 3, m.a(x), x), 4),
    "norm of some tokens": (lambda m, x: m.a(m.norm(x)[:, 0]), 2),
    "norm after choosing tokens": (lambda m, x: m.a(m.norm(x[:, 1:3])), 2),
    "norm of activation": (lambda m, x: m.a(m.norm(m.b(x).relu())), 3),
    "norm then relu": (lambda m, x: m.norm(x).relu(), 2),
    "norm then norm": (lambda m, x: m.a(m.norm2(m.norm(x))), 3),
    "columns": (lambda m, x: m.eighth(x[..., 8:]), 2),
    "columns of norm": (lambda m, x: m.eighth(m.norm(x)[..., ::2]), 2),
    "repeated columns": (lambda m, x: m.a(torch.cat([x[..., :8], x[..., :8]], -1)), 2),
    "scaled": (lambda m, x: m.a(x * 2) / 3, 2),
    "scaled input of activation": (lambda m, x: (0.5 * m.a(x)).relu(), 2),
    "scaled after activation": (lambda m, x: m.b(m.a(x).relu() * 0.5), 3),
    "per-feature factor": (lambda m, x: m.a(x) * m.vector + x, 2),
    "per-feature factor with residual": (lambda m, x: x + m.vector * m.b(m.a(x).relu()), 3),
    "vector as a weight": (lambda m, x: torch.cat([F.linear(m.a(x), m.vector)[..., None], m.a(x)], -1), 6),
    "one matrix of a batch": (lambda m, x: (m.a(x)[:, None] @ m.weight[None, None]).squeeze(1), 3),
    "per-feature factor before": (lambda m, x: m.a(x * m.vector), 2),
    "residual left": (lambda m, x: x + m.a(x), 2),
    "residual right": (lambda m, x: m.a(x) + x, 2),
    "residual of some tokens": (lambda m, x: x[:, 1:3] + m.a(x[:, 1:3]), 3),
    "parallel blocks": (lambda m, x: x + m.a(x) + m.b(m.norm(x)), 3),
    "difference": (lambda m, x: x - m.a(x), 2),
    "difference the other way": (lambda m, x: 1 - m.a(x), 2),
    "sum with itself": (lambda m, x: x + x, 2),
    "sum of activations": (lambda m, x: m.a(x).relu() + m.b(x).relu(), 3),
    "sum of norms": (lambda m, x: m.norm(x) + m.norm2(x), 3),
    "in place": (lambda m, x: m.a(x).add_(x).mul_(2), 3),
    "constant after residual": (lambda m, x: (x + m.a(x)) + m.positions, 3),
    "negated": (lambda m, x: -m.a(x), 2),
    "dropout": (lambda m, x: F.dropout(m.a(x), 0.5, m.training).contiguous().clone(), 2),
    "features joined": (lambda m, x: m.wide(torch.cat([m.a(x), x], -1)), 5),
    "features beside their negative": (lambda m, x: m.wide(torch.cat([x, -x], -1)), 5),
    "features in three sizes": (lambda m, x: m.wide(torch.cat([x, 3 * x[..., :8], x[..., 8:] / 2], -1)), 7),
    "features joined in the result": (lambda m, x: torch.cat([m.a(x), x], -1), 4),
    "mean": (lambda m, x: m.a(m.norm(x).mean(1)), 4),
    "mean of layers": (lambda m, x: torch.stack([m.a(x), m.b(x), x]).mean(0), 5),
    "sum over tokens": (lambda m, x: m.norm(x)[:, 1:].sum(1, keepdim=True), 4),
    "mean over an image": (lambda m, x: m.a(m.pool(x.transpose(1, 2).unflatten(2, (2, 3))).flatten(1)), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str):
    forward, matmuls = LAYERS[name]
    module, x = embedded(
        forward,
        a=nn.Linear(DIM, DIM), b=nn.Linear(DIM, DIM), eighth=nn.Linear(8, DIM), wide=nn.Linear(2 * DIM, DIM),
        conv=nn.Conv2d(DIM, DIM, 1), batch=trained(nn.BatchNorm1d(DIM)), relu=nn.ReLU(inplace=True),
        relu6=nn.ReLU6(inplace=True), norm=nn.LayerNorm(DIM), norm2=nn.LayerNorm(DIM),
        pool=nn.AdaptiveAvgPool2d(1), weight=nn.Parameter(torch.zeros(DIM, DIM)),
        vector=nn.Parameter(torch.ones(DIM)), positions=nn.Parameter(torch.zeros(1, TOKENS, DIM)),
    )  # fmt: skip
    [graph] = check(module, x[:1])
    assert kinds(graph).count("Matmul") == matmuls, describe(graph)


RAW: dict[str, Callable[[Any, Tensor], Any]] = {
    "residual": lambda m, x: x + m.a(x),
    "batch norm": lambda m, x: m.a(m.batch(x.mT).mT),
    "batch norm before padding": lambda m, x: m.conv(m.batch(x.mT)).relu(),
    "norm": lambda m, x: m.a(m.norm(x)) + m.norm(x),
    "activation": lambda m, x: m.a(x.relu()),
    "class token": lambda m, x: let(torch.cat([m.cls, x * 1], 1), lambda y: y + m.a(m.norm(y))),
    "attention": lambda _, x: F.scaled_dot_product_attention(x[:, 1:], x, x),
    "result": lambda _, x: x[:, :2],
    "both": lambda m, x: torch.cat([m.a(x), x], -1),
    "beside its negative": lambda _, x: torch.cat([x, -x], -1),
    "attention of a negative scale": lambda _, x: F.scaled_dot_product_attention(x, x, x, scale=-0.5),
}


@pytest.mark.parametrize("name", RAW)
def test_on_the_input_itself(name: str):
    module = Function(
        RAW[name], a=nn.Linear(8, 8), norm=nn.LayerNorm(8), cls=nn.Parameter(torch.zeros(1, 1, 8)),
        batch=trained(nn.BatchNorm1d(8)), conv=nn.Conv1d(8, 8, 3, padding=1),
    )  # fmt: skip
    check(module, torch.randn(1, 4, 8))


RESULTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "two": lambda m, x: (m.a(x), x[:, 0]),
    "dictionary": lambda m, x: {"logits": m.a(x)[:, 0], "tokens": x},
    "some is None": lambda m, x: (m.a(x), None)[:1],
    "pixel shuffle": lambda m, x: F.pixel_shuffle(m.a(x).transpose(1, 2).unflatten(2, (2, 3)), 4),
    "nearest": lambda m, x: F.interpolate(m.a(x).transpose(1, 2).unflatten(2, (2, 3)), scale_factor=2),
    "transposed convolution": lambda m, x: m.up(x.transpose(1, 2).unflatten(2, (2, 3))),
    "repeated": lambda m, x: m.a(x)[:, :, None].expand(-1, -1, 3, -1).flatten(1, 2),
    "rolled": lambda m, x: torch.roll(m.a(x), 2, 1).flip(2)[:, [0, 3, 3]],
    "padded": lambda m, x: F.pad(m.a(x), (1, 2)),
    "stacked": lambda m, x: let(m.a(x), lambda y: torch.stack([y[:, 0], y[:, 3]], 1)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result(name: str):
    module, x = embedded(RESULTS[name], a=nn.Linear(DIM, DIM), up=nn.ConvTranspose2d(DIM, 3, (2, 4), (2, 4)))
    check(module, x)


ACTIVATIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
    ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))),
    ("gelu", F.gelu),
    ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ("silu", F.silu),
    ("silu", lambda x: x * x.sigmoid()),
    ("silu", lambda x: x / (1 + (-x).exp())),
    ("hard_swish", F.hardswish),
    ("hard_swish", lambda x: x * F.relu6(x + 3) / 6),
    ("softplus", F.softplus),
    ("softplus", nn.Softplus()),
    ("mish", F.mish),
    ("mish", lambda x: x * F.softplus(x).tanh()),
    ("elu", F.elu),
    ("elu", nn.ELU()),
    ("sigmoid", nn.Sigmoid()),
    ("tanh", torch.tanh),
    ("hard_sigmoid", F.hardsigmoid),
]


def test_epsilon_beside_the_deviation_is_reported():
    module, x = embedded(lambda _, x: centred(x) / (x.std(-1, keepdim=True) + 1e-6))
    with pytest.warns(UserWarning, match="adds 1e-06 to the deviation"):
        [graph] = capture(module, (x,))
    with torch.no_grad():
        np.testing.assert_allclose(evaluate(graph, {"input0": x[0].numpy()})["main"], module(x)[0].numpy(), atol=1e-4)


def test_a_large_one_is_computed():
    """By a mean of squares and a table: no norm has it."""
    module, x = embedded(lambda _, x: centred(x) / (x.std(-1, keepdim=True) + 0.1))
    [graph] = check(module, x)
    assert "Tabulated" in kinds(graph)


@pytest.mark.parametrize(("name", "function"), ACTIVATIONS)
def test_activation(name: str, function: Callable[[Tensor], Tensor]):
    module, x = embedded(lambda m, x: function(m.a(x)), a=nn.Linear(DIM, DIM))
    check(module, x)
    [graph] = capture(module, (x,))
    assert [node.activation for node in graph.nodes() if node.kind == "matmul"] == ["none", name]
