"""Convolutions from a torch module to every engine: patches are read where they lie, and bit for bit alike."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patchloom
from patchloom.compiler.machine.commands import Kind
from tests.compiler.graphs import sqnr
from tests.machine import MACHINE, agreed

FRAMES = 3


class Convolved(nn.Module):
    """A layer, a convolution of its tokens as a map, a layer behind it."""

    def __init__(self, channels: int, shape: tuple[int, int], conv: nn.Module) -> None:
        super().__init__()
        self.shape, self.conv = shape, conv
        self.first, self.last = nn.Linear(channels, channels), nn.LazyLinear(8)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.conv(self.first(x).mT.unflatten(2, self.shape))
        return self.last(seen.flatten(2).mT)


class Pair(nn.Module):
    """Two convolutions that read the same map, and a third that reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c = nn.Conv2d(8, 12, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu() + self.b(x))


class Joined(nn.Module):
    """Of two layers; below zero, as no edge is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        nn.init.constant_(self.a.bias, -5)
        nn.init.constant_(self.b.bias, -5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 3)


FORMS: dict[str, tuple[int, tuple[int, int], Any]] = {
    "3 x 3": (8, (4, 5), lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "3 x 3, stride 2": (8, (5, 6), lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1)),
    "stride unlike in both": (8, (6, 6), lambda: nn.Conv2d(8, 8, (3, 2), stride=(1, 2), padding=(1, 0))),
    "merging": (8, (4, 6), lambda: nn.Conv2d(8, 8, 2, 2)),
    "within": (8, (5, 5), lambda: nn.Conv2d(8, 8, 3)),
    "dilated": (8, (6, 7), lambda: nn.Conv2d(8, 8, 3, dilation=2, padding=2)),
    "a row of taps": (8, (5, 6), lambda: nn.Conv2d(8, 8, (1, 3), padding=(0, 1))),
    "a column of taps": (8, (5, 6), lambda: nn.Conv2d(8, 8, (3, 1), padding=(1, 0))),
    "channels between chunks": (6, (4, 4), lambda: nn.Conv2d(6, 10, 3, padding=1)),
    "depthwise": (20, (5, 5), lambda: nn.Conv2d(20, 20, 3, padding=1, groups=20)),
    "depthwise 5 x 5, stride 2": (16, (6, 6), lambda: nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16)),
    "depthwise, odd channels": (10, (4, 4), lambda: nn.Conv2d(10, 10, 3, padding=1, groups=10)),
    "grouped": (24, (4, 4), lambda: nn.Conv2d(24, 48, 3, padding=1, groups=3)),
    "grouped and shuffled": (16, (3, 4), lambda: nn.Sequential(nn.Conv2d(16, 16, 1, groups=2), nn.ChannelShuffle(2))),
    "two at once": (8, (4, 6), Pair),
    "maximum": (8, (5, 6), lambda: nn.MaxPool2d(3, 2, padding=1)),
    "maximum, rounded up": (12, (4, 5), lambda: nn.MaxPool2d(2, ceil_mode=True)),
    "maximum of zeros": (8, (4, 5), lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2, padding=1))),
    "maximum of one line": (8, (1, 6), lambda: nn.MaxPool2d(3, 1, padding=1)),
    "maximum of what is joined": (8, (4, 4), lambda: nn.Sequential(Joined(), nn.MaxPool2d(3, 2, padding=1))),
    "a wide map": (4, (3, 70), lambda: nn.Conv2d(4, 4, 3, padding=1)),
}


def program_of(name: str, precision: str) -> tuple[patchloom.Program, nn.Module, Tensor]:
    channels, shape, make = FORMS[name]
    module, x = Convolved(channels, shape, make()), torch.randn(FRAMES, shape[0] * shape[1], channels)
    module(x)
    return patchloom.compile(module, x[:1], calibration=x, config=MACHINE, precision=precision), module, x


GATHERED = ("maximum of zeros", "maximum of what is joined")  # rows of two operations


@pytest.mark.parametrize("name", FORMS)
def test_all_engines_agree(name: str):
    program, module, x = program_of(name, "w16a16")
    result = agreed(program, x, "hls", "rtl")
    assert sqnr(module(x).detach().numpy(), result.outputs["main"]) > 60
    notes = [note for note in program.tasks[0].notes if "part" in note]
    assert not notes or name in GATHERED, "patches are not gathered"


@pytest.mark.parametrize("name", FORMS)
def test_bytes(name: str):
    program, module, x = program_of(name, "w8a8")
    result = agreed(program, x, "rtl")
    assert sqnr(module(x).detach().numpy(), result.outputs["main"]) > 25
    assert any(command.kind == Kind.MATMUL for command in program.tasks[0].commands)
