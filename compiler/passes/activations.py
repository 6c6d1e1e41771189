"""An activation joins the layer before it, or a layer that copies its operand.

Before the residuals: a layer applies its activation first.
"""

from dataclasses import replace

from patchloom.compiler.nodes import Matmul
from patchloom.compiler.nodes.captured import Activate
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import producer


def fuse_activation(node: Activate, at: Run) -> Matmul:
    before = producer(node.x, Matmul)
    if before and at.only_here(before) and before.activation == "none" and before.residual is None:
        return replace(before, activation=node.activation)
    return identity(node, node.x, activation=node.activation)


PASS = Pass("activations", {Activate: fuse_activation})
