"""Every rule, all broken ones at once, and the fingerprint."""

from dataclasses import fields, replace

import pytest

from patchloom.compiler.machine.config import Config, ConfigError

OTHER = {
    "inputs": 32, "outputs": 32, "lanes": 8, "weight_width": 16, "activation_width": 16, "accumulator_width": 32,
    "max_rows": 128, "scratchpad_chunks": 8192, "scratchpad_copies": 1, "statistics_rows": 256, "max_experts": 8,
    "max_top_k": 2, "command_depth": 128, "bus_width": 128, "fifo_beats": 256, "word_beats": 2,
    "multipliers_packed": True,
}  # fmt: skip

BROKEN = {
    "inputs": 24, "outputs": 0, "lanes": 12, "weight_width": 4, "activation_width": 12, "accumulator_width": 48,
    "max_rows": 8, "scratchpad_chunks": 1, "scratchpad_copies": 3, "statistics_rows": 1, "max_experts": 1,
    "max_top_k": 9, "command_depth": 1, "bus_width": 48, "word_beats": 3, "fifo_beats": 33,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule(name):
    with pytest.raises(ConfigError, match=rf"Config\.{name} must be .*, not {BROKEN[name]}"):
        Config(**{name: BROKEN[name]})


def test_scratchpad_and_banks():
    with pytest.raises(ConfigError, match="a multiple of the 2 banks"):
        Config(inputs=32, scratchpad_chunks=1025)


def test_all_broken_rules_at_once():
    with pytest.raises(ConfigError) as error:
        Config(max_rows=1, command_depth=1)
    assert (
        str(error.value) == "Config.max_rows must be 16 to 4096, not 1\nConfig.command_depth must be 8 to 4096, not 1"
    )


@pytest.mark.parametrize(("name", "value"), [("inputs", 16.0), ("inputs", True), ("multipliers_packed", 1)])
def test_types(name, value):
    with pytest.raises(ConfigError, match=f"Config.{name} must be of type"):
        Config(**{name: value})


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "multipliers_packed"])
@pytest.mark.parametrize("value", [0, -16])
def test_sizes_are_positive(name, value):
    with pytest.raises(ConfigError, match=f"^Config.{name} must be positive, not {value}$"):
        Config(**{name: value})


def test_bus_and_weight_column():
    with pytest.raises(ConfigError, match="a multiple or a divisor of one weight column"):
        Config(inputs=48, bus_width=256)


def test_every_field_is_in_the_fingerprint():
    assert set(OTHER) == {field.name for field in fields(Config)}
    configs = [Config(), *(replace(Config(), **{name: value}) for name, value in OTHER.items())]
    assert len({config.fingerprint for config in configs}) == len(configs)
    assert 0 <= Config().fingerprint < 1 << 32


def test_derived_sizes():
    config = Config(inputs=32, outputs=16, lanes=8, bus_width=128)
    assert (config.input_chunks, config.output_chunks, config.banks) == (4, 2, 4)
    assert (config.beat_bytes, config.tile_beats, config.parameter_beats) == (16, 32, 8)
