"""Nodes, and the views through which they read one another.

A node reads other nodes through views: for each element, which element of which node's flattened result it is.
Whatever reshapes, transposes, slices, splits or joins a user's tensors only makes a new index array, so heads, fused
projections, patches and output layouts leave no operations behind. In a canonical graph every node is settled: its
views are what the machine can read (consecutive rows of one node, or heads that are columns of it), and it yields one
two-dimensional tensor, tokens x features, of one sample.

Nodes are immutable, check themselves when built and derive their shape, so a graph never goes stale. Weights are
float32 arrays in torch's layout, `[outputs, inputs]`. What kinds there are, `compiler.nodes` tells: nothing here
knows one.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchloom.compiler.origin import NOWHERE, Origin

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Heads = tuple["Node", tuple[int, ...], int]  # a tensor, the first column of each head, columns of a head
Alignment = tuple["Node", int, int, int]  # a tensor, its first column, the node's own, columns that lie alike
Observe = Callable[["Node", str, np.ndarray[Any, Any]], None]


def float32(value: ArrayLike) -> Floats:
    return np.ascontiguousarray(value, dtype=np.float32)


class GraphError(ValueError):
    """A node whose parts do not fit together: the message names the node, the rule and the value."""


Term = tuple["Node", float]  # a node, and what its result is multiplied by


@dataclass(frozen=True, eq=False)
class View:
    """Element i is element `index[i]` of the flattened terms put end to end, times the term's factor; -1 is zero."""

    terms: tuple[Term, ...]
    index: Indices

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
    def blocks(self) -> tuple[tuple[int, int], ...] | None:
        """The row and column at which each head starts, if each is consecutive columns of such rows of one node."""
        base = self.base
        if base is None or self.terms[0][1] != 1.0 or len(base.shape) != 2:
            return None
        _, tokens, features = self.shape
        rows, columns = np.divmod(self.index[:, 0, 0], base.shape[1])
        here = np.arange(tokens)[:, None] * base.shape[1] + np.arange(features)
        inside = rows.min() >= 0 and columns.max() + features <= base.shape[1]
        consecutive = inside and np.array_equal(self.index, self.index[:, :1, :1] + here)
        return tuple(zip(rows.tolist(), columns.tolist(), strict=True)) if consecutive else None

    @cached_property
    def block(self) -> tuple[int, int] | None:
        """The row and column at which a matrix begins, if it is consecutive columns of such rows of one node."""
        blocks = self.reshape(1, *self.shape).blocks
        return blocks[0] if blocks else None

    @property
    def transposed(self) -> "View":
        """Of a matrix."""
        return View(self.terms, self.index.T)

    def part(self, of: int) -> Indices:
        """Which elements of its term `of` stand where; -1 for all that is of other terms."""
        start, size = sum(base.size for base, _ in self.terms[:of]), self.terms[of][0].size
        return np.where((self.index >= start) & (self.index < start + size), self.index - start, -1)

    def pick(self, index: Indices) -> "View":
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
            and np.array_equal(self.index, numbered(self.shape))
        )

    def substitute(self, done: Mapping["Node", "View"]) -> "View":
        """The view after each of its operations was replaced by a view of other operations."""
        if all(base not in done for base, _ in self.terms):
            return self
        if self.base is not None and (new := done[self.base]).index is numbered(new.shape) and new.base is not None:
            return View(new.scaled(self.terms[0][1]).terms, self.index)
        terms: list[Term] = []
        tables = []
        for base, factor in self.terms:
            new = done[base].scaled(factor) if base in done else whole(base)
            tables.append(_renumber(new, terms).reshape(-1))
        table = np.concatenate([*tables, [-1]])  # the entry for -1 comes last
        return View(*_without_unused(tuple(terms), table[self.index]))


def _without_unused(terms: tuple[Term, ...], index: Indices) -> tuple[tuple[Term, ...], Indices]:
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


def _renumber(view: View, terms: list[Term]) -> Indices:
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


def common_terms(views: Sequence[View]) -> tuple[tuple[Term, ...], list[Indices]]:
    """One numbering for several views, and the index of each in it."""
    terms: list[Term] = []
    indices = [_renumber(view, terms) for view in views]
    return tuple(terms), indices


def whole(base: "Node") -> View:
    return View(((base, 1.0),), numbered(base.shape))


NUMBERED: WeakValueDictionary[tuple[int, ...], Indices] = WeakValueDictionary()


def numbered(shape: tuple[int, ...]) -> Indices:
    """The numbers of the elements of a tensor: one array for all that look at tensors of this shape as they are."""
    index = NUMBERED.get(shape)
    if index is None:
        index = np.arange(math.prod(shape)).reshape(shape)
        index.flags.writeable = False
        NUMBERED[shape] = index
    return index


def rows_of(base: "Node", first: int, last: int) -> View:
    """Rows [first, last)."""
    base.require(0 <= first < last <= base.shape[0], f"has {base.shape[0]} rows, not {first} to {last - 1}")
    return whole(base).pick(whole(base).index[first:last])


def heads_of(base: "Node", columns: Sequence[int], width: int) -> View:
    """Heads x tokens x width: of each head the columns from its first one on."""
    fit = all(0 <= first <= base.shape[1] - width for first in columns)
    base.require(fit, f"has {base.shape[1]} columns, not heads of {width} at {list(columns)}")
    return whole(base).pick(np.stack([whole(base).index[:, first : first + width] for first in columns]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Node(ABC):
    """One operation on tensors. `name` is unique in a graph: an input's or an output's own, else after `origin`.

    What a kind of node does not say of itself is as here: no operand, nothing to multiply, no demands. What a later
    stage hands to it is of that stage's own type (`Quantising`, `Demand`, `Drafting`, `Tensor`), unknown here.
    """

    is_layer: ClassVar[bool] = False  # multiplies: has bits of its own, and integers

    name: str = ""
    origin: Origin = field(default=NOWHERE, repr=False)

    def require(self, rule: bool, text: str) -> None:
        if not rule:
            where = self.origin.where and f" ({self.origin.where})"
            raise GraphError(f"{self.kind} '{self.name or self.origin.name}' {text}{where}")

    # What it is

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(tokens, features), where it is settled."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Its operands."""
        values = (getattr(self, part.name) for part in fields(self))
        return tuple(view for value in values for view in _views(value))

    def with_views(self, change: Callable[[View], View]) -> Self:
        """The same operation on changed operands; itself when none changed."""
        old = {part.name: getattr(self, part.name) for part in fields(self)}
        new: dict[str, Any] = {name: change(value) for name, value in old.items() if isinstance(value, View)}
        for name, value in old.items():
            if isinstance(value, tuple) and (parts := _views(value)):
                changed = tuple(change(view) for view in parts)
                new[name] = value if all(map(operator.is_, changed, parts)) else changed
        return self if all(new[name] is old[name] for name in new) else replace(self, **new)

    @property
    def inputs(self) -> tuple["Node", ...]:
        """Of each view in turn, the nodes that it is of: one each, where the node is settled."""
        return tuple(base for view in self.views for base, _ in view.terms)

    @property
    def settled(self) -> bool:
        """Whether the machine can read its operands as they are."""
        return all(view.is_whole() for view in self.views)

    @property
    def user_input(self) -> tuple[int, ...] | None:
        """Shape of the user's tensor that it reads, without the batch dimension; it is called as the node is."""
        return None

    @property
    def residual(self) -> View | None:
        """The tensor that its result is added to, as a whole: they share a scale and lie alike."""
        return None

    @property
    def second(self) -> View | None:
        """The tensor that its result meets as it is written, element by element: they lie alike."""
        return self.residual

    @property
    def flags(self) -> Iterable[str]:
        """What `describe` says of it besides its operands."""
        return ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, as the model counts them."""
        return 0

    # What it computes

    def evaluate(self, at: "Evaluation") -> Floats:
        """Its result in float32; `at` is told of every intermediate that will need a number format."""
        raise NotImplementedError

    # Its integers

    def demands(self, activations: int) -> Iterable[tuple["Node", Any]]:
        """A Demand of each stored tensor's format, itself included; `activations` are the bits it is given."""
        return ()

    def relevant(self, quantity: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of an intermediate, the values that its format must hold."""
        return array

    def numbers(self, at: Any) -> Any:
        """Integers of a layer, by a Quantising. Raises `ValueError` where 16 bits do not express them."""
        raise NotImplementedError

    # Its commands

    @property
    def normalised(self) -> "Node | None":
        """The operand that it normalises: each row by its statistics."""
        return None

    @property
    def heads(self) -> Iterable[Heads]:
        """Parts of rows that its commands read: they begin a chunk each."""
        return ()

    @property
    def alignments(self) -> Iterable[Alignment]:
        """Columns of its result that must lie as some of an operand do."""
        if self.second is not None:
            yield self.second.node, 0, 0, self.shape[1]

    @property
    def starts(self) -> Iterable[int]:
        """Columns of its own result that must begin a chunk."""
        return ()

    @property
    def unbroken(self) -> Iterable[tuple[int, int]]:
        """[first, last) columns of its own result that it writes one behind the other: no gap may be in them."""
        return ()

    @property
    def divides(self) -> bool:
        """Whether it can compute some columns alone: see `draft_columns`."""
        return False

    def streams(self, x: "Node", lanes: int) -> bool:
        """Whether it reads x as nothing but its streamed operand, and could if two elements of 8 bits were one."""
        return False

    def loads(self, x: "Node") -> bool:
        """Whether it can have x, an input, loaded part by part as it reads it: see `transfers.load_rows`."""
        return False

    def leaves(self) -> bool:
        """Whether its rows can be computed and stored part by part: see `transfers.leave`."""
        return False

    def packs(self, lanes: int) -> bool:
        """Whether its commands can write a result of 8 bits two to an element."""
        return False

    def draft(self, d: Any) -> None:
        """Its commands and its tensor, or its port, into a Drafting."""
        raise NotImplementedError

    def draft_columns(self, d: Any, note: str, columns: Indices) -> Any:
        """Commands for some columns, and their Tensor; each run of them begins a chunk."""
        raise NotImplementedError


def _views(value: Any) -> tuple[View, ...]:
    """What a node holds of them: one, or several."""
    values = value if isinstance(value, tuple) else (value,)
    return tuple(view for view in values if isinstance(view, View))


@dataclass(eq=False)
class Evaluation:
    """One sample on its way through a graph."""

    inputs: Mapping[str, Floats]  # by name, without the batch dimension
    observe: Observe
    values: dict[Node, Floats] = field(default_factory=dict)

    def read(self, view: View) -> Floats:
        """What a settled view is of its node's result."""
        return self.values[view.node].reshape(-1).take(view.index)
