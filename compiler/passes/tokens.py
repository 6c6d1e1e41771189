"""Constant rows beside rows of the input or of a layer over it, e.g. a class token, become one layer.

After the constants of each part; before the residuals, which then read whole tensors.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.node import Indices, Node, View, float32, whole
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Moe
from patchloom.compiler.nodes.captured import Add, Opaque
from patchloom.compiler.passes.constants import fuse_constant, is_fixed, plus
from patchloom.compiler.passes.copies import selecting
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.passes.views import clips, fixed_part, value_of


def join_tokens(node: Node, at: Run) -> Node:
    """Constant rows beside rows of the input or of a layer over it, e.g. a class token, become one layer."""

    def joined(view: View) -> View:
        if len(view.terms) < 2 or len(view.shape) != 2:
            return view
        key = (view.terms, view.index.tobytes(), view.shape)
        linear = at.once(key, lambda: _joined(view, node) or Opaque(out_shape=()))
        return whole(linear) if isinstance(linear, Matmul) else view

    return node.with_views(joined)


def join_and_add(node: Add, at: Run) -> Node | View:
    """Positions of joined tokens at once: what is one layer by then can be joined again."""
    joined = join_tokens(node, at)
    assert isinstance(joined, Add)
    return fuse_constant(joined, at) or joined


def _joined(view: View, node: Node) -> Matmul | None:
    live = [i for i, (base, _) in enumerate(view.terms) if not isinstance(base, Constant)]
    if len(live) != 1:
        return None
    base, factor = view.terms[live[0]]
    start = sum(other.size for other, _ in view.terms[: live[0]])
    index = view.index - start
    inside = (index >= 0) & (index < base.size)
    here = inside.all(axis=1)
    fixed = fixed_part(view)
    if isinstance(base, Input):
        return selecting(view, node)
    if not isinstance(base, Matmul) or factor != 1.0 or (inside.any(axis=1) != here).any():
        return None
    rows = np.where(here, index[:, 0] // base.shape[1], -1)
    if not np.array_equal(index[here], whole(base).index[rows[here]]):
        return None
    gathered = _gathered(base, rows)
    if gathered is None or fixed is None:
        return None
    return plus(gathered, fixed, node)


def _gathered(old: Matmul, rows: Indices) -> Matmul | None:
    """Any rows of a layer over the input, in any order; row -1 is zero."""
    x = _gathered_operand(old.x, rows)
    if x is None or clips(old) or not is_fixed(old.residual):
        return None
    added = np.zeros(old.shape, np.float32) if old.residual is None else value_of(old.residual)
    empty = -ACTIVATIONS[old.activation](old.bias)  # what a zero token would give
    residual = float32(np.where(rows[:, None] >= 0, added[rows], empty))
    return plus(replace(old, x=x, residual=None), residual, old)


def _gathered_operand(x: View, rows: Indices) -> View | None:
    if isinstance(x.base, Input):
        return x.pick(np.where(rows[:, None] >= 0, x.index[rows], -1))
    chosen = selection(x) if isinstance(x.base, Matmul) else None
    if not isinstance(x.base, Matmul) or chosen is None or not chosen.all_columns:
        return None
    before = _gathered(x.base, np.where(rows >= 0, chosen.rows[rows], -1))
    return None if before is None else whole(before)


PASS = Pass("tokens", {**dict.fromkeys((Matmul, Moe, Attention), join_tokens), Add: join_and_add})
