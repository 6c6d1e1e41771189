"""A view as rectangles of operations' results, each of which a constant matrix can gather."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.node import Floats, Indices, Node, View, float32, whole
from patchloom.compiler.nodes import Constant, Input, Mix
from patchloom.compiler.passes.views import constant
from patchloom.compiler.problems import UnsupportedError
from patchloom.compiler.walk import Progression

MOST = 512  # rectangles of a view

Read = Callable[[View], View]  # a block, as an operation may read it
Rectangle = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Where:
    """For each element of a view: its term, -1 for zero, and the row and column there."""

    view: View
    term: Indices
    row: Indices
    column: Indices

    @classmethod
    def of(cls, view: View) -> "Where":
        ends = np.cumsum([base.size for base, _ in view.terms])
        term = np.where(view.index < 0, -1, np.searchsorted(ends, view.index, side="right"))
        features = np.array([base.shape[-1] for base, _ in view.terms])[term]
        starts = np.array([0, *ends[:-1]])[term]
        row, column = np.divmod(view.index - starts, features)
        return cls(view, term, np.where(term < 0, -1, row), np.where(term < 0, -1, column))

    def part(self, rows: slice, columns: slice) -> "Where":
        here = rows, columns
        return Where(View(self.view.terms, self.view.index[here]), self.term[here], self.row[here], self.column[here])


@dataclass(frozen=True, eq=False)
class Piece:
    x: View
    matrix: Floats
    rows: slice
    column: int


def mixed(view: View, reader: Node, read: Read) -> Mix:
    """The view of a matrix as products of constant matrices with blocks, in the way that needs the fewest."""
    view = View(tuple((_in_rows(base), factor) for base, factor in view.terms), view.index)
    straight, turned = Where.of(view), Where.of(view.transposed)
    for at, rectangles in sorted([*_ways(straight), *_ways(turned)], key=lambda way: len(way[1])):
        if len(rectangles) > MOST:
            names = ", ".join(
                dict.fromkeys(str(base.origin) for base, _ in view.terms if not isinstance(base, Constant))
            )
            raise UnsupportedError(
                f"reads the result of {names} in {len(rectangles)} rectangles, but must in at most {MOST}",
                "rearrange elements before the first layer or after the last one",
            )
        made = _mix(at, rectangles, reader, read)
        if made is not None and at is turned:
            return Mix.of(whole(made).transposed, np.eye(len(view.index), dtype=np.float32), origin=reader.origin)
        if made is not None:
            return made
    raise AssertionError("a class of rows that are alike consists of rectangles")


def _mix(at: Where, rectangles: Sequence[Rectangle], reader: Node, read: Read) -> Mix | None:
    found = [_piece(at.part(*here), here, reader) for here in rectangles]
    pieces = [piece for piece in found if piece is not None]
    if len(pieces) < len(found):
        return None
    steps = [piece.rows.step for piece in pieces]
    return Mix(
        origin=reader.origin,
        x=tuple(read(piece.x) for piece in pieces),
        matrices=tuple(piece.matrix for piece in pieces),
        places=tuple((piece.rows.start, piece.column) for piece in pieces),
        steps=tuple(steps) if any(step > 1 for step in steps) else (),
    )


def _in_rows(base: Node) -> Node:
    """A constant of any rank as a matrix with the same elements."""
    if not isinstance(base, Constant) or len(base.shape) == 2:
        return base
    return replace(base, value=base.value.reshape(-1, base.shape[-1] if base.shape else 1))


def gathered(base: Node, rows: Indices, reader: Node) -> Mix:
    """Whole rows of an operation in any order; row -1 is zero."""
    first, last = int(rows[rows >= 0].min()), int(rows.max()) + 1
    matrix = float32(rows[:, None] == np.arange(first, last))
    return Mix.of(whole(base).pick(whole(base).index[first:last]), matrix, origin=reader.origin)


def in_columns(view: View) -> Indices:
    """An order of a matrix's columns in which those of the same rows are next to one another."""
    at = Where.of(view)
    _, alike = np.unique(np.concatenate([at.term, at.row]), axis=1, return_inverse=True)
    return np.lexsort((at.column.max(axis=0), alike.reshape(-1)))


def _ways(at: Where) -> Iterator[tuple[Where, list[Rectangle]]]:
    """Some, of which not all rectangles need be blocks."""
    free = np.array([*(isinstance(base, Input | Constant) for base, _ in at.view.terms), True])[at.term]
    yield at, list(_in_bands(at, free))
    yield at, list(_in_classes(at, free, at.row, at.column))
    yield at, list(_in_classes(at, free, at.column, at.row))


def _in_bands(at: Where, free: NDArray[np.bool_]) -> Iterator[Rectangle]:
    """Rows of the same operations, of them columns of the same rows; some of them may be nothing."""
    for top, bottom in _bands(at.term):
        here = slice(top, bottom, 1)
        rows = at.part(here, slice(None))
        same = (np.diff(rows.term, axis=1) == 0).all(axis=0)
        anyhow = (free[here, 1:] & free[here, :-1]).all(axis=0)
        straight = same & (anyhow | _steps(rows.row, rows.column, rows.term))
        turned = same & (anyhow | _steps(rows.column, rows.row, rows.term))
        for columns in min(_runs(straight), _runs(turned), key=len):
            yield here, columns


def _in_classes(at: Where, free: NDArray[np.bool_], still: Indices, moving: Indices) -> Iterator[Rectangle]:
    """Rows that have the same columns of the same operations, wherever they are."""
    goes = (np.diff(still, axis=1) == 0) & (np.diff(moving, axis=1) == 1)
    goes = (np.diff(at.term, axis=1) == 0) & (goes | free[:, 1:])
    _, alike = np.unique(np.hstack([at.term, np.where(free, 0, moving), goes]), axis=0, return_inverse=True)
    alike = alike.reshape(-1)
    for number in range(int(alike.max()) + 1):
        rows = np.flatnonzero(alike == number)
        yield from product(_regular(rows), _runs(goes[rows[0]]))


def _regular(rows: Indices) -> Iterator[slice]:
    """Ascending numbers as few that are equally far apart."""
    found = Progression.of(rows - rows[0])
    if found is not None and found.line < found.lines:  # each place of all lines
        for first in rows[: found.line].tolist():
            yield slice(first, first + (found.lines - 1) * found.outer + 1, found.outer)
        return
    rest = rows.tolist()
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 1
        count = next((i for i in range(1, len(rest)) if rest[i] - rest[i - 1] != step), len(rest))
        yield slice(rest[0], rest[count - 1] + 1, step)
        rest = rest[count:]


def _bands(term: Indices) -> list[tuple[int, int]]:
    """Consecutive rows, each of whose columns is of one term or zero."""
    edges, seen = [0], term[0]
    for number, row in enumerate(term):
        if ((seen >= 0) & (row >= 0) & (seen != row)).any():
            edges.append(number)
            seen = row
        seen = np.maximum(seen, row)
    return list(pairwise([*edges, len(term)]))


def _steps(still: Indices, moving: Indices, term: Indices) -> NDArray[np.bool_]:
    """Whether each column goes on where the one before ends."""
    present = term[:, 1:] >= 0
    goes: NDArray[np.bool_] = ((np.diff(still, axis=1) == 0) & (np.diff(moving, axis=1) == 1) | ~present).all(axis=0)
    return goes


def _runs(alike: NDArray[np.bool_]) -> list[slice]:
    return [slice(*run) for run in pairwise([0, *(np.flatnonzero(~alike) + 1).tolist(), len(alike) + 1])]


def _piece(at: Where, where: Rectangle, reader: Node) -> Piece | None:
    view, rows, place = at.view.pick(at.view.index), len(at.term), (where[0], where[1].start)
    value = np.zeros(view.shape, np.float32) if at.term.max() < 0 else constant(view)
    if value is not None:
        return Piece(whole(Constant(origin=reader.origin, value=value)), np.eye(rows, dtype=np.float32), *place)
    [(base, factor), *others] = view.terms
    if others:
        return None
    if isinstance(base, Input):
        return Piece(View(((base, 1.0),), view.index), np.eye(rows, dtype=np.float32) * np.float32(factor), *place)
    return _block(at, view, place, factor, turned=False) or _block(at, view, place, factor, turned=True)


def _block(at: Where, view: View, place: tuple[slice, int], factor: float, *, turned: bool) -> Piece | None:
    """Rows of consecutive columns, or columns of consecutive rows."""
    base, present = view.terms[0][0], at.term[:, 0] >= 0
    chosen, along = (at.column, at.row) if turned else (at.row, at.column)
    which, across = chosen[:, 0], along[int(present.argmax())][None]
    numbers = np.arange(which[present].min(), which[present].max() + 1)[:, None]
    row, column = (across, numbers) if turned else (numbers, across)
    x = View(((base, 1.0),), row * base.shape[1] + column)
    seen = x.index[np.where(present, which - numbers[0], 0)]
    if not np.array_equal(np.where(present[:, None], seen, -1), view.index):
        return None
    matrix = float32((which[:, None] == numbers[:, 0]) & present[:, None]) * np.float32(factor)
    return Piece(x, matrix, *place)
