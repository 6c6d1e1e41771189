"""Functions that no pass knew are read from tables; several, one of the other, are one.

After all passes that could know them; before the operands, which lay out what they read.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from patchloom.compiler.node import Node, View, numbered
from patchloom.compiler.nodes import Input, Tabulated
from patchloom.compiler.nodes.captured import Function
from patchloom.compiler.passes.copies import as_node
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import is_opaque, producer


def tabulate(node: Function, at: Run) -> Node | View | None:
    if is_opaque(node.x):
        return None
    lies = _as_it_lies(node.x)
    if lies is None:
        return _tabulated(node, node.x, at)
    return View(((_tabulated(node, lies, at), 1.0),), node.x.index)


def _as_it_lies(view: View) -> View | None:
    """All elements of the operation whose elements the view has in another order."""
    base = view.base
    if base is None or len(base.shape) != 2 or isinstance(base, Input):
        return None
    every = np.array_equal(np.sort(view.index, axis=None), np.arange(base.size))
    return View(view.terms, numbered(base.shape)) if every else None


def _tabulated(node: Function, x: View, at: Run) -> Tabulated:
    before = producer(x, Tabulated)
    if before is None or not at.only_here(before):
        return Tabulated(origin=node.origin, x=as_node(x, node, at), apply=node.apply)
    outer, inner = node.apply, before.apply

    def both(value: Tensor) -> Tensor:
        return outer(inner(value))

    return replace(before, origin=node.origin, apply=both)


PASS = Pass("leftovers", {Function: tabulate})
