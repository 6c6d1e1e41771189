"""What small models become, and what is said about models that cannot be compiled: both as golden files."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.capture import CaptureError, capture
from patchloom.compiler.graph import describe
from patchloom.compiler.nodes import Input, Matmul, Output
from patchloom.compiler.primitive import View
from patchloom.compiler.rewrite import in_order, rewrite

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]


def matches_golden(text: str, name: str) -> bool:
    """`UPDATE_GOLDEN=1 pytest` writes the files anew."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    return True


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch):
    """File names in messages are relative to the working directory."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    torch.set_num_threads(1)


# --- Models and their graphs ---


class Experts(nn.Module):
    def __init__(self, dim: int, tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 8), nn.ReLU(), nn.Linear(8, dim)) for _ in range(3)
        )  # fmt: skip
        self.gates = nn.ModuleDict({str(task): nn.Linear(dim, 3) for task in range(tasks)})

    def forward(self, x: Tensor, task: int) -> Tensor:
        scores, chosen = self.gates[str(task)](x).softmax(-1).topk(2)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (scores[..., None] * outputs.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))).sum(-2)


class PreNorm(nn.Module):
    """Class token, fused qkv, layer scale, experts, a token head and an image head."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 5, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.randn(dim))
        self.moe = Experts(dim, 2)
        self.label, self.image = nn.Linear(dim, 10), nn.Linear(dim, 16)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, image: Tensor, task: int) -> dict[str, Tensor]:
        x = torch.cat([self.cls, self.patch(image).flatten(2).transpose(1, 2)], 1) + self.pos
        x = x + self.attention(self.norm1(x)) * self.scale
        x = self.norm3(x + self.moe(self.norm2(x), task))
        return {"label": self.label(x[:, 0]), "image": F.pixel_shuffle(self.image(x[:, 1:]).mT.unflatten(2, (2, 2)), 4)}


class PostNorm(nn.Module):
    """Two inputs, torch's own encoder with norms behind the residuals, mean over tokens."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, dim, 4, 4), nn.Conv2d(1, dim, 4, 4)
        layer = nn.TransformerEncoderLayer(dim, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 3)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        x = (self.colour(colour / 255) + self.depth(depth)).flatten(2).transpose(1, 2)
        return self.head(self.encoder(x).mean(1))


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What rewrite got: one line per primitive, with those that it reads."""
    texts: list[str] = []

    def recorded(results: Mapping[str, View]) -> Any:
        order = in_order(list(results.values()))
        numbers = {base: f"%{i}" for i, base in enumerate(order)}
        for base in order:
            reads = [numbers[read] for view in base.views for read, _ in view.terms]
            shape = "x".join(map(str, base.shape))
            line = [numbers[base], "=", type(base).__name__.lower(), f"'{base.origin.name}'", shape, *reads]
            texts.append(" ".join(line) + "\n")
        return rewrite(results)

    monkeypatch.setattr("patchloom.compiler.capture.rewrite", recorded)
    return texts


def test_pre_norm_model_becomes(before: list[str]):
    graphs = capture(PreNorm(), (torch.randn(1, 1, 8, 8), 0), tasks=("first", "second"))
    assert matches_golden("".join(before), "pre_norm_before")
    assert matches_golden("".join(map(describe, graphs)), "pre_norm")


def test_post_norm_model_becomes(before: list[str]):
    [graph] = capture(PostNorm(), (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)))
    assert matches_golden("".join(before), "post_norm_before")
    assert matches_golden(describe(graph), "post_norm")


def test_nodes_know_where_they_are_from():
    [graph] = capture(PostNorm(), (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)))
    sources = {node.name: node.source for node in graph.nodes() if isinstance(node, Matmul)}
    assert sources["head"].startswith("tests/compiler/test_rewrite.py:")
    names = [node.name for node in graph.nodes() if not isinstance(node, Input | Output)]
    assert len(set(names)) == len(names)


# --- Models that cannot be compiled ---


class Written(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.first = nn.Linear(8, 8)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, self.first(x))


class Block(nn.Module):
    """Routes in a loop, with the norm and the residual inside: no one mixture of the block's own tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(8), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        chosen = self.gate(y).argmax(-1)
        out = x.clone()
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if rows.any():
                out[rows] += expert(y[rows])
        return out


class Sigmoid(Block):
    """A mixture with other scores."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * self.gate(x).sigmoid()[..., None, :]).sum(-1)


def many(m: Any, x: Tensor) -> Tensor:
    y = F.silu(x)
    y = m.batch(y.transpose(1, 2)).transpose(1, 2)
    y = y + x * x
    y = F.interpolate(y, scale_factor=2, mode="linear")
    return y.argmax(-1)


def masked_attention(_: Any, x: Tensor) -> Tensor:
    scores = (x @ x.mT).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf")).softmax(-1)
    return scores @ x


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "many": lambda: Written(many, batch=nn.BatchNorm1d(8)),
    "masked_attention": lambda: Written(masked_attention),
    "biased_attention": lambda: Written(lambda _, x: (x @ x.mT + torch.eye(3)).softmax(-1) @ x),
    "causal_attention": lambda: Written(lambda _, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "softmax_result": lambda: Written(lambda _, x: x.softmax(-1)),
    "tokens_mixed": lambda: Written(lambda m, x: m.mix(x.mT).mT, mix=nn.Linear(3, 3)),
    "merged_tokens": lambda: Written(lambda m, x: m.mix(x[:, :2].flatten(1)), mix=nn.Linear(16, 3)),
    "token_factor": lambda: Written(lambda _, x: x * torch.arange(3.0)[:, None]),
    "partial_norm": lambda: Written(lambda m, x: m.norm(x), norm=nn.LayerNorm((3, 8))),
    "depthwise": lambda: Written(lambda m, x: m.conv(x.mT), conv=nn.Conv1d(8, 8, 3, padding=1, groups=8)),
    "constant_result": lambda: Written(lambda m, x: (x, m.first.weight * 2)),
    "experts_in_block": lambda: Written(lambda m, x: m.block(x), block=Block()),
    "other_scores": lambda: Written(lambda m, x: m.block(x), block=Sigmoid()),
    "branch_on_values": lambda: Written(lambda _, x: x * 2 if x.sum() > 0 else x),
    "not_finite": lambda: with_nan(Written(lambda m, x: m.norm(x), norm=nn.LayerNorm(8))),
}


def with_nan(module: Any) -> nn.Module:
    with torch.no_grad():
        module.first.weight[1, 2] = float("nan")
        module.norm.bias[0] = float("inf")
    return module


def with_code(text: str) -> str:
    """The user's line itself in place of its number."""

    def code(match: re.Match[str]) -> str:
        return f"{match[1]}:[{(ROOT / match[1]).read_text().splitlines()[int(match[2]) - 1].strip()}]"

    return re.sub(r"(tests/\S+\.py):(\d+)", code, text)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says(name: str):
    with pytest.raises(CaptureError) as refusal:
        capture(REFUSED[name](), (torch.randn(1, 3, 8),))
    assert matches_golden(with_code(f"{refusal.value}\n"), f"refused_{name}")


ARGUMENTS: dict[str, tuple[tuple[Any, ...], tuple[str, ...] | None, str]] = {
    "int without tasks": ((torch.ones(1, 2), 0), None, "pass tasks="),
    "tasks without int": ((torch.ones(1, 2),), ("a",), "need forward to take the task as an int"),
    "two ints": ((torch.ones(1, 2), 0, 1), ("a",), "at most one int, the task, not 2"),
    "no names": ((torch.ones(1, 2), 0), (), "at least one"),
    "equal names": ((torch.ones(1, 2), 0), ("a", "a"), "different names"),
    "integers": ((torch.ones(1, 2, dtype=torch.int64),), None, "must be a float tensor"),
    "text": (("a",), None, "must be a float tensor with a batch dimension, not str"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_checked(name: str):
    inputs, tasks, message = ARGUMENTS[name]
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(2, 2), inputs, tasks=tasks)
