"""softmax(f * q @ k') @ v becomes attention, whatever factors and shapes stand between.

The first pass: scores are still a product under a softmax, and no factor has gone into a layer yet.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Indices, View, whole
from patchloom.compiler.nodes import Attention
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
    inner = softmax.x.base
    weights, scores = _maps(outer.a), _maps(softmax.x)
    if not isinstance(inner, Product) or weights is None or scores is None:
        raise UnsupportedError("needs scores that are q @ k' times a constant: no mask, no bias", ATTENTION_FORMS)
    operands = [view.without_factor() for view in (inner.a, inner.b, outer.b)]
    if any(operand is None for operand in operands):
        return None
    (q, q_factor), (k, k_factor), (v, v_factor) = (operand for operand in operands if operand)
    maps = scores[weights]
    attend = Attention(
        origin=replace(outer.origin, name=f"{outer.origin.name.rpartition('.')[0]}.attention".lstrip(".")),
        q=q.pick(q.index[maps]),
        k=k.pick(k.index.transpose(0, 2, 1)[maps]),
        v=v,
        scale=softmax.x.terms[0][1] * q_factor * k_factor,
    )
    factor = v_factor * outer.a.terms[0][1]
    if factor == 1.0:
        return attended(attend)
    result = attended(attend)
    [made] = {base for base, _ in result.terms}
    return result.substitute({made: whole(Scale.by(factor, whole(made), outer.origin))})


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
