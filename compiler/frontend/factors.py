"""Constant factors of views: they travel with a view until an operation takes them into its weights."""

import numpy as np

from patchloom.compiler.node import Node, View, float32, whole
from patchloom.compiler.nodes import Constant
from patchloom.compiler.nodes.captured import Scale


def without_factors(view: View) -> tuple[View, float]:
    """The view without the factor of its terms; factors that differ are multiplied in first."""
    uniform = view.without_factor()
    if uniform:
        return uniform
    scaled = {base: multiplied(base, factor) for base, factor in view.terms if factor != 1.0}
    return View(tuple((base, 1.0) for base, _ in view.terms), view.index).substitute(scaled), 1.0


def multiplied(base: Node, factor: float) -> View:
    if isinstance(base, Constant):
        return whole(Constant(origin=base.origin, value=float32(base.value * factor)))
    return whole(Scale(origin=base.origin, x=whole(base), factor=np.full(base.shape, factor, np.float32)))


def plain(view: View) -> View:
    view, factor = without_factors(view)
    if factor == 1.0:
        return view
    return view.substitute({base: multiplied(base, factor) for base, _ in view.terms})
