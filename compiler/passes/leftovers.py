"""Refuses the functions, products and softmaxes that no pass could use.

After all that could; before the operands, which would only hide them behind more layers.
"""

from collections.abc import Callable

from patchloom.compiler.node import Node
from patchloom.compiler.nodes.captured import Function, Opaque, Product, Softmax
from patchloom.compiler.passes.attention import ATTENTION_FORMS
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.trying import sources
from patchloom.compiler.passes.views import constant, is_opaque
from patchloom.compiler.problems import UnsupportedError


def refuse(text: str, hint: str) -> Callable[[Node, Run], Node]:
    def rule(node: Node, _: Run) -> Node:
        if any(is_opaque(view) for view in node.views):
            return Opaque(origin=node.origin, out_shape=node.shape)
        raise UnsupportedError(text, hint)

    return rule


def refuse_product(node: Product, at: Run) -> Node:
    if any(constant(view) is not None for view in node.views):
        return refuse("multiplies by a constant that is not a matrix", "use one weight matrix for all tokens")(node, at)
    return refuse("multiplies two tensors outside of attention", ATTENTION_FORMS)(node, at)


def refuse_function(node: Function, at: Run) -> Node:
    if any(isinstance(source, Opaque) for source in sources(node)):
        return Opaque(origin=node.origin, out_shape=node.shape)
    return refuse(node.text, node.hint)(node, at)


PASS = Pass(
    "leftovers",
    {
        Function: refuse_function,
        Product: refuse_product,
        Softmax: refuse("is a softmax outside of attention", ATTENTION_FORMS),
    },
)
