"""Operands as views: for each element, which element of which node's flattened result it is.

Whatever reshapes, transposes, slices, splits or joins a user's tensors only makes a new index array, so heads, fused
projections, patches and output layouts leave no operations behind. Where a graph is canonical, each view is of one
node: consecutive rows of it, or heads that are columns of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from patchloom.compiler.graph import Indices, Node

Term = tuple["Node", float]  # a node, and what its result is multiplied by


@dataclass(frozen=True, eq=False)
class View:
    """Element i is element `index[i]` of the flattened terms put end to end, times the term's factor; -1 is zero."""

    terms: tuple[Term, ...]
    index: "Indices"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def base(self) -> "Node | None":
        """The operation all elements come from, unless there are several."""
        return self.terms[0][0] if len(self.terms) == 1 else None

    @property
    def node(self) -> "Node":
        """The node that a settled view is of."""
        assert len(self.terms) == 1, "a settled view is of one node"
        return self.terms[0][0]

    @cached_property
    def rows(self) -> tuple[int, int] | None:
        """[first, last) row, if it is consecutive whole rows of one node."""
        base = self.base
        if base is None or self.terms[0][1] != 1.0 or len(base.shape) != 2 or self.shape[1:] != base.shape[1:]:
            return None
        first = int(self.index[0, 0]) // base.shape[1]
        here = first * base.shape[1] + np.arange(self.index.size).reshape(self.shape)
        return (first, first + len(here)) if first >= 0 and np.array_equal(self.index, here) else None

    @cached_property
    def columns(self) -> tuple[int, ...] | None:
        """The column at which each head starts, if each is consecutive columns of all rows of one node."""
        base = self.base
        if base is None or self.terms[0][1] != 1.0 or len(base.shape) != 2 or base.shape[0] != self.shape[1]:
            return None
        _, tokens, features = self.shape
        first = self.index[:, 0, 0]
        here = np.arange(tokens)[:, None] * base.shape[1] + np.arange(features)
        inside = first.min() >= 0 and first.max() + features <= base.shape[1]
        return tuple(first.tolist()) if inside and np.array_equal(self.index, first[:, None, None] + here) else None

    def pick(self, index: "Indices") -> "View":
        """Another arrangement of the same terms; terms that are no longer used are dropped."""
        return View(*_without_unused(self.terms, index))

    def reshape(self, *shape: int) -> "View":
        return View(self.terms, self.index.reshape(shape))

    def scaled(self, factor: float) -> "View":
        return View(tuple((base, old * factor) for base, old in self.terms), self.index)

    def without_factor(self) -> tuple["View", float] | None:
        """The view and the one factor of all its terms."""
        factors = {factor for _, factor in self.terms}
        plain = View(tuple((base, 1.0) for base, _ in self.terms), self.index)
        return (plain, factors.pop()) if len(factors) == 1 else None

    def is_whole(self) -> bool:
        """Exactly the result of one operation, in its own order and shape."""
        return (
            self.base is not None
            and self.terms[0][1] == 1.0
            and self.shape == self.base.shape
            and np.array_equal(self.index.reshape(-1), np.arange(self.base.size))
        )

    def substitute(self, done: Mapping["Node", "View"]) -> "View":
        """The view after each of its operations was replaced by a view of other operations."""
        if all(base not in done for base, _ in self.terms):
            return self
        terms: list[Term] = []
        tables = []
        for base, factor in self.terms:
            new = done[base].scaled(factor) if base in done else whole(base)
            tables.append(_renumber(new, terms).reshape(-1))
        table = np.concatenate([*tables, [-1]])  # the entry for -1 comes last
        return View(*_without_unused(tuple(terms), table[self.index]))


def _without_unused(terms: tuple[Term, ...], index: "Indices") -> tuple[tuple[Term, ...], "Indices"]:
    if len(terms) == 1:
        return terms, index
    starts = np.cumsum([0, *(base.size for base, _ in terms)])
    used = [bool(((index >= first) & (index < end)).any()) for first, end in pairwise(starts)]
    if all(used):
        return terms, index
    kept = [i for i, flag in enumerate(used) if flag] or [0]
    shift = np.concatenate([[starts[i] - s for s, i in _new_starts(terms, kept)], [0]])
    position = np.searchsorted(starts[kept], index, side="right") - 1
    return tuple(terms[i] for i in kept), np.where(index < 0, -1, index - shift[position])


def _new_starts(terms: tuple[Term, ...], kept: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for i in kept:
        yield start, i
        start += terms[i][0].size


def _renumber(view: View, terms: list[Term]) -> "Indices":
    """The view's index in the numbering of `terms`, which grows by the terms that it lacks."""
    tables = []
    for base, factor in view.terms:
        if not any(base is known and factor == by for known, by in terms):
            terms.append((base, factor))
        start = 0
        for known, by in terms:
            if base is known and factor == by:
                break
            start += known.size
        tables.append(np.arange(start, start + base.size))
    table: Indices = np.concatenate([*tables, [-1]])
    return table[view.index]


def common_terms(views: Sequence[View]) -> tuple[tuple[Term, ...], list["Indices"]]:
    """One numbering for several views, and the index of each in it."""
    terms: list[Term] = []
    indices = [_renumber(view, terms) for view in views]
    return tuple(terms), indices


def whole(base: "Node") -> View:
    return View(((base, 1.0),), np.arange(base.size).reshape(base.shape))


def rows_of(base: "Node", first: int, last: int) -> View:
    """Rows [first, last)."""
    base.require(0 <= first < last <= base.shape[0], f"has {base.shape[0]} rows, not {first} to {last - 1}")
    return whole(base).pick(whole(base).index[first:last])


def heads_of(base: "Node", columns: Sequence[int], width: int) -> View:
    """Heads x tokens x width: of each head the columns from its first one on."""
    fit = all(0 <= first <= base.shape[1] - width for first in columns)
    base.require(fit, f"has {base.shape[1]} columns, not heads of {width} at {list(columns)}")
    return whole(base).pick(np.stack([whole(base).index[:, first : first + width] for first in columns]))
