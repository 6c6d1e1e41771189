"""A product of two tensors, element by element, joins the layer that makes one side of it, or one that copies a side.

The machine multiplies what leaves a layer, behind its activation, by a second tensor. A function by a table sets the
scale of that word: it stays where it is, and its result is the factor. Before the residuals, which join what is left.
"""

from dataclasses import replace

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.nodes import Matmul
from patchloom.compiler.nodes.captured import Multiply
from patchloom.compiler.passes.copies import copied_first, identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import producer


def fuse_factor(node: Multiply, at: Run) -> Matmul:
    for view, other in ((node.a, node.b), (node.b, node.a)):
        before = producer(view, Matmul)
        if before and at.only_here(before) and before.second is None and ACTIVATIONS[before.activation].any_scale:
            return replace(before, factor=other)
    first, second = copied_first(node.a, node.b)
    return identity(node, first, factor=second)


PASS = Pass("gates", {Multiply: fuse_factor})
