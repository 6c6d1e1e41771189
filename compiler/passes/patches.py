"""The operand of a convolution as patches of a map, which the machine finds where they lie.

What lies beyond the map's edge is zero: then the map is copied into one that has zeros around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from patchloom.compiler.node import Indices, Node, View, rows_of
from patchloom.compiler.nodes import Constant, Input, Map, Matmul
from patchloom.compiler.passes.engine import Run
from patchloom.compiler.walk import Walk


@dataclass(frozen=True, eq=False)
class Taps:
    """Columns of a view that are of the same rows, in the order of the base's columns: for each tap a row or -1."""

    rows: Indices  # [taps, rows]
    columns: Indices  # [taps, columns of the base], which of the view's
    low: int


@dataclass(frozen=True)
class Grid:
    """Where the rows of each tap are: at line l and place c of `line` it is at y + l * down, x + c * right."""

    width: int  # of the map
    line: int
    down: int
    right: int
    corners: tuple[tuple[int, int], ...]  # (y, x) of each tap's first row


def by_patches(node: Matmul, at: Run) -> Matmul | None:
    """The same product of patches of a map, where its operand is that."""
    found = in_map(node.x, node, at)
    if found is None:
        return None
    x = found.view.pick(found.view.index[:, found.order])
    return None if Walk.of(x) is None else replace(node, x=x, weight=np.ascontiguousarray(node.weight[:, found.order]))


@dataclass(frozen=True, eq=False)
class Found:
    """A view, now of a node that has an edge where it had nothing; its columns that are not nothing, tap by tap."""

    view: View
    order: Indices


def in_map(view: View, reader: Node, at: Run, *, lowest: bool = False) -> Found | None:
    base = view.base
    if base is None or isinstance(base, Input | Constant) or len(base.shape) != 2 or view.terms[0][1] != 1.0:
        return None
    taps = _taps(view, base.shape[1])
    if taps is None:
        return None
    if taps.rows.min() >= 0:
        return Found(view, taps.columns[np.argsort(taps.rows[:, 0], kind="stable")].reshape(-1))
    present = taps.rows[taps.rows >= 0]
    first, count = int(present.min()), int(present.max() - present.min()) + 1
    grid = next(_grids(taps.rows - first * (taps.rows >= 0), count), None)
    if grid is None:
        return None
    edges, rows = _padded(grid, count, taps.rows.shape[1])
    x = rows_of(base, first, first + count)
    key = "map", base, first, grid.width, edges, lowest
    made = at.once(key, lambda: Map(origin=reader.origin, x=x, width=grid.width, edges=edges, lowest=lowest))
    index = np.full(view.shape, -1)
    for tap, columns in zip(rows, taps.columns, strict=True):
        index[:, columns] = tap[:, None] * base.shape[1] + taps.low + np.arange(len(columns))
    order = taps.columns[np.lexsort(np.array(grid.corners).T[::-1])].reshape(-1)
    return Found(View(((made, 1.0),), index), order)


def _taps(view: View, features: int) -> Taps | None:
    """Nothing if one has other columns than another. A tap that is zero everywhere has no use."""
    there = view.index >= 0
    used = np.flatnonzero(there.any(axis=0))
    if not len(used):
        return None
    index, there = view.index[:, used], there[:, used]
    rows = np.where(there, index // features, -1)
    column = np.where(there, index % features, -1).max(axis=0)
    if not (np.where(there, index % features, column) == column).all():
        return None
    patterns, which = np.unique(rows, axis=1, return_inverse=True)
    which = which.reshape(-1)
    order = np.lexsort((column, which))
    width, extra = divmod(len(used), patterns.shape[1])
    if extra or not np.array_equal(which[order], np.arange(patterns.shape[1]).repeat(width)):
        return None
    columns, low = column[order].reshape(-1, width), int(column.min())
    if not (columns == low + np.arange(width)).all():
        return None
    return Taps(patterns.T, used[order].reshape(-1, width), low)


def _grids(taps: Indices, count: int) -> Iterator[Grid]:
    """Ways to see `count` rows as a map, and the rows of the taps as a grid on it."""
    fullest = taps[np.argsort(-(taps >= 0).sum(axis=1), kind="stable")]
    for width in _divisors(count):
        for line in _divisors(taps.shape[1]):
            steps = _steps(fullest[0], width, line)
            if steps is not None:
                corners = [_corner(tap, (count // width, width), line, steps) for tap in taps]
                if all(corner is not None for corner in corners):
                    yield Grid(width, line, *steps, tuple(corner for corner in corners if corner is not None))


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, count + 1) if count % size == 0]


def _steps(tap: Indices, width: int, line: int) -> tuple[int, int] | None:
    """Down and right, between neighbours that are both there."""
    y, x = (np.where(tap < 0, -1, part).reshape(-1, line) for part in np.divmod(tap, width))
    there = (tap >= 0).reshape(-1, line)
    steps = []
    for places, axis in ((y, 0), (x, 1)):
        both = np.diff(there.astype(np.int64), axis=axis) == 0
        both &= np.take(there, range(1, there.shape[axis]), axis=axis)
        found = np.unique(np.diff(places, axis=axis)[both])
        if len(found) > 1 or (len(found) and found[0] < 0):
            return None
        steps.append(int(found[0]) if len(found) else 0)
    return steps[0], steps[1]


def _corner(tap: Indices, shape: tuple[int, int], line: int, steps: tuple[int, int]) -> tuple[int, int] | None:
    """Where the tap's first row is, maybe beyond the edge; every row must be there exactly if it is in the map."""
    (height, width), (down, right) = shape, steps
    one = int((tap >= 0).argmax())
    at = np.arange(len(tap))
    y = tap[one] // width + (at // line - one // line) * down
    x = tap[one] % width + (at % line - one % line) * right
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (int(y[0]), int(x[0])) if np.array_equal(np.where(inside, y * width + x, -1), tap) else None


def _padded(grid: Grid, count: int, rows: int) -> tuple[tuple[int, int, int, int], Indices]:
    """Zeros that the taps reach beyond the map, and each tap's rows [taps, rows] in what has them around it."""
    height, lines = count // grid.width, rows // grid.line
    y, x = np.array(grid.corners).T
    below = int(y.max()) + (lines - 1) * grid.down - (height - 1)
    right = int(x.max()) + (grid.line - 1) * grid.right - (grid.width - 1)
    top, bottom, left, right = (max(0, size) for size in (-int(y.min()), below, -int(x.min()), right))
    pitch = left + grid.width + right
    at = np.arange(rows)
    down = (y + top)[:, None] + at // grid.line * grid.down
    return (top, bottom, left, right), down * pitch + (x + left)[:, None] + at % grid.line * grid.right
