"""A model that was not written for this project: torch's own encoder behind a patch embedding, random weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchloom
from tests.machine import MACHINE

DIM, LAYERS, FRAMES = 64, 4, 4


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, 8, 8)
        self.position = nn.Parameter(0.5 * torch.randn(1, 32, DIM))
        layer = nn.TransformerEncoderLayer(
            DIM, 4, 4 * DIM, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(self.embed(image).flatten(2).transpose(1, 2) + self.position)


def sqnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Signal to quantisation noise in dB."""
    return 10 * np.log10(np.square(expected).sum() / np.square(actual - expected).sum())


@pytest.mark.parametrize(("precision", "decibels"), [("w8a8", 25), ("w16a16", 55)])
def test_encoder(precision: str, decibels: float):
    torch.manual_seed(0)
    model, images = Encoder().eval(), torch.randn(16 + FRAMES, 3, 32, 64)
    # MACHINE's 8-bit array does 16 bits in digits.
    program = patchloom.compile(model, (images[:1],), calibration=images[FRAMES:], config=MACHINE, precision=precision)
    results = {engine: patchloom.run(program, images[:FRAMES], engine=engine) for engine in ("interpreter", "rtl")}
    [name] = results["rtl"].raw
    with torch.no_grad():
        expected = model(images[:FRAMES]).numpy()
    measured = sqnr(results["interpreter"].outputs[name], expected)
    print(f"{precision}: {measured:.1f} dB")
    assert measured >= decibels
    assert np.array_equal(results["rtl"].raw[name], results["interpreter"].raw[name])
    assert results["rtl"].saturations == results["interpreter"].saturations
