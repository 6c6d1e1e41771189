"""Matrices whose rows are patches of a map, as a machine finds them: a grid of rows, and in each row a grid of taps.

A token's place in a node's result is its row. Rows of the matrix begin at `first`, `step` rows further from each to the
next of a line and `outer` rows from line to line; from there each tap is a row again, and of each the columns [low,
high) count.
"""

from dataclasses import dataclass

import numpy as np

from patchloom.compiler.node import Indices, View


@dataclass(frozen=True)
class Progression:
    """`outer * i + step * j` for all i < lines and j < line, in this order."""

    lines: int
    line: int
    outer: int
    step: int

    @classmethod
    def of(cls, places: Indices) -> "Progression | None":
        """Of numbers that begin with 0."""
        steps = np.diff(places)
        breaks = np.flatnonzero(steps != steps[0]) if len(steps) else steps
        line = int(breaks[0]) + 1 if len(breaks) else len(places)
        if len(places) % line:
            return None
        found = cls(
            len(places) // line, line, int(places[line]) if line < len(places) else 0, int(steps[0]) if line > 1 else 0
        )
        return found if found.outer >= 0 and found.step >= 0 and np.array_equal(found.places, places) else None

    @property
    def places(self) -> Indices:
        return (np.arange(self.lines)[:, None] * self.outer + np.arange(self.line) * self.step).reshape(-1)


@dataclass(frozen=True)
class Walk:
    first: int
    low: int
    high: int
    rows: Progression
    taps: Progression

    @classmethod
    def of(cls, view: View) -> "Walk | None":
        """Of a matrix of elements of one node's result, a tap's columns next to one another, none of them zero."""
        base = view.base
        if base is None or view.terms[0][1] != 1.0 or len(base.shape) != 2 or view.index.min() < 0:
            return None
        row, column = np.divmod(view.index, base.shape[1])
        offset = row[0] - row[0, 0]
        width = int(np.argmax(offset != 0)) or len(offset)
        low, high = int(column[0, 0]), int(column[0, 0]) + width
        if len(offset) % width or not (row == row[:, :1] + offset).all():
            return None
        taps, rows = Progression.of(offset[::width]), Progression.of(row[:, 0] - row[0, 0])
        alike = (
            np.array_equal(np.tile(np.arange(low, high), len(offset) // width), column[0])
            and (column == column[0]).all()
        )
        if taps is None or rows is None or not alike or not np.array_equal(offset, taps.places.repeat(width)):
            return None
        return cls(int(row[0, 0]), low, high, rows, taps)

    @property
    def reach(self) -> int:
        """The last row that it touches, from `first` on."""
        return int(self.rows.places.max() + self.taps.places.max())
