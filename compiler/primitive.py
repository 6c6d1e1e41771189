"""What the frontend hands to the passes: operations as the user wrote them, joined by views.

A captured tensor of any rank is a `View`: for each of its elements, which element of which operation's
flattened result it is. Whatever reshapes, transposes, slices, splits or joins tensors only makes a new
index array, so heads, fused projections, patches and output layouts leave no operations behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from patchloom.compiler.graph import Floats, Indices
from patchloom.compiler.nodes import Expert, Scoring
from patchloom.compiler.origin import NOWHERE, Origin


def float32(value: ArrayLike) -> Floats:
    return np.ascontiguousarray(value, dtype=np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Primitive:
    """An operation whose operands are views. Results are tokens x features, except Product and Softmax."""

    origin: Origin = NOWHERE

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def views(self) -> tuple["View", ...]:
        values = (getattr(self, part.name) for part in fields(self))
        return tuple(value for value in values if isinstance(value, View))

    def with_views(self, change: Callable[["View"], "View"]) -> Self:
        """The same operation on changed operands; itself when none changed."""
        old = {part.name: getattr(self, part.name) for part in fields(self)}
        new: dict[str, Any] = {name: change(value) for name, value in old.items() if isinstance(value, View)}
        return self if all(new[name] is old[name] for name in new) else replace(self, **new)


Term = tuple[Primitive, float]


@dataclass(frozen=True, eq=False)
class View:
    """Element i is element `index[i]` of the flattened terms put end to end, times the term's factor; -1 is zero."""

    terms: tuple[Term, ...]
    index: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def base(self) -> Primitive | None:
        """The operation all elements come from, unless there are several."""
        return self.terms[0][0] if len(self.terms) == 1 else None

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
            and np.array_equal(self.index.reshape(-1), np.arange(self.base.size))
        )

    def substitute(self, done: Mapping[Primitive, "View"]) -> "View":
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


def whole(base: Primitive) -> View:
    return View(((base, 1.0),), np.arange(base.size).reshape(base.shape))


# --- The operations ---


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(Primitive):
    """One input of the user's forward, without the batch dimension, flat."""

    name: str
    user_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, int(np.prod(self.user_shape)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Fixed(Primitive):
    """A learned or computed tensor that does not depend on the inputs."""

    value: Floats = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Opaque(Primitive):
    """Stands for an operation that is reported as a problem, so that the rest can still be examined."""

    out_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Primitive):
    """As `nodes.Matmul`, with x and residual as views of shape tokens x features."""

    x: View
    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    epsilon: float | None = None
    activation: str = "none"
    residual: View | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[0], self.weight.shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture(Primitive):
    """As `nodes.Moe`, with x and residual as views of shape tokens x features."""

    x: View
    gate_weight: Floats = field(repr=False)
    gate_bias: Floats = field(repr=False)
    experts: tuple[Expert, ...] = field(repr=False)
    activation: str
    top_k: int
    scoring: Scoring
    epsilon: float | None = None
    residual: View | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[0], self.experts[0].w2.shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Normalise(Primitive):
    """Layer normalisation of each row of x."""

    x: View
    gamma: Floats = field(repr=False)
    beta: Floats = field(repr=False)
    epsilon: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Activate(Primitive):
    x: View
    activation: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Primitive):
    """x times a constant of the same shape."""

    x: View
    factor: Floats = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Primitive):
    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Primitive):
    """a @ b, both of rank 3 and both dependent on the inputs."""

    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape[0], self.a.shape[1], self.b.shape[2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Primitive):
    """Along the last dimension."""

    x: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Attend(Primitive):
    """As `nodes.Attention`: q, k, v are heads x tokens x features, the result tokens x (heads * features)."""

    q: View
    k: View
    v: View
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape[1], self.v.shape[0] * self.v.shape[2]
