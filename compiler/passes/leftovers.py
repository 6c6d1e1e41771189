"""Refuses the products and softmaxes that no pass could use.

After all that could; before the operands, which would only hide them behind more layers.
"""

from patchloom.compiler.node import Node
from patchloom.compiler.nodes.captured import Opaque, Product, Softmax
from patchloom.compiler.passes.attention import ATTENTION_FORMS
from patchloom.compiler.passes.engine import Pass, Rule, Run
from patchloom.compiler.passes.views import is_opaque
from patchloom.compiler.problems import UnsupportedError


def refuse(text: str, hint: str) -> Rule:
    def rule(node: Node, _: Run) -> Node:
        if any(is_opaque(view) for view in node.views):
            return Opaque(origin=node.origin, out_shape=node.shape)
        raise UnsupportedError(text, hint)

    return rule


PASS = Pass(
    "leftovers",
    {
        Product: refuse("multiplies two tensors outside of attention", ATTENTION_FORMS),
        Softmax: refuse("is a softmax outside of attention", ATTENTION_FORMS),
    },
)
