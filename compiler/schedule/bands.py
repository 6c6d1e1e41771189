"""A sparse matrix as bands of rows, each with the columns that it needs: what costs a machine the fewest cycles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import FIELDS
from patchloom.compiler.machine.config import Config

MOST_ROWS = 256  # of a band, where nothing else limits them
COMMAND = 4  # tiles of the array in whose time a command begins and ends


@dataclass(frozen=True)
class Band:
    """Rows [first, last), columns [low, high)."""

    first: int
    last: int
    low: int
    high: int

    def of(self, matrix: NDArray[Any]) -> NDArray[Any]:
        return matrix[self.first : self.last, self.low : self.high]


def bands(matrix: NDArray[Any], config: Config, step: int = 1, most: int = MOST_ROWS) -> Iterator[Band]:
    """Every row once, at most so many in a band; `low` is a multiple of `step`."""
    low, high = _needed(matrix, step)
    cheapest, begin = np.zeros(len(matrix) + 1), np.zeros(len(matrix) + 1, np.int64)
    for last in range(1, len(matrix) + 1):
        first = max(0, last - min(most, config.max_rows))
        depth = np.maximum.accumulate(high[first:last][::-1]) - np.minimum.accumulate(low[first:last][::-1])
        rows = np.arange(1, last - first + 1)
        cost = -(-depth // config.inputs) * np.maximum(rows, config.inputs) + COMMAND * config.inputs
        total = cheapest[first:last][::-1] + np.where(depth > FIELDS["depth"].high, np.inf, cost)
        best = int(total.argmin())
        cheapest[last], begin[last] = total[best], last - 1 - best
    for first, last in spans(begin):
        yield Band(first, last, int(low[first:last].min()), int(high[first:last].max()))


def spans(begin: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """[first, last) of the best cuts, `begin` being where the last of them begins, of so many."""
    edges = [len(begin) - 1]
    while edges[-1]:
        edges.append(int(begin[edges[-1]]))
    yield from zip(edges[:0:-1], edges[-2::-1], strict=True)


def _needed(matrix: NDArray[Any], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[low, high) columns of each row that are not all zero; rows of zeros need one that another needs."""
    used = matrix != 0
    some = used.any(axis=1)
    low = np.where(some, used.argmax(axis=1), -1)
    high = matrix.shape[1] - used[:, ::-1].argmax(axis=1)
    nearest = np.maximum.accumulate(np.where(some, np.arange(len(matrix)), some.argmax()))
    low, high = low[nearest], high[nearest]
    if not some.any():
        low, high = np.zeros_like(low), np.ones_like(high)
    return low // step * step, high
