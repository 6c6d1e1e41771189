"""Weights in memory: what `pack` writes, `unpack` reads, where the docstring says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.compiler.machine.config import BIAS_WIDTH, Config
from patchloom.compiler.machine.fixed import digit_limits, split_digits
from patchloom.compiler.machine.layout import Weights, pack, stream_beats, unpack

CONFIGS = [
    Config(),
    Config(inputs=32, lanes=8),
    Config(inputs=8, outputs=8, lanes=8, weight_width=16, activation_width=16),
    Config(inputs=4, outputs=4, lanes=4, bus_width=512),  # a tile is a fraction of a beat
    Config(inputs=64, outputs=32, lanes=32, bus_width=128),
]


def random_weights(depth, columns, width, digits, seed=0):
    rng = np.random.default_rng(seed)
    low, high = digit_limits(width, digits)
    half = 1 << (BIAS_WIDTH - 1)
    return Weights(
        rng.integers(low, high + 1, (depth, columns)),
        rng.integers(-half, half, columns),
        rng.integers(0, 1 << 16, columns),
        rng.integers(0, 56, columns),
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CONFIGS), st.integers(1, 70), st.integers(1, 70), st.integers(1, 2), st.integers(0, 99))
def test_round_trip(config, depth, columns, digits, seed):
    digits = 1 if config.weight_width == 16 else digits
    weights = random_weights(depth, columns, config.weight_width, digits, seed)
    raw = pack(config, weights, digits)
    assert len(raw) == stream_beats(config, depth, columns, digits) * config.beat_bytes
    again = unpack(config, raw, depth, columns, digits)
    for name in ("matrix", "bias", "multiplier", "shift"):
        assert np.array_equal(getattr(again, name), getattr(weights, name)), name


@pytest.mark.parametrize("config", CONFIGS)
def test_order_of_the_stream(config):
    """Channel groups; in each parameters, then feature groups, digits, channels, features."""
    depth, columns = config.inputs + 3, config.outputs + 1
    digits = 16 // config.weight_width
    weights = random_weights(depth, columns, config.weight_width, digits)
    raw, position, size = pack(config, weights, digits), 0, config.weight_width // 8
    planes = split_digits(weights.matrix, config.weight_width, digits)

    def element(digit, feature, channel):
        return int(planes[digit][feature, channel]) if feature < depth and channel < columns else 0

    for group in range(2):
        channels = range(group * config.outputs, (group + 1) * config.outputs)
        for i, channel in enumerate(channels):
            word = raw[position + 8 * i :][:8]
            parts = word[:5], word[5:7], word[7:]  # bias, multiplier, shift
            expected = (
                int(x[channel]) if channel < columns else 0 for x in (weights.bias, weights.multiplier, weights.shift)
            )
            assert [int.from_bytes(part, "little", signed=part is parts[0]) for part in parts] == list(expected)
        position += config.parameter_beats * config.beat_bytes
        for slice_ in range(2):
            for digit in range(digits):
                values = np.frombuffer(raw, f"<i{size}", config.inputs * config.outputs, position).tolist()
                features = range(slice_ * config.inputs, (slice_ + 1) * config.inputs)
                assert values == [element(digit, f, c) for c in channels for f in features]
                position += config.tile_beats * config.beat_bytes
    assert position == len(raw)
