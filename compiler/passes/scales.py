"""A constant factor per feature vanishes in the weights of the layer before, or becomes a layer.

Before norms and residuals, so that no factor stands between them and the layers that they join.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Node
from patchloom.compiler.nodes import Expert, Matmul, Moe
from patchloom.compiler.nodes.captured import Scale
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import producer
from patchloom.compiler.problems import UnsupportedError


def fold_scale(node: Scale, at: Run) -> Node:
    """A factor per feature belongs in the weights of the layer before."""
    if (node.factor != node.factor[0]).any():
        raise UnsupportedError(
            "multiplies by a constant that differs between tokens",
            "a learned factor must be a scalar or have one value per feature",
        )
    factor = node.factor[0]
    before = producer(node.x, Matmul)
    if before and at.only_here(before) and before.activation == "none" and before.residual is None:
        return replace(before, weight=before.weight * factor[:, None], bias=before.bias * factor)
    mixture = producer(node.x, Moe)
    if mixture and at.only_here(mixture) and mixture.residual is None:
        experts = (Expert(e.w1, e.b1, e.w2 * factor[:, None], e.b2 * factor) for e in mixture.experts)
        return replace(mixture, experts=tuple(experts))
    return identity(node, node.x, weight=np.diag(factor))


PASS = Pass("scales", {Scale: fold_scale})
