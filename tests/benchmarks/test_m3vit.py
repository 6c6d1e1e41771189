"""The benchmark's workload is what it says: size, routing, ranges."""

import pytest
import torch
from torch import Tensor

from benchmarks.m3vit_t.model import TASKS, M3ViT, MoEBlock, trunk_macs, trunk_weights
from benchmarks.m3vit_t.weights import build, loads, published, routing


@pytest.fixture(scope="module")
def workload() -> tuple[M3ViT, Tensor]:
    return build(top_k=2)


def test_size(workload):
    model, image = workload
    assert round(trunk_macs(model) / 1e6, 1) == 782.7
    assert round(trunk_weights(model) / 1e6, 2) == 17.93
    assert [tuple(model(image, task).shape) for task in range(len(TASKS))] == [(1, 19, 8, 16), (1, 1, 8, 16)]


@pytest.mark.parametrize("task", range(len(TASKS)))
def test_routing(workload, task):
    model, image = workload
    seen = routing(model, image, task)
    assert seen == {layer: loads(2, task, layer) for layer in seen}
    assert len(seen) == 6


def test_top4_routing():
    model, image = build(top_k=4)
    for task in range(len(TASKS)):
        seen = routing(model, image, task)
        assert seen == {layer: loads(4, task, layer) for layer in seen}


def test_ranges(workload):
    """Within a fifth of the published deviations, and scores as wide."""
    model, image = workload
    ranges, x = published()["activation_ranges"], model.embed(image)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            scores, _ = block.attn.scores(block.norm1(x))
            low, high = ranges["attention_score_min_max"][layer]
            assert float(scores.max() - scores.min()) == pytest.approx(high - low, rel=1e-3)
            x = block(x, 0)
            assert float(x.std()) == pytest.approx(ranges["residual_std_per_layer"][layer], rel=0.2)
    assert isinstance(block, MoEBlock)
