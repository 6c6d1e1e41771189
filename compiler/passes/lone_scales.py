"""A factor that no layer could take in, before it or behind it, is a layer of its own, which takes in what is added.

After all that could; before the activations, which a layer applies last.
"""

import numpy as np

from patchloom.compiler.nodes import Matmul
from patchloom.compiler.nodes.captured import Add, Scale
from patchloom.compiler.passes.constants import fuse_constant
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.problems import UnsupportedError


def lone_scale(node: Scale, _: Run) -> Matmul:
    if (node.factor != node.factor[0]).any():
        raise UnsupportedError(
            "multiplies by a constant that differs between tokens",
            "a learned factor must be a scalar or have one value per feature",
        )
    return identity(node, node.x, weight=np.diag(node.factor[0]))


PASS = Pass("lone_scales", {Scale: lone_scale, Add: fuse_constant})
