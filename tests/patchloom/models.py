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
        return torch.cumsum(self.fc(torch.sin(x)), dim=1)


def broken() -> nn.Module:
    raise RuntimeError("no weights today")


def not_a_module() -> int:
    return 3


def leaves() -> nn.Module:
    sys.exit("bye")
