"""Every rule, all broken ones at once, and the fingerprint."""

from dataclasses import asdict, dataclass, fields, replace

import pytest

from patchloom.compiler.machine.config import Config, ConfigError, added

OTHER = {
    "inputs": 32, "outputs": 32, "lanes": 8, "weight_width": 16, "activation_width": 16, "accumulator_width": 32,
    "max_rows": 128, "scratchpad_chunks": 8192, "scratchpad_copies": 1, "statistics_rows": 256, "max_experts": 8,
    "max_top_k": 2, "command_depth": 128, "bus_width": 128, "fifo_beats": 256, "word_beats": 2,
    "multipliers_packed": True, "epilogue_lanes": 2,
}  # fmt: skip

BROKEN = {
    "inputs": 24, "outputs": 0, "lanes": 12, "weight_width": 4, "activation_width": 12, "accumulator_width": 48,
    "max_rows": 8, "scratchpad_chunks": 1, "scratchpad_copies": 3, "statistics_rows": 1, "max_experts": 1,
    "max_top_k": 9, "command_depth": 1, "bus_width": 48, "word_beats": 3, "fifo_beats": 33, "epilogue_lanes": 3,
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
        str(error.value) == "Config.max_rows must be 16 to 4096, not 1\nConfig.command_depth must be 8 to 16384, not 1"
    )


@pytest.mark.parametrize(("name", "value"), [("inputs", 16.0), ("inputs", True), ("multipliers_packed", 1)])
def test_types(name, value):
    with pytest.raises(ConfigError, match=f"Config.{name} must be of type"):
        Config(**{name: value})


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "multipliers_packed"])
@pytest.mark.parametrize("value", [0, -16])
def test_sizes_are_positive(name, value):
    if (name, value) == ("epilogue_lanes", 0):
        return  # all
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


# Machines and Programs are out there: a change of one of these refuses them. A new field must be `added`.
FINGERPRINTS = {
    0x278542BE: {},
    0x880724BA: {"inputs": 32, "outputs": 32, "lanes": 32, "bus_width": 256},
    0xBE6CBAB1: {
        "inputs": 8, "outputs": 8, "lanes": 4, "accumulator_width": 38, "max_rows": 129, "scratchpad_chunks": 20480,
        "scratchpad_copies": 1, "statistics_rows": 258, "command_depth": 384,
    },
}  # fmt: skip


def test_fingerprints_of_machines_that_are_out_there():
    assert {Config(**values).fingerprint: values for values in FINGERPRINTS.values()} == FINGERPRINTS


@dataclass(frozen=True, kw_only=True)
class Wider(Config):
    """A Config of some time later: two fields more, the default of one has changed since."""

    ports: int = added(1, absent=1)
    pooled: bool = added(True, absent=False)


def test_added_fields():
    """They are what machines were before, or change the fingerprint, whatever the default."""
    before = Wider(pooled=False)
    assert before.fingerprint == Config().fingerprint
    assert replace(before, inputs=32).fingerprint == Config(inputs=32).fingerprint
    others = [before, replace(before, ports=2), replace(before, ports=3), Wider(), replace(Wider(), ports=2)]
    assert len({config.fingerprint for config in others}) == len(others)


def test_fields_that_a_manifest_does_not_state():
    """It has what machines were before, not what they have become."""
    old = Config(inputs=32)
    assert Wider.stated(asdict(old)) == Wider(inputs=32, pooled=False)
    assert Wider.stated(asdict(old)).fingerprint == old.fingerprint
    assert Wider.stated(asdict(Wider(ports=4))) == Wider(ports=4)
    with pytest.raises(KeyError, match="inputs"):
        Config.stated({name: value for name, value in asdict(old).items() if name != "inputs"})


def test_lanes_of_the_epilogue():
    """Fewer than there are outputs, or all."""
    config = Config(outputs=32, epilogue_lanes=16)
    assert (config.channels_at_once, config.passes) == (16, 2)
    assert (Config().channels_at_once, Config().passes) == (16, 1)
    with pytest.raises(
        ConfigError, match=r"Config.epilogue_lanes must be 0, or a divisor of lanes \(16\) that is less"
    ):
        Config(epilogue_lanes=16)


def test_derived_sizes():
    config = Config(inputs=32, outputs=16, lanes=8, bus_width=128)
    assert (config.input_chunks, config.output_chunks, config.banks) == (4, 2, 4)
    assert (config.beat_bytes, config.tile_beats, config.parameter_beats) == (16, 32, 8)


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_an_array_has_a_limit(name: str):
    """What follows from a Config, e.g. by loading one from a file, takes memory in proportion."""
    Config(**{name: 1024})
    with pytest.raises(
        ConfigError, match=rf"Config.{name} must be a multiple of lanes \(16\), at most 1024, not 65536"
    ):
        Config(**{name: 65536})
