"""What is computed of tokens in another order, or of some several times, is computed as they lie, and then viewed.

After attention, whose result is a view; before layers join: all that reads such tokens finds them viewed alike.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Indices, Node, View, whole
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Maximum, Moe
from patchloom.compiler.nodes.captured import Activate, Add, Multiply, Normalise, Scale
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.passes.views import grid


def as_they_lie(node: Node, at: Run) -> View | None:
    """Each token once, in the order of the first operand that is of one operation."""
    read = [_tokens(view) for view in node.views]
    first = next((tokens for tokens in read if tokens is not None), None)
    if first is None or (np.diff(first) == 1).all():
        return None
    keys = [view.index if tokens is None else tokens[:, None] for view, tokens in zip(node.views, read, strict=True)]
    _, kept, place = np.unique(
        np.concatenate([first[:, None], *keys], 1), axis=0, return_index=True, return_inverse=True
    )
    if (np.diff(first[kept]) != 1).any():
        return None
    made = _of_tokens(node, kept)
    return None if made is None else whole(made).pick(whole(made).index[place.reshape(-1)])


def elements_as_they_lie(node: Node, at: Run) -> View | None:
    """As the rows and columns that an operand is of its operation, where its tokens are not whole."""
    moved = as_they_lie(node, at)
    if moved is not None:
        return moved
    order = next((order for order in map(grid, node.views) if order is not None), None)
    if order is None or np.array_equal(order, np.arange(order.size).reshape(node.shape)):
        return None
    made = node.with_views(lambda view: view.pick(view.index.reshape(-1)[order]))
    if isinstance(made, Scale):
        made = replace(made, factor=made.factor.reshape(-1)[order])
    return View(((made, 1.0),), np.argsort(order, axis=None).reshape(node.shape))


def _of_tokens(node: Node, kept: Indices) -> Node | None:
    made = node.with_views(lambda view: view.pick(view.index[kept]))
    if not isinstance(node, Scale):
        return made
    alike = (node.factor == node.factor[0]).all()
    return replace(node, x=node.x.pick(node.x.index[kept]), factor=node.factor[kept]) if alike else None


def _tokens(view: View) -> Indices | None:
    """Which tokens of one operation it is of, if it is of the same features of each."""
    if view.base is None or isinstance(view.base, Input | Constant) or len(view.shape) != 2:
        return None
    chosen = selection(view)
    return None if chosen is None else chosen.rows


def attend_as_they_lie(node: Attention, at: Run) -> View | None:
    """A softmax does not see the order of its keys, and each query has a token of the result."""
    queries = _order(node.q)
    keys = _order(node.k) if isinstance(node.v.base, Constant) else _order(node.v)
    if queries is None and keys is None:
        return None
    q = node.q if queries is None else node.q.pick(node.q.index[:, queries])
    k, v = (view if keys is None else view.pick(view.index[:, keys]) for view in (node.k, node.v))
    bias = node.bias
    if bias is not None:
        bias = bias if queries is None else bias[:, queries]
        bias = bias if keys is None else bias[:, :, keys]
    made = whole(replace(node, q=q, k=k, v=v, bias=bias))
    return made if queries is None else made.pick(made.index[np.argsort(queries)])


def _order(heads: View) -> Indices | None:
    """In which the tokens must be taken to be as they lie, if they are not."""
    if heads.base is None or isinstance(heads.base, Input | Constant) or len(heads.base.shape) != 2:
        return None
    tokens = heads.index[:, :, 0] // heads.base.shape[1]
    order = np.argsort(tokens[0])
    permuted = (tokens == tokens[0]).all() and np.array_equal(tokens[0][order], np.arange(heads.base.shape[0]))
    return order if permuted and (order != np.arange(len(order))).any() else None


TOKENS: tuple[type[Node], ...] = (Matmul, Moe, Normalise)
ELEMENTS: tuple[type[Node], ...] = (Activate, Add, Maximum, Multiply, Scale)
PASS = Pass(
    "order",
    {
        **dict.fromkeys(TOKENS, as_they_lie),
        **dict.fromkeys(ELEMENTS, elements_as_they_lie),
        Attention: attend_as_they_lie,
    },
)
