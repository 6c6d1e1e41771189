"""softmax(f * q @ k' + b) @ v becomes attention, whatever factors, constants and shapes stand between.

No pass of the pipeline: a product asks as soon as it is read, for a view of scores has an index for each of them.
"""

from dataclasses import dataclass, replace

import numpy as np

from patchloom.compiler.node import Floats, Indices, View, float32, whole
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul
from patchloom.compiler.nodes.captured import Add, Product, Scale, Softmax
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes.engine import Pass
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.passes.views import constant, fixed_part, is_opaque
from patchloom.compiler.problems import UnsupportedError

HIDDEN = -1e4  # what is written over a score to hide a key, at most
LOWEST = -1e30  # stands for minus infinity


def find_attention(outer: Product, _: object = None) -> View | None:
    """softmax(f * q @ k' + b) @ v, with constant factors anywhere."""
    softmax = outer.a.base
    if not isinstance(softmax, Softmax) or is_opaque(softmax.x):
        return None
    weights, scores = _rows(outer.a), scores_of(softmax.x)
    if weights is None or scores is None:
        return None
    operands = [view.without_factor() for view in (scores.q, scores.k, outer.b)]
    if any(operand is None for operand in operands):
        return None
    (q, q_factor), (k, k_factor), (v, v_factor) = (operand for operand in operands if operand)
    attend = attention(
        replace(outer.origin, name=f"{outer.origin.name.rpartition('.')[0]}.attention".lstrip(".")),
        q.pick(q.index[weights]),
        k.pick(k.index[weights[0][:, 0]]),
        v,
        scores.factor * q_factor * k_factor,
        None if scores.bias is None else scores.bias[weights],
    )
    factor = v_factor * outer.a.terms[0][1]
    if factor == 1.0:
        return attended(attend)
    result = attended(attend)
    [made] = {base for base, _ in result.terms}
    return result.substitute({made: whole(Scale.by(factor, whole(made), outer.origin))})


@dataclass(frozen=True, eq=False)
class Scores:
    """`factor * q @ k' + bias`, each with tokens x features of every attention map."""

    q: View
    k: View
    factor: float = 1.0
    bias: Floats | None = None  # [maps, queries, keys]

    def scaled(self, by: float) -> "Scores":
        bias = None if self.bias is None else self.bias * np.float32(by)
        return replace(self, factor=self.factor * by, bias=bias)

    def plus(self, value: Floats) -> "Scores":
        value = value.reshape(-1, self.q.shape[1], self.k.shape[1])
        return replace(self, bias=value if self.bias is None else self.bias + value)


def scores_of(view: View) -> Scores | None:
    """Attention maps of a product, below constants that are added, multiply, or are written over some scores."""
    written = fixed_part(view)
    if written is not None:
        return _below(_without_constants(view, written), 1.0, written)
    base, factor = view.terms[0]
    if isinstance(base, Scale) and len(view.terms) == 1:
        factors = base.factor.reshape(-1)[view.index]
        uniform = view.index.min() >= 0 and (factors == factors.flat[0]).all()
        return _below(_through(base.x, view) if uniform else None, factor * float(factors.flat[0]))
    if isinstance(base, Add) and len(view.terms) == 1:
        for other, added in ((base.a, base.b), (base.b, base.a)):
            value = constant(_through(added, view))
            if value is not None:
                return _below(_through(other, view), factor, value * np.float32(factor))
    operands = _queries_and_keys(view)
    return operands and Scores(*operands, factor)


def _below(view: View | None, factor: float, added: Floats | None = None) -> Scores | None:
    scores = None if view is None else scores_of(view)
    if scores is None:
        return None
    return scores.scaled(factor) if added is None else scores.scaled(factor).plus(added)


def _through(view: View, upper: View) -> View:
    """What elements of an operation are, whose result is the view."""
    return view.pick(np.append(view.index.reshape(-1), -1)[upper.index])


def _without_constants(view: View, written: Floats) -> View | None:
    """Maps of one operation, some of whose scores are hidden by what is written over them."""
    live = [i for i, (base, _) in enumerate(view.terms) if not isinstance(base, Constant)]
    if len(live) != 1 or len(view.shape) < 2:
        return None
    [term] = [view.terms[i] for i in live]
    start = sum(base.size for base, _ in view.terms[: live[0]])
    places = np.arange(view.shape[-2] * view.shape[-1])
    index = view.index.reshape(-1, len(places))
    seen = (index >= start) & (index < start + term[0].size)
    if (written.reshape(seen.shape)[~seen] > HIDDEN).any() or not seen.any(axis=1).all():
        return None
    first = (index - start - places)[np.arange(len(index)), seen.argmax(axis=1)][:, None]
    if ((index - start - places != first) & seen).any():
        return None
    return View((term,), (first + places).reshape(view.shape))


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
    if inner.activation != "none" or inner.second is not None or inner.epsilon is not None or len(scores.shape) < 2:
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


def attention(origin: Origin, q: View, k: View, v: View, scale: float, bias: Floats | None = None) -> Attention:
    """With what is added to the scores, to those of each query the same as far as it pleases."""
    bias = None if bias is None else _relative(bias)
    return Attention(origin=origin, q=q, k=k, v=v, scale=scale, bias=bias, windows=windows(q))


def _relative(bias: Floats) -> Floats | None:
    """Each query's largest becomes 0, which leaves its softmax as it was."""
    largest = bias.max(axis=2, keepdims=True)
    if np.isneginf(largest).any():
        raise UnsupportedError("hides all keys from a query", "let every query see one, and leave out its result")
    bias = np.maximum(bias - largest, np.float32(LOWEST))
    return float32(bias) if bias.any() else None


def windows(q: View) -> int:
    """How often heads of the same rows follow one another."""
    base = q.base
    if base is None or isinstance(base, Input) or len(base.shape) != 2:
        return 1
    rows = q.index[:, :, 0] // base.shape[1]
    first = np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1
    count = len(first) + 1
    regular = len(rows) % count == 0 and np.array_equal(first, np.arange(1, count) * (len(rows) // count))
    return count if regular else 1


def side_by_side(view: View, count: int) -> View:
    """Heads x tokens x features as a matrix: its windows one above the other, their heads side by side."""
    heads, tokens, features = view.shape
    parts = view.index.reshape(count, heads // count, tokens, features)
    return view.pick(parts.transpose(0, 2, 1, 3).reshape(count * tokens, -1))


def as_heads(matrix: View, count: int, heads: int) -> View:
    """The other way round."""
    rows = len(matrix.index) // count
    parts = matrix.index.reshape(count, rows, heads // count, -1)
    return matrix.pick(parts.transpose(0, 2, 1, 3).reshape(heads, rows, -1))


def attended(attend: Attention) -> View:
    """The result as heads x tokens x features, as users get it; a negative scale goes into the keys."""
    if attend.scale < 0:
        attend = replace(attend, k=plain(attend.k.scaled(-1.0)), scale=-attend.scale)
    return as_heads(whole(attend), attend.windows, len(attend.q.index))


PASS = Pass("attention", {Product: find_attention})
