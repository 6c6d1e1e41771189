"""Every function of the table, from torch to the RTL: near the float model, and alike on all engines."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchloom
from benchmarks.table_errors import activation_error
from patchloom.compiler.activations import ACTIVATIONS, FUNCTIONS
from tests.machine import MACHINE

NAMES = [row.name for row in FUNCTIONS]
BOUNDS = {"w8a8": 28, "w16a16": 60}  # dB
LESS = {("quick_gelu", "w8a8"): 5}  # of twice a tensor it stays a product of two, as users write it


ERRORS = {
    "gelu": 3.7e-5, "gelu_tanh": 3.7e-5, "quick_gelu": 4e-5, "silu": 9e-5, "hard_swish": 2.3e-5, "softplus": 5.5e-5,
    "mish": 3.5e-4, "elu": 3.4e-4, "sigmoid": 1.1e-4, "tanh": 1.2e-4, "hard_sigmoid": 1.1e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", [row.name for row in ACTIVATIONS.values() if row.table])
def test_table_of_every_word(name: str):
    assert activation_error(ACTIVATIONS[name]) < ERRORS[name]


class Model(nn.Module):
    """The function between layers, in front of a residual, and last; much of it is far from zero."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name].function
        self.first, self.second, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 8)
        with torch.no_grad():
            self.first.weight *= 8
            self.last.weight *= 5

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.function(self.first(x)))
        return self.function(self.last(y + self.function(2 * y)))


def signal_to_noise(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """In dB."""
    return float(10 * np.log10(np.square(expected).sum() / np.square(actual - expected).sum()))


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_function(name: str, precision: str):
    torch.manual_seed(0)
    model, x = Model(name).eval(), torch.randn(16, 6, 16)
    program = patchloom.compile(model, x[:1], calibration=x, config=MACHINE, precision=precision)
    results = {engine: patchloom.run(program, x[:2], engine=engine) for engine in ("interpreter", "hls", "rtl")}
    with torch.no_grad():
        expected = model(x[:2]).numpy()
    assert signal_to_noise(results["interpreter"].outputs["main"], expected) > BOUNDS[precision] - LESS.get(
        (name, precision), 0
    )
    for result in results.values():
        np.testing.assert_array_equal(result.raw["main"], results["interpreter"].raw["main"])
        assert result.saturations == results["interpreter"].saturations


@pytest.mark.parametrize("name", [row.name for row in ACTIVATIONS.values() if row.limit is not None])
def test_what_is_clipped_counts_as_saturated(name: str):
    torch.manual_seed(0)
    model, x = Model(name).eval(), torch.randn(16, 6, 16)
    program = patchloom.compile(model, x[:1], calibration=x)
    with torch.no_grad():
        beyond = int((model.first(x) > ACTIVATIONS[name].limit).sum())
    assert patchloom.run(program, x).saturations >= 0.9 * beyond > 0
