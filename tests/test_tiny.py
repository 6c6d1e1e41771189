"""The whole way of a model, small enough for a minute: compile, save, load, run on both engines, compare."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchloom

TASKS = ("kind", "height")
HEIGHT, WIDTH, PATCH = 8, 24, 4
TOKENS = (HEIGHT // PATCH) * (WIDTH // PATCH)


class Mixture(nn.Module):
    def __init__(self, dim: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(dim, experts) for _ in TASKS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        score, index = self.gates[task](tokens).topk(2, dim=-1)
        weight = score.softmax(dim=-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(index == number)
            out[rows] += weight[rows, slot, None] * expert(tokens[rows])
        return out.reshape(x.shape)


class Tiny(nn.Module):
    """One attention layer and one mixture of experts between an image and two tasks."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, TOKENS, dim))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.moe = Mixture(dim, 48, 4)
        self.outputs = nn.ModuleList((nn.Linear(dim, 5), nn.Linear(dim, 1)))

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        x = x + self.moe(self.norm2(x), task)
        return self.outputs[task](self.norm3(x))


@pytest.fixture(scope="module")
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(model, images, tmp_path_factory) -> patchloom.Program:
    """Compiled, saved and loaded."""
    path = tmp_path_factory.mktemp("tiny") / "program"
    patchloom.save(patchloom.compile(model, (images[:1], 0), calibration=images, tasks=TASKS), path)
    return patchloom.load(path)


@pytest.mark.parametrize("number", [0, 1])
def test_interpreter_is_near_float(model, images, program, number):
    result = patchloom.run(program, images, task=TASKS[number])
    with torch.no_grad():
        expected = model(images, number).numpy()
    error = np.abs(result.outputs[TASKS[number]] - expected)
    assert error.mean() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("task", TASKS)
def test_rtl_is_the_interpreter(images, program, task):
    rtl = patchloom.run(program, images[:2], task=task, engine="rtl")
    interpreter = patchloom.run(program, images[:2], task=task)
    np.testing.assert_array_equal(rtl.raw[task], interpreter.raw[task])
    assert rtl.saturations == interpreter.saturations
    assert all(cycles > 0 for cycles in rtl.cycles)
