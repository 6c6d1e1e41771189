"""A constant factor per feature vanishes in the layer or the norm before, and so does a constant between factors.

Before norms and residuals, so that no factor stands between them and the layers that they join.
"""

from dataclasses import replace

from patchloom.compiler.node import Node, View
from patchloom.compiler.nodes import Expert, Matmul, Moe
from patchloom.compiler.nodes.captured import Add, Normalise, Scale
from patchloom.compiler.passes.constants import fuse_constant
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import producer


def fold_scale(node: Scale, at: Run) -> Node | View | None:
    if (node.factor == 1).all():
        return node.x
    inner = producer(node.x, Scale)
    if inner:
        return fold_scale(replace(inner, factor=inner.factor * node.factor), at)
    factor = node.factor[0]
    if (node.factor != factor).any() or not node.x.base or not at.only_here(node.x.base):
        return None
    before = producer(node.x, Matmul)
    if before and before.activation == "none" and before.residual is None:
        return replace(before, weight=before.weight * factor[:, None], bias=before.bias * factor)
    mixture = producer(node.x, Moe)
    if mixture and mixture.residual is None:
        experts = (Expert(e.w1, e.b1, e.w2 * factor[:, None], e.b2 * factor) for e in mixture.experts)
        return replace(mixture, experts=tuple(experts))
    norm = producer(node.x, Normalise)
    return norm and replace(norm, gamma=norm.gamma * factor, beta=norm.beta * factor)


PASS = Pass("scales", {Scale: fold_scale, Add: fuse_constant})
