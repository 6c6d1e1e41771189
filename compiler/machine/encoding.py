"""Bit fields of the words that a machine reads from memory, least significant first."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from patchloom.compiler.machine.fixed import Ints

Word = TypeVar("Word", int, Ints)


class Bits(NamedTuple):
    """One field."""

    width: int
    signed: bool = False

    @property
    def low(self) -> int:
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.width - self.signed)) - 1


def positions(fields: Mapping[str, Bits]) -> dict[str, int]:
    """The lowest bit of each field."""
    out, position = {}, 0
    for name, bits in fields.items():
        out[name], position = position, position + bits.width
    return out


def joined(fields: Mapping[str, Bits], values: Mapping[str, Word]) -> Word:
    """The word of values that their fields hold; arrays of words of at most 64 bits alike."""
    at = positions(fields)
    parts = [(values[name] & ((1 << bits.width) - 1)) << at[name] for name, bits in fields.items()]
    word = parts[0]
    for part in parts[1:]:
        word = word | part
    return word


def parted(fields: Mapping[str, Bits], word: Word) -> dict[str, Word]:
    """Inverse of `joined`."""
    at, out = positions(fields), {}
    for name, bits in fields.items():
        value, sign = word >> at[name] & ((1 << bits.width) - 1), 1 << (bits.width - 1)
        out[name] = (value ^ sign) - sign if bits.signed else value
    return out
