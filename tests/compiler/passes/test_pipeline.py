"""What small models become by all passes, as golden files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.graph import describe
from patchloom.compiler.node import View
from patchloom.compiler.nodes import Input, Matmul, Output
from patchloom.compiler.passes import rewrite
from patchloom.compiler.passes.engine import in_order
from tests.compiler.golden import matches

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch):
    """File names in messages are relative to the working directory."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    torch.set_num_threads(1)


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
    """What rewrite got: one line per node, with those that it reads."""
    texts: list[str] = []

    def recorded(results: Mapping[str, View], lost: Sequence[View]) -> Any:
        order = in_order(list(results.values()))
        numbers = {base: f"%{i}" for i, base in enumerate(order)}
        for base in order:
            reads = [numbers[read] for view in base.views for read, _ in view.terms]
            shape = "x".join(map(str, base.shape))
            line = [numbers[base], "=", type(base).__name__.lower(), f"'{base.origin.name}'", shape, *reads]
            texts.append(" ".join(line) + "\n")
        return rewrite(results, lost)

    monkeypatch.setattr("patchloom.compiler.frontend.capture.rewrite", recorded)
    return texts


def test_pre_norm_model_becomes(before: list[str]):
    graphs = capture(PreNorm(), (torch.randn(1, 1, 8, 8), 0), tasks=("first", "second"))
    assert matches("".join(before), GOLDEN / "pre_norm_before.txt")
    assert matches("".join(map(describe, graphs)), GOLDEN / "pre_norm.txt")


def test_post_norm_model_becomes(before: list[str]):
    [graph] = capture(PostNorm(), (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)))
    assert matches("".join(before), GOLDEN / "post_norm_before.txt")
    assert matches(describe(graph), GOLDEN / "post_norm.txt")


def test_nodes_know_where_they_are_from():
    [graph] = capture(PostNorm(), (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)))
    sources = {node.name: node.origin.where for node in graph.nodes() if isinstance(node, Matmul)}
    assert sources["head"].startswith("tests/compiler/passes/test_pipeline.py:")
    names = [node.name for node in graph.nodes() if not isinstance(node, Input | Output)]
    assert len(set(names)) == len(names)
