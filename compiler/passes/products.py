"""Products of two tensors that depend on the inputs, and softmax, that are no part of attention: head by head.

First: what reads them must find results that lie in rows.
"""

from patchloom.compiler.node import Node, View, whole
from patchloom.compiler.nodes import Products, Shares
from patchloom.compiler.nodes.captured import Opaque, Product, Softmax
from patchloom.compiler.passes.attention import as_heads, windows
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.factors import plain, without_factors
from patchloom.compiler.passes.views import is_opaque


def place_product(node: Product, _: Run) -> Node | View:
    if any(is_opaque(view) for view in node.views):
        return Opaque(origin=node.origin, out_shape=node.shape)
    (a, a_factor), (b, b_factor) = without_factors(node.a), without_factors(node.b)
    scale = a_factor * b_factor
    a = plain(a.scaled(-1.0)) if scale < 0 else a
    return in_heads(Products(origin=node.origin, a=a, b=b, scale=abs(scale), windows=windows(a)))


def place_softmax(node: Softmax, _: Run) -> Node | View:
    if is_opaque(node.x):
        return Opaque(origin=node.origin, out_shape=node.shape)
    x, scale = without_factors(node.x)
    x = plain(x.scaled(-1.0)) if scale < 0 else x
    x = x.reshape(-1, *((1, *x.shape)[-2:]))
    made = Shares(origin=node.origin, x=x, scale=abs(scale), windows=windows(x))
    return in_heads(made).reshape(*node.shape)


def in_heads(made: Products | Shares) -> View:
    return as_heads(whole(made), made.windows, made.rectangles[0])


PASS = Pass("products", {Product: place_product, Softmax: place_softmax})
