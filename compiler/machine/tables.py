"""The epilogue's table: what is taken from a word on its way through an activation function.

It is loaded from a Program's image by a TABLE command, `ENTRIES` words of `ENTRY_BITS`. A word's place in it, its code,
is its magnitude or the word itself, from the middle on; words beyond the table find its ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.encoding import Bits, joined, parted
from patchloom.compiler.machine.fixed import Ints, shift_round

INDEX_BITS, FRACTION_BITS = 9, 10  # of a code: which entry, and how far to the next one
CODE_BITS = INDEX_BITS + FRACTION_BITS
ENTRIES, MIDDLE, LAST = 1 << INDEX_BITS, 1 << (CODE_BITS - 1), (1 << CODE_BITS) - 1
ENTRY = {"base": Bits(19, signed=True), "slope": Bits(13, signed=True)}  # slope: to the next entry's base
ENTRY_BITS = sum(bits.width for bits in ENTRY.values())
TABLE_BYTES = ENTRIES * ENTRY_BITS // 8
WITH_TABLE = (Post.EVEN, Post.SIDED, Post.ALONE)


@dataclass(frozen=True)
class Table:
    """`data` is what memory holds."""

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def through(cls, name: str, knots: Sequence[float] | NDArray[np.float64]) -> "Table":
        """The nearest integers to `ENTRIES` + 1 values, of codes 0, 1 << FRACTION_BITS and so on."""
        points = np.rint(np.asarray(knots, np.float64)).astype(np.int64)
        values = {"base": points[:-1], "slope": np.diff(points)}
        for part, bits in ENTRY.items():
            low, high = int(values[part].min()), int(values[part].max())
            if not bits.low <= low <= high <= bits.high:
                raise ValueError(f"a {part} of table '{name}' must be {bits.low} to {bits.high}, not {low} to {high}")
        return cls(name, joined(ENTRY, values).astype("<u4").tobytes())

    @cached_property
    def entries(self) -> dict[str, Ints]:
        return parted(ENTRY, np.frombuffer(self.data, "<u4").astype(np.int64))

    def __call__(self, code: Ints) -> Ints:
        """Of codes from 0 to `LAST`."""
        index, fraction = code >> FRACTION_BITS, code & ((1 << FRACTION_BITS) - 1)
        base, slope = (self.entries[part][index] for part in ENTRY)
        value: Ints = base + shift_round(slope * fraction, FRACTION_BITS)
        return value


def activate(post: Post, word: Ints, table: Table | None = None) -> Ints:
    """What `post` says of epilogue words."""
    kept = np.zeros_like(word) if post == Post.ALONE else word if post == Post.NONE else np.maximum(word, 0)
    if post not in WITH_TABLE:
        return kept
    assert table is not None
    code = np.abs(word) if post == Post.EVEN else word + MIDDLE
    return kept - table(np.clip(code, 0, LAST))
