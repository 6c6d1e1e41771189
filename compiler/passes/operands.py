"""Every operand becomes what the machine can read: rows of one operation, heads as columns of one.

The last pass, because it inserts layers that select.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Indices, View, common_terms, whole
from patchloom.compiler.nodes import Attention, Input, Matmul, Maximum, Mix, Moe, Products, Shares, Tabulated
from patchloom.compiler.passes.attention import as_heads, side_by_side
from patchloom.compiler.passes.copies import as_node, identity, lying_alike, uncut
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.patches import by_patches, in_map
from patchloom.compiler.passes.pieces import in_columns
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.walk import Walk

LANES = 16  # a multiple of any machine's, as far as it is worth a copy


def settle_matmul(node: Matmul, at: Run) -> Matmul:
    """Reads consecutive rows of one operation; the residual, or factor, is one operation."""
    node = node if node.x.rows or node.epsilon is not None else by_patches(node, at) or node
    walks = node.walk is not None and node.epsilon is None
    if not (walks or node.x.rows or isinstance(node.x.base, Input) or selection(node.x)):
        order = in_columns(node.x)
        node = replace(node, x=node.x.pick(node.x.index[:, order]), weight=node.weight[:, order])
    x = node.x if node.x.rows or walks else as_node(node.x, node, at)
    residual, factor = (None if view is None else as_node(view, node, at) for view in (node.residual, node.factor))
    return replace(node, x=x, residual=residual, factor=factor)


def settle_moe(node: Moe, at: Run) -> Moe:
    residual = None if node.residual is None else as_node(node.residual, node, at)
    gate_x = None if node.gate_x is None else as_node(node.gate_x, node, at)
    return replace(node, x=as_node(node.x, node, at), residual=residual, gate_x=gate_x)


def settle_maximum(node: Maximum, at: Run) -> Maximum:
    """Each operand is rows of one operation, as far apart as it may be."""
    terms, indices = common_terms(node.x)
    features = node.shape[1]
    joint = View(terms, np.concatenate(indices, axis=1))
    found = in_map(joint, node, at, lowest=node.pooled)
    view = joint if found is None else found.view
    taps = np.stack(np.split(view.index, view.shape[1] // features, axis=1))
    parts = [View(view.terms, index) for index in (_without_gaps(taps) if node.pooled else taps)]
    x = tuple(part if Walk.of(part) else as_node(part.pick(part.index), node, at) for part in parts)
    return replace(node, x=x, pooled=False)


def _without_gaps(taps: Indices) -> Indices:
    """Of the same place of any tap there may be more than one: it stands where another one has nothing."""
    there = taps[(taps >= 0).any(axis=(1, 2))]
    first = np.take_along_axis(there, (there >= 0).argmax(axis=0)[None], axis=0)
    return np.where(there < 0, first, there)


def settle_tabulated(node: Tabulated, at: Run) -> Tabulated:
    return node if node.x.rows else replace(node, x=as_node(node.x, node, at))


def settle_mix(node: Mix, at: Run) -> Mix:
    """Each operand is a block, or one transposed."""

    def settled(view: View) -> View:
        return uncut(view if view.block or view.transposed.block else as_node(view, node, at), node, at)

    return node.with_views(settled)


def settle_attention(node: Attention, at: Run) -> Attention:
    """Each head must be consecutive columns of consecutive rows of one operation."""
    return node.with_views(lambda view: _heads_as_blocks(view, node, at))


def settle_products(node: Products, at: Run) -> Products:
    """A b may be transposed."""
    a = _heads_as_blocks(node.a, node, at)
    if not isinstance(node.b.base, Input) and node.turned.blocks is not None and not _is_cut(node.turned):
        return replace(node, a=a)
    return replace(node, a=a, b=_heads_as_blocks(node.b, node, at))


def settle_shares(node: Shares, at: Run) -> Shares:
    return replace(node, x=_heads_as_blocks(node.x, node, at))


def _heads_as_blocks(view: View, node: Attention | Products | Shares, at: Run) -> View:
    settled = not isinstance(view.base, Input) and view.blocks is not None
    if settled and not _is_cut(view):
        return view
    result = as_node(side_by_side(view, node.windows), node, at)
    heads = as_heads(result, node.windows, len(view.index))
    if settled or isinstance(result.base, Input) or _is_cut(heads):
        heads = as_heads(whole(identity(node, result)), node.windows, len(view.index))
    return heads


def _is_cut(heads: View) -> bool:
    """Whether a column within a head must begin a chunk, because another head does there or its operation's part."""
    assert heads.blocks, "settled heads are blocks"
    columns = {column for _, column in heads.blocks}
    cuts = columns.union(*(node.starts for node in lying_alike(heads.node)))
    inside = [cut - column for cut in cuts for column in columns]
    return any(0 < place < heads.shape[2] and place % LANES for place in inside)


PASS = Pass(
    "operands",
    {
        Matmul: settle_matmul,
        Moe: settle_moe,
        Maximum: settle_maximum,
        Mix: settle_mix,
        Attention: settle_attention,
        Products: settle_products,
        Shares: settle_shares,
        Tabulated: settle_tabulated,
    },
)
