"""Every operand becomes what the machine can read: rows of one operation, heads as columns of one.

The last pass, because it inserts layers that select.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.passes.copies import as_node, identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.primitive import Attend, Linear, Mixture, Source, View, whole


def settle_linear(node: Linear, at: Run) -> Linear:
    """Reads consecutive rows of one operation; the residual is one operation."""
    residual = None if node.residual is None else as_node(node.residual, node, at)
    x = node.x
    chosen = selection(x) if x.base else None
    readable = isinstance(x.base, Source) or (chosen and chosen.block and chosen.all_columns)
    if not readable:
        x = as_node(x, node, at)
    return node if x is node.x and residual is node.residual else replace(node, x=x, residual=residual)


def settle_mixture(node: Mixture, at: Run) -> Mixture:
    residual = None if node.residual is None else as_node(node.residual, node, at)
    return replace(node, x=as_node(node.x, node, at), residual=residual)


def settle_attend(node: Attend, at: Run) -> Attend:
    """Each head must be consecutive columns of all rows of one operation."""
    return node.with_views(lambda view: _heads_as_columns(view, node, at))


def _heads_as_columns(view: View, node: Attend, at: Run) -> View:
    if first_columns(view) is not None:
        return view
    heads, tokens, features = view.shape
    side_by_side = view.pick(view.index.transpose(1, 0, 2).reshape(tokens, heads * features))
    result = as_node(side_by_side, node, at)
    if isinstance(result.base, Source):
        result = whole(identity(node, result))
    return result.pick(result.index.reshape(tokens, heads, features).transpose(1, 0, 2))


def first_columns(view: View) -> tuple[int, ...] | None:
    """The column at which each head starts, if it is consecutive columns of all rows."""
    _, tokens, features = view.shape
    base = view.base
    if base is None or isinstance(base, Source) or len(base.shape) != 2 or base.shape[0] != tokens:
        return None
    columns = view.index[:, 0, 0]
    rows = np.arange(tokens)[:, None] * base.shape[1] + np.arange(features)
    good = columns.max() + features <= base.shape[1] and columns.min() >= 0
    same = np.array_equal(view.index, columns[:, None, None] + rows)
    return tuple(int(column) for column in columns) if good and same and view.terms[0][1] == 1.0 else None


PASS = Pass("operands", {Linear: settle_linear, Mixture: settle_mixture, Attend: settle_attend})
