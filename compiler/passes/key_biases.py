"""A bias of keys adds the same to all scores of a query, which softmax does not see: dropped, it takes no range.

q @ (k + b)' = q @ k' + q @ b', and the last term is one number a row. After constants and activations, when a layer's
bias is all that it will be.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Indices, Node, View, whole
from patchloom.compiler.nodes import Attention, Matmul
from patchloom.compiler.passes.engine import Pass, Run


def drop_bias(node: Attention, at: Run) -> Node | None:
    layer = node.k.base
    if not isinstance(layer, Matmul) or layer.activation != "none" or layer.second is not None:
        return None
    keys, uses = node.k.index % layer.shape[1], sum(base is layer for view in node.views for base, _ in view.terms)
    if at.uses[layer] > uses or node.k.index.min() < 0 or (keys != keys[:, :1]).any():
        return None
    mine = np.setdiff1d(keys, np.concatenate([_columns(node.q, layer), _columns(node.v, layer)]))
    if not layer.bias[mine].any():
        return None
    bias = layer.bias.copy()
    bias[mine] = 0
    done: dict[Node, View] = {layer: whole(replace(layer, bias=bias))}
    return node.with_views(lambda view: view.substitute(done))


def _columns(view: View, layer: Matmul) -> Indices:
    """Of the layer's result, those that the view reads."""
    parts = [view.part(of) for of, (base, _) in enumerate(view.terms) if base is layer]
    read = np.concatenate([np.zeros(0, np.int64), *(part[part >= 0] for part in parts)])
    return read % layer.shape[1]


PASS = Pass("key_biases", {Attention: drop_bias})
