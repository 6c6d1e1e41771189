"""Encoding: 512 bits, every value of every field."""

from enum import IntEnum

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
    bits, signed = FIELDS[name]
    if name in ENUMERATIONS:
        return st.sampled_from(list(ENUMERATIONS[name]))
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else st.integers(0, (1 << bits) - 1)


commands = st.fixed_dictionaries({name: values(name) for name in FIELDS}).map(lambda fields: Command(**fields))


@given(commands)
def test_round_trip(command):
    raw = command.encode()
    assert len(raw) == COMMAND_BYTES
    assert Command.decode(raw) == command


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ENUMERATIONS])
def test_a_field_alone_moves_only_its_bits(name):
    bits, signed = FIELDS[name]
    position = sum(width for width, _ in list(FIELDS.values())[: list(FIELDS).index(name)])
    raw = int.from_bytes(Command(kind=Kind.END, **{name: -1 if signed else (1 << bits) - 1}).encode(), "little")
    assert raw == ((1 << bits) - 1) << position


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ENUMERATIONS])
def test_a_value_too_large_is_refused(name):
    bits, signed = FIELDS[name]
    too_large = 1 << (bits - 1 if signed else bits)
    with pytest.raises(ValueError, match=rf"MATMUL {name} must lie in .* not {too_large}"):
        Command(kind=Kind.MATMUL, **{name: too_large}).encode()


def test_an_unknown_kind_does_not_decode():
    with pytest.raises(ValueError, match="15 is not a valid Kind"):
        Command.decode(bytes([15]).ljust(COMMAND_BYTES, b"\0"))
