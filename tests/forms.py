"""Ways to write a layer, between two layers, as they are compiled for the one small machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import patchloom
from tests.machine import MACHINE

DIM, TOKENS, FRAMES = 16, 12, 2


class Form(nn.Module):
    """Tokens of a layer, the form, and a layer behind it."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.first, self.last = nn.Linear(DIM, DIM), nn.LazyLinear(DIM)
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self, self.first(x)))

    def heads(self, x: Tensor) -> Tensor:
        """q, k, v; of two heads."""
        return self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)


def joined(x: Tensor) -> Tensor:
    """Heads side by side."""
    return x.transpose(1, 2).flatten(2)


def compiled(make: Callable[[], Form], precision: str) -> tuple[patchloom.Program, Tensor, Any]:
    """The Program, frames that calibration has not seen, and what the module makes of them."""
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(16 + FRAMES, TOKENS, DIM)
    with torch.no_grad():
        expected = model(images[:FRAMES]).numpy()
    program = patchloom.compile(model, (images[:1],), calibration=images[FRAMES:], config=MACHINE, precision=precision)
    return program, images[:FRAMES], expected
