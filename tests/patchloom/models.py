"""Models that the tests' design files name."""

import sys

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, hidden), nn.Linear(hidden, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ByName(nn.Module):
    """Takes the name of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"near": nn.Linear(16, 3), "far": nn.Linear(16, 7)})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](x)


class TwoInputs(nn.Module):
    """Takes the task between its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(24, 8)

    def forward(self, left: Tensor, task: int, right: Tensor) -> Tensor:
        return self.a(left) + self.b(right) if task else self.a(left)


class Patches(nn.Module):
    """Takes a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.cut(image).flatten(2).transpose(1, 2).mean(1))


class Tied(nn.Module):
    """One matrix by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.fc(torch.frac(x)), dim=1)


def broken() -> nn.Module:
    raise RuntimeError("no weights today")


def not_a_module() -> int:
    return 3


def leaves() -> nn.Module:
    sys.exit("bye")


class Experts(nn.Module):
    """Two of four for each token, a gate for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(16, 4) for _ in range(2))
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)) for _ in range(4))

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, 16)
        score, index = self.gates[task](tokens).topk(2, dim=-1)
        weight, out = score.softmax(dim=-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(index == number)
            if rows.numel() == 0:
                continue
            out[rows] += weight[rows, slot, None] * expert(tokens[rows])
        return out.reshape(x.shape)


class Mixture(nn.Module):
    """Patches of a picture in windows of 2 x 2, behind a class token; task 0 is a class for each, task 1 a number."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.token = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.mixtures = nn.ModuleList(Experts() for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(16, classes) for classes in (3, 1))

    def embedded(self, image: Tensor) -> Tensor:
        """Tokens [batch, 9, 16], as the gates see them."""
        patches = self.cut(image)
        windows = patches.reshape(-1, 16, 1, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 8, 16)
        return torch.cat([self.token.expand(len(windows), -1, -1), windows], 1)

    def forward(self, image: Tensor, task: int) -> Tensor:
        x = self.embedded(image)
        for mixture in self.mixtures:
            x = x + mixture(x, task)
        y = self.heads[task](x)[:, 1:]
        y = y.reshape(-1, 1, 2, 2, 2, y.shape[-1]).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(len(image), -1, 2, 4)
