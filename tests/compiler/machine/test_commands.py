"""Encoding: 512 bits, every value of every field."""

from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchloom.compiler.machine.commands import (
    COMMAND_BYTES,
    FIELDS,
    Command,
    Kind,
    Post,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)

ENUMERATIONS: dict[str, type[IntEnum]] = {
    "kind": Kind, "b_source": Stationary, "dma_space": Space, "queue": Queue, "prologue": Prologue,
    "post": Post, "row_scale": RowScale, "residual": Residual,
}  # fmt: skip


def values(name):
    if name in ENUMERATIONS:
        return st.sampled_from(list(ENUMERATIONS[name]))
    return st.integers(FIELDS[name].low, FIELDS[name].high)


commands = st.fixed_dictionaries({name: values(name) for name in FIELDS}).map(lambda fields: Command(**fields))


@given(commands)
def test_round_trip(command):
    raw = command.encode()
    assert len(raw) == COMMAND_BYTES
    assert Command.decode(raw) == command


def test_golden():
    """A field alone with its extreme value, field after field: programs that are stored stay what they are."""
    lines = [
        line.split() for line in Path(__file__).with_name("golden").joinpath("commands.txt").read_text().splitlines()
    ]
    assert list(dict.fromkeys(name for name, *_ in lines)) == list(FIELDS)
    for name, value, word in lines:
        command = Command(**({"kind": Kind.END} | {name: int(value)}))
        assert int.from_bytes(command.encode(), "little") == int(word, 16), name


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ENUMERATIONS])
def test_a_value_beyond_its_bits_is_refused(name):
    for value in (FIELDS[name].low - 1, FIELDS[name].high + 1):
        with pytest.raises(ValueError, match=rf"MATMUL {name} must lie in .* not {value}$"):
            Command(kind=Kind.MATMUL, **{name: value}).encode()


def test_an_unknown_kind_does_not_decode():
    with pytest.raises(ValueError, match="15 is not a valid Kind"):
        Command.decode(bytes([15]).ljust(COMMAND_BYTES, b"\0"))
