"""Constant factors of views: they travel with a view until an operation takes them into its weights."""

import numpy as np

from patchloom.compiler.node import Floats, Indices, Node, View, float32, whole
from patchloom.compiler.nodes import Constant, Input
from patchloom.compiler.nodes.captured import Scale


def without_factors(view: View) -> tuple[View, float]:
    """The view without the factor of its terms; factors that differ are multiplied in first."""
    return view.without_factor() or (plain(view), 1.0)


def by_element(view: View) -> tuple[View, Floats]:
    """The view without its factors, and the one of each element."""
    bases = list(dict.fromkeys(base for base, _ in view.terms))
    starts = np.cumsum([0, *(base.size for base in bases)])
    index, factors = np.full(view.shape, -1), np.ones(view.shape, np.float32)
    for of, (base, factor) in enumerate(view.terms):
        part = view.part(of)
        index = np.where(part >= 0, part + starts[bases.index(base)], index)
        factors[part >= 0] = factor
    return View(tuple((base, 1.0) for base in bases), index), factors


def plain(view: View) -> View:
    """Every factor is multiplied in: one operation may be several terms, each with another factor."""
    if all(factor == 1.0 for _, factor in view.terms):
        return view
    terms, index, size = [], np.full(view.shape, -1), 0
    for of, (base, factor) in enumerate(view.terms):
        part = view.part(of)
        made, places = multiplied(base, factor, part)
        index[part >= 0] = size + places[part >= 0]
        terms.append((made, 1.0))
        size += made.size
    return View(tuple(terms), index)


def multiplied(base: Node, factor: float, index: Indices) -> tuple[Node, Indices]:
    """What the product is an element of, and which: an input's are laid out as they are read, for it has no rows."""
    if factor == 1.0:
        return base, index
    if isinstance(base, Constant):
        return Constant(origin=base.origin, value=float32(base.value * factor)), index
    if isinstance(base, Input):
        rows = View(((base, 1.0),), index.reshape(-1, index.shape[-1] if index.shape else 1))
        return Scale.by(factor, rows, base.origin), np.arange(index.size).reshape(index.shape)
    return Scale.by(factor, whole(base).reshape(-1, base.shape[-1] if base.shape else 1), base.origin), index
