"""Every form that users write, captured, evaluated and compared with torch."""

import copy
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.capture import CaptureError, capture
from patchloom.compiler.graph import Graph, describe, evaluate
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Moe

GOLDEN = Path(__file__).parent / "golden"
DIM, TOKENS = 16, 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


def randomise(module: nn.Module) -> nn.Module:
    """No parameter at an initial zero or one, so that none can be forgotten."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def check(module: nn.Module, *inputs: Any, tasks: tuple[str, ...] | None = None) -> list[Graph]:
    """Capture, evaluate and compare with torch to 1e-4; return the graphs."""
    randomise(module)
    graphs = capture(module, inputs, tasks=tasks)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    for number, graph in enumerate(graphs):
        arguments = [value[:1] if isinstance(value, Tensor) else number for value in inputs]
        with torch.no_grad():
            expected = module.eval()(*arguments)
        names = [name for name in inspect.signature(module.forward).parameters if name != "task"]
        if len(names) < len(tensors) or names == ["inputs"]:
            names = [f"input{i}" for i in range(len(tensors))]
        actual = evaluate(graph, {name: value[0].numpy() for name, value in zip(names, tensors, strict=True)})
        compare(expected, actual)
    return graphs


def compare(expected: Any, actual: dict[str, Any]) -> None:
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        parts = list(expected.values())
    else:
        parts = list(expected) if isinstance(expected, tuple) else [expected]
    assert len(actual) == len(parts)
    for result, part in zip(actual.values(), parts, strict=True):
        assert result.shape == part.shape[1:]
        np.testing.assert_allclose(result, part[0].numpy(), atol=1e-4, rtol=1e-4)


class Function(nn.Module):
    """A forward given as a function of the module's parts and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def embedded(forward: Callable[..., Any], **parts: Any) -> tuple[nn.Module, Tensor]:
    """The function on tokens that a linear layer made, so that no operand is an input."""
    first = nn.Linear(DIM, DIM)
    module = Function(lambda m, x: forward(m, m.first(x)), first=first, **parts)
    return module, torch.randn(2, TOKENS, DIM)


def let(value: Tensor, use: Callable[[Tensor], Any]) -> Any:
    """A value used twice."""
    return use(value)


def kinds(graph: Graph) -> list[str]:
    return [type(node).__name__ for node in graph.nodes()]


# --- A whole model ---


class Experts(nn.Module):
    """A mixture of experts as a loop, one gate per task."""

    def __init__(self, dim: int, hidden: int, experts: int, top_k: int, tasks: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.gates = nn.ModuleList(nn.Linear(dim, experts) for _ in range(tasks))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim), nn.Dropout(0.1))
            for _ in range(experts)
        )

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        logits, chosen = self.gates[task](tokens).topk(self.top_k)
        scores = logits.softmax(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            if len(rows) == 0:
                continue
            out.index_add_(0, rows, scores[rows, rank, None] * expert(tokens[rows]))
        return out.reshape(x.shape)


class Attend(nn.Module):
    """Fused qkv, attention written out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.drop = nn.Dropout(0.1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = self.drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attend(dim, heads)
        self.mlp = mlp

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return x + (self.mlp(y, task) if isinstance(self.mlp, Experts) else self.mlp(y))


class Vision(nn.Module):
    """Patches, class token, positions, blocks, one head per task, an image out."""

    def __init__(self, dim: int = DIM, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.zeros(1, 9, dim))
        dense = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, dense), Block(dim, heads, Experts(dim, 24, 4, 2, 2))])
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList([nn.Linear(dim, 5 * 16), nn.Linear(dim, 16)])

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        for block in self.blocks:
            x = block(x, task)
        x = self.heads[task](self.norm(x)[:, 1:])
        return x.reshape(len(x), 2, 4, -1, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, 8, 16)


def test_vision_transformer_with_experts_and_tasks():
    graphs = check(Vision(), torch.randn(2, 3, 8, 16), 0, tasks=("segmentation", "depth"))
    assert [graph.task for graph in graphs] == ["segmentation", "depth"]
    assert [[output.name for output in graph.outputs] for graph in graphs] == [["segmentation"], ["depth"]]
    first, second = ([node for node in graph.nodes() if isinstance(node, Matmul | Moe)] for graph in graphs)
    for a, b in zip(first[:-1], second[:-1], strict=True):
        if isinstance(a, Moe) and isinstance(b, Moe):
            assert a.gate_weight is not b.gate_weight
            assert all(x.w1 is y.w1 and x.b2 is y.b2 for x, y in zip(a.experts, b.experts, strict=True))
        else:
            assert a.weight is b.weight
            assert a.bias is b.bias


def test_capture_leaves_the_module_as_it_was():
    module = Vision().train()
    module.blocks[0].eval()
    before = copy.deepcopy(module.state_dict())
    flags = [part.training for part in module.modules()]
    capture(module, (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    with pytest.raises(CaptureError):
        capture(module, (torch.randn(1, 3, 8, 16), 0))
    module.norm = nn.BatchNorm1d(9)
    with pytest.raises(CaptureError):
        capture(module, (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    flags[-4:-3] = [True]
    assert [part.training for part in module.modules()] == flags
    assert all("forward" not in part.__dict__ for part in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items() if "norm." not in name)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_transformer_encoder(norm_first: bool, activation: str):
    layer = nn.TransformerEncoderLayer(
        DIM, 2, 32, activation=activation, batch_first=True, norm_first=norm_first, dropout=0.1
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    patch = nn.Conv2d(3, DIM, 4, 4)
    module = Function(
        lambda m, x: m.encoder(m.patch(x).flatten(2).transpose(1, 2) + m.pos),
        encoder=encoder, patch=patch, pos=nn.Parameter(torch.zeros(1, 8, DIM)),
    )  # fmt: skip
    [graph] = check(module, torch.randn(1, 3, 8, 16))
    assert kinds(graph).count("Attention") == 2


# --- Tokens ---


def tokens_of(m: Any, x: Tensor) -> Tensor:
    return m.patch(x).flatten(2).transpose(1, 2)


def with_class(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.cls.expand(len(x), -1, -1), x], dim=1)


EMBEDDINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "plain": tokens_of,
    "positions": lambda m, x: tokens_of(m, x) + m.pos[:, 1:],
    "class token then positions": lambda m, x: with_class(m, tokens_of(m, x)) + m.pos,
    "positions then class token": lambda m, x: with_class(m, m.pos[:, 1:] + tokens_of(m, x)),
    "class token last": lambda m, x: torch.cat([tokens_of(m, x), m.cls], 1) + m.pos,
    "class token only": lambda m, x: with_class(m, tokens_of(m, x)),
    "two class tokens, computed positions": lambda m, x: with_class(m, with_class(m, tokens_of(m, x)))
    + torch.cat([m.pos, m.pos[:, :1] * 2], 1),
    "normalised patches": lambda m, x: with_class(m, m.norm(tokens_of(m, x))) + m.pos,
    "image normalised": lambda m, x: with_class(m, tokens_of(m, (x - m.mean) / m.std)) + m.pos,
    "positions as image": lambda m, x: (m.patch(x) + m.pos[:, 1:].reshape(1, 16, 2, 4)).flatten(2).transpose(1, 2),
    "unfolded by hand": lambda m, x: m.flat(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3))
    .flatten(1, 2),
    "overlapping": lambda m, x: m.overlapping(x).flatten(2).transpose(1, 2),
    "reordered": lambda m, x: with_class(m, tokens_of(m, x).flip(1)) + m.pos,
}  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding(name: str):
    """Read by a norm, a residual and a head, as the first block does."""
    module = Function(
        lambda m, x: let(EMBEDDINGS[name](m, x), lambda y: y + m.head(m.last(y))),
        patch=nn.Conv2d(3, DIM, 4, 4),
        overlapping=nn.Conv2d(3, DIM, 5, 4, padding=2),
        flat=nn.Linear(48, DIM),
        cls=nn.Parameter(torch.zeros(1, 1, DIM)),
        pos=nn.Parameter(torch.zeros(1, 9, DIM)),
        norm=nn.LayerNorm(DIM),
        mean=nn.Parameter(torch.zeros(1, 3, 1, 1)),
        std=nn.Parameter(torch.ones(1, 3, 1, 1)),
        last=nn.LayerNorm(DIM),
        head=nn.Linear(DIM, DIM),
    )
    [graph] = check(module, torch.randn(1, 3, 8, 16))
    assert kinds(graph).count("Matmul") <= (3 if name == "normalised patches" else 2)


# --- Attention ---


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
    "multihead, weights unused": lambda m, x: m.mha(x, x, x)[0],
    "multihead": lambda m, x: m.mha(x, x, x, need_weights=False)[0],
    "multihead across": lambda m, x: m.mha(x[:, :2], x, x, need_weights=False)[0],
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str):
    module, x = embedded(
        lambda m, x: ATTENTIONS[name](m, m.norm(x)),
        qkv=nn.Linear(DIM, 3 * DIM), proj=nn.Linear(DIM, DIM), norm=nn.LayerNorm(DIM),
        q=nn.Linear(DIM, DIM), k=nn.Linear(DIM, DIM), v=nn.Linear(DIM, DIM, bias=False),
        temperature=nn.Parameter(torch.ones(1)), temperatures=nn.Parameter(torch.ones(2, 1, 1)),
        mha=nn.MultiheadAttention(DIM, 2, batch_first=True, dropout=0.1),
    )  # fmt: skip
    [graph] = check(module, x)
    assert kinds(graph).count("Attention") == 1


# --- Layers, activations, factors, residuals ---

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
    "relu, also used without": (lambda m, x: let(m.a(x), lambda y: y.relu() + m.b(y)), 4),
    "relu of residual": (lambda m, x: (m.a(x) + x).relu(), 3),
    "norm": (lambda m, x: m.norm(x), 2),
    "norm read by two": (lambda m, x: let(m.norm(x), lambda y: m.a(y) + m.b(y)), 3),
    "norm as residual": (lambda m, x: let(m.norm(x), lambda y: m.a(y) + y), 3),
    "norm without parameters": (lambda m, x: m.a(F.layer_norm(x, (DIM,))), 2),
    "norm of scaled": (lambda m, x: m.a(m.norm(x * -0.01)), 2),
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
    "features joined in the result": (lambda m, x: torch.cat([m.a(x), x], -1), 4),
    "mean": (lambda m, x: m.a(m.norm(x).mean(1)), 4),
    "mean of layers": (lambda m, x: torch.stack([m.a(x), m.b(x), x]).mean(0), 5),
    "sum over tokens": (lambda m, x: m.norm(x)[:, 1:].sum(1, keepdim=True), 5),
    "mean over an image": (lambda m, x: m.a(m.pool(x.transpose(1, 2).unflatten(2, (2, 3))).flatten(1)), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str):
    forward, matmuls = LAYERS[name]
    module, x = embedded(
        forward,
        a=nn.Linear(DIM, DIM), b=nn.Linear(DIM, DIM), eighth=nn.Linear(8, DIM), wide=nn.Linear(2 * DIM, DIM),
        conv=nn.Conv2d(DIM, DIM, 1), relu=nn.ReLU(inplace=True), norm=nn.LayerNorm(DIM), norm2=nn.LayerNorm(DIM),
        pool=nn.AdaptiveAvgPool2d(1), weight=nn.Parameter(torch.zeros(DIM, DIM)),
        vector=nn.Parameter(torch.ones(DIM)), positions=nn.Parameter(torch.zeros(1, TOKENS, DIM)),
    )  # fmt: skip
    [graph] = check(module, x[:1])
    assert kinds(graph).count("Matmul") == matmuls, describe(graph)


RAW: dict[str, Callable[[Any, Tensor], Any]] = {
    "residual": lambda m, x: x + m.a(x),
    "norm": lambda m, x: m.a(m.norm(x)) + m.norm(x),
    "activation": lambda m, x: m.a(x.relu()),
    "class token": lambda m, x: let(torch.cat([m.cls, x * 1], 1), lambda y: y + m.a(m.norm(y))),
    "attention": lambda _, x: F.scaled_dot_product_attention(x[:, 1:], x, x),
    "result": lambda _, x: x[:, :2],
    "both": lambda m, x: torch.cat([m.a(x), x], -1),
}


@pytest.mark.parametrize("name", RAW)
def test_on_the_input_itself(name: str):
    module = Function(RAW[name], a=nn.Linear(8, 8), norm=nn.LayerNorm(8), cls=nn.Parameter(torch.zeros(1, 1, 8)))
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


def test_several_inputs_keep_their_names():
    module = nn.Module()
    module.a, module.b = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(colour: Tensor, depth: Tensor) -> Tensor:
        return module.a(colour) + module.b(depth)

    module.forward = forward  # type: ignore[method-assign]
    [graph] = check(module, torch.randn(2, 3, 4), torch.randn(2, 3, 6))
    assert {node.name for node in graph.nodes() if isinstance(node, Input)} == {"colour", "depth"}


def test_tanh_gelu_is_reported():
    module, x = embedded(lambda m, x: F.gelu(x, approximate="tanh"))
    with pytest.warns(UserWarning, match="tanh approximation"):
        [graph] = capture(module, (x,))
    with torch.no_grad():
        np.testing.assert_allclose(evaluate(graph, {"input0": x[0].numpy()})["main"], module(x)[0].numpy(), atol=5e-4)


def test_exact_gelu_is_not():
    module, x = embedded(lambda m, x: F.gelu(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        capture(module, (x,))


# --- Mixtures of experts ---


class Mixture(nn.Module):
    """Experts and gates; subclasses route."""

    def __init__(self, top_k: int = 2, experts: int = 4, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.top_k = top_k
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 24), activation(), nn.Linear(24, DIM)) for _ in range(experts)
        )
        self.gate = nn.Linear(DIM, experts, bias=False)

    def outputs(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts], -2)


class SelectedThenSoftmax(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        logits, chosen = self.gate(x).topk(self.top_k)
        outputs = self.outputs(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (logits.softmax(-1)[..., None] * outputs).sum(-2)


class SoftmaxThenSelected(Mixture):
    """Everything computed and masked."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        mask = torch.zeros_like(scores).scatter(-1, scores.topk(self.top_k).indices, 1.0)
        return torch.einsum("...e,...ed->...d", scores * mask, self.outputs(x))


class Peaked(SelectedThenSoftmax):
    """Selects three experts, of which the third weighs less than what a misfit may be."""

    def __init__(self) -> None:
        super().__init__(top_k=3, experts=5)
        self.gate.bias = nn.Parameter(torch.tensor([12.0, 11.0, 1.0, -12.0, -12.0]))


class Renormalised(Mixture):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, chosen = self.gate(x).softmax(-1).topk(self.top_k)
        weights = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, scores / scores.sum(-1, True))
        return (weights[..., None] * self.outputs(x)).sum(-2), weights.var()


class PerToken(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        result = []
        for token in x.flatten(0, 1):
            logits, chosen = self.gate(token).topk(self.top_k)
            parts = [s * self.experts[int(e)](token) for s, e in zip(logits.softmax(0), chosen, strict=True)]
            result.append(torch.stack(parts).sum(0))
        return torch.stack(result).reshape(x.shape)


class RawGate(Mixture):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = None
        self.w_gate = nn.Parameter(torch.zeros(2, DIM, len(self.experts)))

    def forward(self, x: Tensor) -> Tensor:
        logits, chosen = (x @ self.w_gate[1]).topk(self.top_k)
        weights = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, logits.softmax(-1))
        return (weights[..., None] * self.outputs(x)).sum(-2)


class Router(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, experts)

    def forward(self, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        logits, chosen = self.layer(x).topk(top_k)
        return logits.softmax(-1), chosen


class Nested(nn.Module):
    """Experts in a module that gets the choice, the gate in another."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = Mixture()
        self.bank.gate = None
        self.router = Router(4)

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x, 2)
        outputs = self.bank.outputs(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (scores[..., None] * outputs).sum(-2)


def as_block(mixture: nn.Module) -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        result = m.mixture(m.norm(x))
        return x + (result[0] if isinstance(result, tuple) else result)

    return embedded(forward, mixture=mixture, norm=nn.LayerNorm(DIM))


MIXTURES: dict[str, tuple[Callable[[], nn.Module], int, str, str]] = {
    "selected then softmax": (SelectedThenSoftmax, 2, "softmax_of_selected", "gelu"),
    "softmax then selected": (SoftmaxThenSelected, 2, "softmax_of_all", "gelu"),
    "renormalised, with a loss": (Renormalised, 2, "softmax_of_selected", "gelu"),
    "token by token": (PerToken, 2, "softmax_of_selected", "gelu"),
    "one of three": (lambda: SoftmaxThenSelected(top_k=1, experts=3), 1, "softmax_of_all", "gelu"),
    "three of five": (lambda: SelectedThenSoftmax(top_k=3, experts=5), 3, "softmax_of_selected", "gelu"),
    "three of five, the third hardly felt": (Peaked, 3, "softmax_of_selected", "gelu"),
    "all": (lambda: SoftmaxThenSelected(top_k=4), 4, "softmax_of_selected", "gelu"),
    "relu": (lambda: SelectedThenSoftmax(activation=nn.ReLU), 2, "softmax_of_selected", "relu"),
    "raw gate matrices": (RawGate, 2, "softmax_of_selected", "gelu"),
    "experts in a module of their own": (Nested, 2, "softmax_of_selected", "gelu"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture(name: str):
    make, top_k, scoring, activation = MIXTURES[name]
    module, x = as_block(make())
    [graph] = check(module, x)
    [moe] = [node for node in graph.nodes() if isinstance(node, Moe)]
    assert (moe.top_k, moe.scoring, moe.activation) == (top_k, scoring, activation)
    assert moe.epsilon is not None
    assert moe.residual is not None


def test_mixture_called_once_per_task_with_keyword():
    module = Function(lambda m, x, task: m.mixture(m.mixture(x, task=0), task=task), mixture=Experts(DIM, 24, 4, 2, 3))
    graphs = check(module, torch.randn(2, TOKENS, DIM), 0, tasks=("a", "b", "c"))
    gates = [[node.gate_weight for node in graph.nodes() if isinstance(node, Moe)] for graph in graphs]
    assert all(first is gates[0][0] for first, _ in gates)
    assert len({id(second) for _, second in gates}) == 3


# --- Evaluation ---


def test_evaluate_shows_every_intermediate():
    [graph, _] = capture(randomise(Vision()), (torch.randn(1, 3, 8, 16), 0), tasks=("a", "b"))
    seen: dict[object, dict[str, np.ndarray]] = {}
    evaluate(
        graph,
        {"image": np.ones((3, 8, 16), np.float32)},
        lambda node, what, x: seen.setdefault(node, {}).update({what: x}),
    )
    quantities = {
        Input: {"output"},
        Constant: {"output"},
        Matmul: {"operand", "preactivation", "result", "output"},
        Attention: {"scores", "probabilities", "output"},
        Moe: {"operand", "logits", "preactivation", "hidden", "result", "output", "choice"},
    }
    for node in graph.nodes():
        if type(node) in quantities:
            assert set(seen[node]) == quantities[type(node)]
            assert seen[node]["output"].shape == node.shape
    [moe] = [node for node in seen if isinstance(node, Moe)]
    assert seen[moe]["choice"].shape == (9, 2)
    assert seen[moe]["hidden"].shape == (18, 24)
    assert all(value.dtype in (np.float32, np.int64) for values in seen.values() for value in values.values())


def test_evaluate_checks_its_inputs():
    [graph] = capture(nn.Linear(4, 4), (torch.randn(1, 3, 4),))
    with pytest.raises(ValueError, match=r"must have shape \(3, 4\), not \(4, 3\)"):
        evaluate(graph, {"input": np.zeros((4, 3), np.float32)})
