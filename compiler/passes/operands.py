"""Every operand becomes what the machine can read: rows of one operation, heads as columns of one.

The last pass, because it inserts layers that select.
"""

from dataclasses import replace

from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Attention, Input, Matmul, Moe
from patchloom.compiler.passes.copies import as_node, identity
from patchloom.compiler.passes.engine import Pass, Run


def settle_matmul(node: Matmul, at: Run) -> Matmul:
    """Reads consecutive rows of one operation; the residual, or factor, is one operation."""
    x = node.x if node.x.rows else as_node(node.x, node, at)
    residual, factor = (None if view is None else as_node(view, node, at) for view in (node.residual, node.factor))
    return replace(node, x=x, residual=residual, factor=factor)


def settle_moe(node: Moe, at: Run) -> Moe:
    residual = None if node.residual is None else as_node(node.residual, node, at)
    gate_x = None if node.gate_x is None else as_node(node.gate_x, node, at)
    return replace(node, x=as_node(node.x, node, at), residual=residual, gate_x=gate_x)


def settle_attention(node: Attention, at: Run) -> Attention:
    """Each head must be consecutive columns of all rows of one operation."""
    return node.with_views(lambda view: _heads_as_columns(view, node, at))


def _heads_as_columns(view: View, node: Attention, at: Run) -> View:
    if not isinstance(view.base, Input) and view.columns is not None:
        return view
    heads, tokens, features = view.shape
    side_by_side = view.pick(view.index.transpose(1, 0, 2).reshape(tokens, heads * features))
    result = as_node(side_by_side, node, at)
    if isinstance(result.base, Input):
        result = whole(identity(node, result))
    return result.pick(result.index.reshape(tokens, heads, features).transpose(1, 0, 2))


PASS = Pass("operands", {Matmul: settle_matmul, Moe: settle_moe, Attention: settle_attention})
