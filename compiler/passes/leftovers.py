"""Refuses the functions that no pass could use.

After all that could; before the operands, which would only hide them behind more layers.
"""

from patchloom.compiler.node import Node
from patchloom.compiler.nodes.captured import Function, Opaque
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.trying import sources
from patchloom.compiler.problems import UnsupportedError


def refuse_function(node: Function, _: Run) -> Node:
    if any(isinstance(source, Opaque) for source in sources(node)):
        return Opaque(origin=node.origin, out_shape=node.shape)
    raise UnsupportedError(node.text, node.hint)


PASS = Pass("leftovers", {Function: refuse_function})
