"""A norm that a residual, a result or attention reads is a layer of its own.

After the norms that layers took; those that are left no longer change.
"""

import numpy as np

from patchloom.compiler.nodes import Matmul
from patchloom.compiler.nodes.captured import Normalise
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run


def lone_norm(node: Normalise, _: Run) -> Matmul:
    return identity(
        node, node.x, weight=np.diag(node.gamma), bias=node.beta, epsilon=node.epsilon, centred=node.centred
    )


PASS = Pass("lone_norms", {Normalise: lone_norm})
