"""A factor that no layer could take in, before it or behind it, is a layer of its own, which takes in what is added.

One that differs between tokens is a second tensor.

After all that could; before the activations, which a layer applies last.
"""

import numpy as np

from patchloom.compiler.node import Node, whole
from patchloom.compiler.nodes import Constant
from patchloom.compiler.nodes.captured import Add, Multiply, Scale
from patchloom.compiler.passes.constants import fuse_constant
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run


def lone_scale(node: Scale, _: Run) -> Node:
    if (node.factor != node.factor[0]).any():
        return Multiply(origin=node.origin, a=node.x, b=whole(Constant(origin=node.origin, value=node.factor)))
    return identity(node, node.x, weight=np.diag(node.factor[0]))


PASS = Pass("lone_scales", {Scale: lone_scale, Add: fuse_constant})
