"""Mixtures whose gate reads something else than their experts do, from a torch module to every engine: alike."""

import pytest
import torch
from torch import nn

import patchloom
from tests.compiler.frontend.forms import DIM, TOKENS, embedded
from tests.compiler.frontend.mixtures import WAYS
from tests.machine import MACHINE, agreed


@pytest.mark.parametrize("name", ["NormOfExperts", "NormOfEach", "Layers"])
def test_engines(name: str):
    torch.manual_seed(0)
    module, _ = embedded(lambda m, x: x + m.mixture(m.norm(x)), mixture=WAYS[name](), norm=nn.LayerNorm(DIM))
    samples = torch.randn(8, TOKENS, DIM)
    program = patchloom.compile(module.eval(), samples[:1], calibration=samples, config=MACHINE, precision="w8a8")
    agreed(program, samples[:3], "hls", "rtl")
