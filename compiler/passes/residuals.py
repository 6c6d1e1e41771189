"""A sum joins the layer that makes one side of it, or a layer that copies one side.

After all that folds into layers, which must then be sums no longer: the last operation that is not canonical.
"""

from dataclasses import replace

from patchloom.compiler.nodes import Matmul, Moe
from patchloom.compiler.nodes.captured import Add
from patchloom.compiler.passes.copies import copied_first, identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import clips, layer


def fuse_residual(node: Add, at: Run) -> Matmul | Moe:
    """A sum joins the layer that makes one side of it, or a layer that copies one side."""
    for view, other in ((node.b, node.a), (node.a, node.b)):
        before = layer(view)
        if before and at.only_here(before) and before.second is None and not clips(before):
            return replace(before, residual=other)
    first, second = copied_first(node.a, node.b)
    return identity(node, first, residual=second)


PASS = Pass("residuals", {Add: fuse_residual})
