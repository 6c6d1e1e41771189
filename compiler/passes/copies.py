"""Matmuls that copy, so that a view becomes the whole result of one operation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.compiler.node import Floats, Node, View, whole
from patchloom.compiler.nodes import Constant, Input, Matmul
from patchloom.compiler.nodes.captured import Opaque
from patchloom.compiler.passes.engine import Run
from patchloom.compiler.passes.pieces import gathered, mixed
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.passes.views import constant, fixed_part, is_opaque
from patchloom.compiler.problems import UnsupportedError


def identity(node: Node, x: View, **changes: Any) -> Matmul:
    """A matmul that copies x, to carry an activation or a residual that x's own operation cannot."""
    features = x.shape[1]
    copy = Matmul(origin=node.origin, x=x, weight=np.eye(features, dtype=np.float32), bias=_zeros(features))
    return replace(copy, **changes)


def copied_first(a: View, b: View) -> tuple[View, View]:
    """Of two tensors that meet, the one that a layer copies, then the one that its result meets."""
    return (a, b) if constant(b) is not None or b.is_whole() else (b, a)


def selecting(view: View, reader: Node) -> Matmul:
    """A matmul whose result is the view: rows of one or more operations, columns in any order."""
    fixed = fixed_part(view)
    result = None if fixed is None else whole(Constant(origin=reader.origin, value=fixed))
    for i, (base, _) in enumerate(view.terms):
        if not isinstance(base, Constant):
            x, weight = _selected(view, i, reader)
            bias = _zeros(len(weight))
            result = whole(Matmul(origin=reader.origin, x=x, weight=weight, bias=bias, residual=result))
    assert result is not None
    assert isinstance(result.base, Matmul), "constants alone are never selected"
    return result.base


def _selected(view: View, of: int, reader: Node) -> tuple[View, Floats]:
    """What a matmul reads, and by which weights, to make the part of the view that is of one term."""
    base, factor = view.terms[of]
    if isinstance(base, Input):
        index = view.part(of)
        return View(((base, 1.0),), index), np.eye(index.shape[1], dtype=np.float32) * np.float32(factor)
    chosen = selection(view, of)
    assert chosen is not None, "rows and columns of each operation"
    if chosen.block is None:
        return whole(gathered(base, chosen.rows, reader)), chosen.matrix
    return View(((base, 1.0),), whole(base).index[slice(*chosen.block)]), chosen.matrix


def _zeros(count: int) -> Floats:
    return np.zeros(count, np.float32)


def as_node(view: View, reader: Node, at: Run) -> View:
    """The view as the whole result of one operation."""
    if view.is_whole() or isinstance(view.base, Input):
        return view
    if is_opaque(view):
        return whole(Opaque(origin=reader.origin, out_shape=view.shape))
    value = constant(view)
    if value is not None:
        return whole(Constant(origin=reader.origin, value=value))
    key = (view.terms, view.shape, view.index.tobytes())
    return whole(at.once(key, lambda: _copied(view, reader, at)))


def _copied(view: View, reader: Node, at: Run) -> Node:
    """Columns of consecutive rows are a matmul's; so are others that are in too many places for a mix."""
    live = [i for i, (base, _) in enumerate(view.terms) if not isinstance(base, Constant | Input)]
    chosen = [selection(view, i) for i in live]
    if all(part is not None and part.block is not None for part in chosen):
        return selecting(view, reader)
    try:
        return mixed(view, reader, lambda part: uncut(part, reader, at))
    except UnsupportedError:
        if any(part is None for part in chosen):
            raise
        return selecting(view, reader)


def uncut(view: View, reader: Node, at: Run) -> View:
    """From within what its operation writes without a gap, it is read of a copy: a block begins a chunk."""
    base, block = view.base, view.block or view.transposed.block
    if base is None or block is None:
        return view
    if not any(first < block[1] < last for node in lying_alike(base) for first, last in node.unbroken):
        return view
    copy = whole(at.once((base, "with gaps"), lambda: identity(reader, whole(base))))
    return copy.pick(view.index)


def lying_alike(node: Node) -> Iterator[Node]:
    """The operation, and those whose results lie as its does because they meet it."""
    yield node
    if node.second is not None:
        yield from lying_alike(node.second.node)
