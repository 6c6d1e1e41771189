"""A layer that reads some columns reads all of them, with weight zero for the others.

Before norms, which need the whole token; and no operand has to be selected first.
"""

from dataclasses import replace

from patchloom.compiler.node import Node, whole
from patchloom.compiler.nodes import Constant, Expert, Input, Matmul, Moe
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection


def read_whole_rows(node: Matmul | Moe, _: Run) -> Node | None:
    """A layer that reads some columns reads all, with weight zero for the others."""
    if node.x.base is None or isinstance(node.x.base, Input | Constant) or len(node.x.base.shape) != 2:
        return None
    chosen = selection(node.x)
    if chosen is None or chosen.all_columns or node.epsilon is not None:
        return None
    x = whole(chosen.base).pick(whole(chosen.base).index[chosen.rows])
    if isinstance(node, Matmul):
        return replace(node, x=x, weight=node.weight @ chosen.matrix)
    experts = tuple(Expert(e.w1 @ chosen.matrix, e.b1, e.w2, e.b2) for e in node.experts)
    gate = node.gate_weight @ chosen.matrix if node.gate_x is None else node.gate_weight
    return replace(node, x=x, gate_weight=gate, experts=experts)


PASS = Pass("columns", {Matmul: read_whole_rows, Moe: read_whole_rows})
