"""Norms become part of the layers that read them: W(g * norm(x) + c) + b = (W g)norm(x) + (Wc + b).

Before the lone norms, which are what no layer reads.
"""

from patchloom.compiler.node import Node
from patchloom.compiler.nodes import Matmul, Moe
from patchloom.compiler.nodes.captured import Normalise
from patchloom.compiler.passes.affine import absorb
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection


def fold_norm(node: Matmul | Moe, _: Run) -> Node | None:
    """W(g * norm(x) + c) + b = (W g)norm(x) + (Wc + b)."""
    norm = node.x.base
    if not isinstance(norm, Normalise) or node.epsilon is not None:
        return None
    chosen = selection(node.x)
    if chosen is None or not chosen.all_columns:
        return None
    x = norm.x.pick(norm.x.index[chosen.rows])
    return absorb(node, norm.gamma, norm.beta, x=x, epsilon=norm.epsilon, centred=norm.centred)


PASS = Pass("norms", {Matmul: fold_norm, Moe: fold_norm})
