"""Rows of the zoo that compile: what the interpreter loses against float, and that the RTL gives its integers."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import systems
from benchmarks.zoo.families import OWN, rows
from benchmarks.zoo.measure import FLOORS, measure
from benchmarks.zoo.row import Row, enliven, settle
from docs import models
from patchloom.sim.device import SimulatedDevice
from tests.machine import MACHINE

# Of the families that need no package; one that stops compiling is told.
SLICE = """
form/activation GELU
form/activation ReLU
form/activation ReLU6
form/attention by einsum
form/attention differential
form/attention grouped queries
form/attention of some tokens to others
form/attention one projection for q, k and v
form/attention one wide layer of many heads
form/attention scaled_dot_product_attention
form/attention with another scale
form/attention written out
form/norm LayerNorm over channels
form/norm Unified Normalization
form/norm affine
form/norm layer scale
form/norm post-norm
form/norm sandwich
mixture/einsum
mixture/gate per task
mixture/gathered
mixture/loop
mixture/masked
mixture/one-hot
mixture/scattered
mixture/sorted
mixture/top 1
mixture/ranks
published/CRATE
published/FuseGPT
published/Multiple Exiting
published/ShiftAddViT
published/Transformer Fusion
published/USAGE
published/Uni4Eye
published/Unified Normalization
published/Wide Attention
torch.nn/attention
torch.nn/encoder post-norm
torch.nn/encoder pre-norm
""".strip().splitlines()
ROWS = {row.name: row for _, row in rows(*OWN)}


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    """Built before a row's time is counted."""
    with SimulatedDevice(MACHINE):
        pass


@pytest.mark.parametrize("name", SLICE)
def test_row(name: str):
    found = measure(ROWS[name], rtl=True, config=MACHINE)
    assert (found.verdict, found.reasons) == ("compiles", [])
    assert found.rtl == "identical"
    for precision, floor in FLOORS.items():
        # A token near a tie may go to other experts.
        rerouted = int(found.rerouted.get(precision, "0 of 0").split()[0])
        assert found.decibels[precision] >= floor or 0 < rerouted <= 4, f"{precision}, {rerouted} rerouted"


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("as packages do")


@pytest.mark.parametrize(
    ("module", "verdict", "reason"), [(Odd, "refused", "aten.sort"), (Broken, "broken", "as packages do")]
)
def test_what_does_not_compile_is_told(module, verdict, reason):
    found = measure(Row("one", "", module))
    assert found.verdict == verdict
    assert reason in found.reasons[0]


def test_weights_are_lively():
    made = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(4))
    made[1].scale = nn.Parameter(1e-5 * torch.ones(8))
    enliven(made)
    settle(made.eval(), (torch.randn(16, 4, 8),), ())
    assert made[0].weight.std() > 0.05
    assert made[1].scale.abs().min() > 0.01
    assert made[2].running_mean.abs().min() > 0
    assert made[2].running_var.std() > 0
    assert not made[2].training


def test_names_are_one_rows_each():
    assert len(ROWS) == len(list(rows(*OWN)))


def test_systems_have_rows():
    known = models.results()
    for system in (*systems.MODELS, *systems.TECHNIQUES):
        assert system.says or system.rows
        assert set(system.rows) <= known.keys()
