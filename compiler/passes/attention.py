"""softmax(f * q @ k') @ v becomes attention, whatever factors and shapes stand between.

The first pass: scores are still a product under a softmax, and no factor has gone into a layer yet.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Indices, View, whole
from patchloom.compiler.nodes import Attention, Constant, Matmul
from patchloom.compiler.nodes.captured import Product, Scale, Softmax
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.passes.views import is_opaque
from patchloom.compiler.problems import UnsupportedError

ATTENTION_FORMS = "write attention as scaled_dot_product_attention, or softmax(q @ k.transpose(-2, -1) * scale, -1) @ v"


def find_attention(outer: Product, _: Run) -> View | None:
    """softmax(f * q @ k') @ v, with constant factors anywhere."""
    softmax = outer.a.base
    if not isinstance(softmax, Softmax) or is_opaque(softmax.x):
        return None
    weights, scored = _rows(outer.a), _queries_and_keys(softmax.x)
    if weights is None or scored is None:
        raise UnsupportedError("needs scores that are q @ k' times a constant: no mask, no bias", ATTENTION_FORMS)
    operands = [view.without_factor() for view in (*scored, outer.b)]
    if any(operand is None for operand in operands):
        return None
    (q, q_factor), (k, k_factor), (v, v_factor) = (operand for operand in operands if operand)
    attend = Attention(
        origin=replace(outer.origin, name=f"{outer.origin.name.rpartition('.')[0]}.attention".lstrip(".")),
        q=q.pick(q.index[weights]),
        k=k.pick(k.index[weights[0][:, 0]]),
        v=v,
        scale=softmax.x.terms[0][1] * q_factor * k_factor,
    )
    factor = v_factor * outer.a.terms[0][1]
    if factor == 1.0:
        return attended(attend)
    result = attended(attend)
    [made] = {base for base, _ in result.terms}
    return result.substitute({made: whole(Scale.by(factor, whole(made), outer.origin))})


def _queries_and_keys(scores: View) -> tuple[View, View] | None:
    """Of each attention map, as tokens x features."""
    inner, maps = scores.base, _maps(scores)
    if isinstance(inner, Product) and maps is not None:
        return inner.a.pick(inner.a.index[maps]), inner.b.pick(inner.b.index.transpose(0, 2, 1)[maps])
    return _learned_queries(scores, inner) if isinstance(inner, Matmul) else None


def _learned_queries(scores: View, inner: Matmul) -> tuple[View, View] | None:
    """Scores by a layer: its weights are the queries; what its bias adds is alike for all keys, which no softmax sees.

    So are tokens pooled by learned weights.
    """
    if inner.activation != "none" or inner.residual is not None or inner.epsilon is not None or len(scores.shape) < 2:
        return None
    rows, columns = np.divmod(scores.index.reshape(-1, *scores.shape[-2:]), inner.shape[1])
    if (scores.index < 0).any() or (rows != rows[:, :1]).any() or (columns != columns[:, :, :1]).any():
        return None
    weights = whole(Constant(origin=inner.origin, value=inner.weight))
    return weights.pick(weights.index[columns[:, :, 0]]), inner.x.pick(inner.x.index[rows[:, 0]])


def _rows(view: View) -> tuple[Indices, Indices] | None:
    """Attention map and query of each of its rows, heads x queries, if they are whole and a head's are of one map."""
    base = view.base
    if base is None or len(base.shape) < 2 or view.shape[-1] != base.shape[-1]:
        return None
    rows, keys = np.divmod(view.index, base.shape[-1])
    maps, queries = np.divmod(rows[:, :, 0], base.shape[-2])
    whole_rows = (rows == rows[:, :, :1]).all() and (keys == np.arange(base.shape[-1])).all()
    return (maps, queries) if whole_rows and (maps == maps[:, :1]).all() else None


def _maps(view: View) -> Indices | None:
    """Which of its operation's attention maps the view consists of, each as it is."""
    base = view.base
    if base is None or len(base.shape) < 2 or view.shape[-2:] != base.shape[-2:]:
        return None
    size = base.shape[-1] * base.shape[-2]
    index = view.index.reshape(-1, size)
    return index[:, 0] // size if np.array_equal(index % size, np.tile(np.arange(size), (len(index), 1))) else None


def attended(attend: Attention) -> View:
    """The result as heads x tokens x features, as users get it; a negative scale goes into the keys."""
    if attend.scale < 0:
        attend = replace(attend, k=plain(attend.k.scaled(-1.0)), scale=-attend.scale)
    tokens, (heads, _, features) = attend.q.shape[1], attend.v.shape
    result = whole(attend)
    return result.pick(result.index.reshape(tokens, heads, features).transpose(1, 0, 2))


PASS = Pass("attention", {Product: find_attention})
