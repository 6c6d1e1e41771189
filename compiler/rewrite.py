"""From operations as users write them to the canonical graph: named passes, each a table of rules.

A rule sees one operation, whose operands earlier rules have already rewritten, and returns what stands for
it: another operation, a view of other operations, or None to leave it. Whatever no pass can bring into
canonical form is reported, all of it at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from patchloom.compiler import nodes
from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.graph import Floats, Graph, Indices, Node
from patchloom.compiler.nodes import Expert
from patchloom.compiler.primitive import (
    Activate,
    Add,
    Attend,
    Fixed,
    Linear,
    Mixture,
    Normalise,
    Opaque,
    Primitive,
    Problem,
    Product,
    Scale,
    Softmax,
    Source,
    UnsupportedError,
    View,
    float32,
    whole,
)

T = TypeVar("T", bound=Primitive)
Layer = TypeVar("Layer", bound=Linear | Mixture)
Rule = Callable[[Any, "Pass"], Primitive | View | None]


@dataclass(eq=False)
class Pass:
    """One pass at work: how often each operation's result is used, and what went wrong."""

    rules: Mapping[type[Primitive], Rule]
    problems: list[Problem]
    uses: Counter[Primitive] = field(default_factory=Counter)
    made: dict[object, Primitive] = field(default_factory=dict)

    def only_here(self, base: Primitive) -> bool:
        """The rule's own operand is the only use."""
        return self.uses[base] <= 1

    def once(self, key: object, make: Callable[[], Primitive]) -> Primitive:
        """One operation per key, however many operands ask for it."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def run(self, results: Sequence[View]) -> list[View]:
        order = in_order(results)
        for view in (*results, *(view for node in order for view in node.views)):
            self.uses.update(base for base, _ in view.terms)
        done: dict[Primitive, View] = {}
        for node in order:
            new = self._rewrite(node.with_views(lambda view: view.substitute(done)))
            view = new if isinstance(new, View) else whole(new)
            if not (view.base is node and view.is_whole()):
                done[node] = view
                for base in {base for base, _ in view.terms} - {node}:
                    self.uses[base] += self.uses[node]
        return [view.substitute(done) for view in results]

    def _rewrite(self, node: Primitive) -> Primitive | View:
        rule = self.rules.get(type(node))
        try:
            new = rule(node, self) if rule else None
        except UnsupportedError as refusal:
            shapes = tuple(view.shape for view in node.views)
            self.problems.append(Problem(node.origin, refusal.text, refusal.hint, shapes))
            return Opaque(origin=node.origin, out_shape=node.shape)
        return node if new is None else new


def in_order(results: Iterable[View]) -> list[Primitive]:
    """Every operation once, each after all that it reads."""
    order: dict[Primitive, None] = {}
    stack = [base for view in results for base, _ in view.terms][::-1]
    while stack:
        node = stack[-1]
        before = [base for view in node.views for base, _ in view.terms if base not in order]
        if node not in order and before:
            stack.extend(before[::-1])
            continue
        stack.pop()
        order.setdefault(node)
    return list(order)


# --- Views of matrices ---


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows and columns of a matrix; column -1 is zero."""

    base: Primitive
    rows: Indices
    columns: Indices

    @property
    def block(self) -> tuple[int, int] | None:
        """(first, last) when the rows are consecutive."""
        first = int(self.rows[0])
        consecutive = np.array_equal(self.rows, np.arange(first, first + len(self.rows)))
        return (first, first + len(self.rows)) if consecutive else None

    @property
    def all_columns(self) -> bool:
        return np.array_equal(self.columns, np.arange(self.base.shape[1]))

    @property
    def matrix(self) -> Floats:
        """[columns, base features]: what selects the columns as a matmul."""
        chosen = np.zeros((len(self.columns), self.base.shape[1]), np.float32)
        used = self.columns >= 0
        chosen[np.flatnonzero(used), self.columns[used]] = 1
        return chosen


def selection(view: View, of: int = 0) -> Selection | None:
    """How the view picks rows and columns of its term `of`, taking what is of other terms for zeros."""
    base = view.terms[of][0]
    if isinstance(base, Source) or len(base.shape) != 2 or view.terms[of][1] != 1.0:
        return None
    start = sum(other.size for other, _ in view.terms[:of])
    index = np.where((view.index >= start) & (view.index < start + base.size), view.index - start, -1)
    present = index >= 0
    row = int(present.any(axis=1).argmax())
    used = present[row]
    if not used.any() or not (present == used).all():
        return None
    features = base.shape[1]
    columns = np.where(used, index[row] % features, -1)
    rows = index[:, int(used.argmax())] // features
    if not np.array_equal(index[:, used], rows[:, None] * features + columns[used]):
        return None
    return Selection(base, rows, columns)


def producer(view: View, kind: type[T]) -> T | None:
    """The operation of that kind whose whole result the view is."""
    return view.base if isinstance(view.base, kind) and view.is_whole() else None


def layer(view: View) -> Linear | Mixture | None:
    return producer(view, Linear) or producer(view, Mixture)


def constant(view: View) -> Floats | None:
    """The value of a view of nothing but constants."""
    if not all(isinstance(base, Fixed) for base, _ in view.terms):
        return None
    flat = [base.value.reshape(-1) * factor for base, factor in view.terms if isinstance(base, Fixed)]
    return float32(np.concatenate([*flat, [0]])[view.index])


def selecting(view: View, reader: Primitive) -> Linear:
    """A matmul whose result is the view: rows of one or more operations, columns in any order."""
    fixed = _fixed_part(view)
    result = None if fixed is None else whole(Fixed(origin=reader.origin, value=fixed))
    for i, (base, _) in enumerate(view.terms):
        if not isinstance(base, Fixed):
            x, weight = _selected(view, i)
            bias = _zeros(len(weight))
            result = whole(Linear(origin=reader.origin, x=x, weight=weight, bias=bias, residual=result))
    assert result is not None
    assert isinstance(result.base, Linear), "constants alone are never selected"
    return result.base


def _selected(view: View, of: int) -> tuple[View, Floats]:
    """What a matmul reads, and by which weights, to make the part of the view that is of one term."""
    base, factor = view.terms[of]
    if isinstance(base, Source):
        start = sum(other.size for other, _ in view.terms[:of])
        inside = (view.index >= start) & (view.index < start + base.size)
        index = np.where(inside, view.index - start, -1)
        return View(((base, 1.0),), index), np.eye(index.shape[1], dtype=np.float32) * np.float32(factor)
    chosen = selection(view, of)
    if chosen is None or chosen.block is None:
        raise UnsupportedError(
            f"reads the result of {base.origin} in pieces, but must read whole tokens, in their order",
            "rearrange tokens before the patch embedding or after the last layer",
        )
    return View(((base, 1.0),), whole(base).index[slice(*chosen.block)]), chosen.matrix


def _fixed_part(view: View) -> Floats | None:
    if not any(isinstance(base, Fixed) for base, _ in view.terms):
        return None
    flat = [
        base.value.reshape(-1) * factor if isinstance(base, Fixed) else np.zeros(base.size)
        for base, factor in view.terms
    ]
    return float32(np.concatenate([*flat, [0]])[view.index])


def identity(node: Primitive, x: View, **changes: Any) -> Linear:
    """A matmul that copies x, to carry an activation or a residual that x's own operation cannot."""
    features = x.shape[1]
    linear = Linear(origin=node.origin, x=x, weight=np.eye(features, dtype=np.float32), bias=_zeros(features))
    return replace(linear, **changes)


def _zeros(count: int) -> Floats:
    return np.zeros(count, np.float32)


# --- Attention ---

ATTENTION_FORMS = "write attention as scaled_dot_product_attention, or softmax(q @ k.transpose(-2, -1) * scale, -1) @ v"


def find_attention(outer: Product, _: Pass) -> View | None:
    """softmax(f * q @ k') @ v, with constant factors anywhere."""
    softmax = outer.a.base
    if not isinstance(softmax, Softmax) or is_opaque(softmax.x):
        return None
    inner = softmax.x.base
    weights, scores = _maps(outer.a), _maps(softmax.x)
    if not isinstance(inner, Product) or weights is None or scores is None:
        raise UnsupportedError("needs scores that are q @ k' times a constant: no mask, no bias", ATTENTION_FORMS)
    operands = [without_factor(view) for view in (inner.a, inner.b, outer.b)]
    if any(operand is None for operand in operands):
        return None
    (q, q_factor), (k, k_factor), (v, v_factor) = (operand for operand in operands if operand)
    maps = scores[weights]
    attend = Attend(
        origin=replace(outer.origin, name=f"{outer.origin.name.rpartition('.')[0]}.attention".lstrip(".")),
        q=q.pick(q.index[maps]),
        k=k.pick(k.index.transpose(0, 2, 1)[maps]),
        v=v,
        scale=softmax.x.terms[0][1] * q_factor * k_factor,
    )
    factor = v_factor * outer.a.terms[0][1]
    if factor == 1.0:
        return attended(attend)
    by = np.full(attend.shape, factor, np.float32)
    return attended(attend).substitute({attend: whole(Scale(origin=outer.origin, x=whole(attend), factor=by))})


def without_factor(view: View) -> tuple[View, float] | None:
    """The view and the one factor of all its terms."""
    factors = {factor for _, factor in view.terms}
    plain = View(tuple((base, 1.0) for base, _ in view.terms), view.index)
    return (plain, factors.pop()) if len(factors) == 1 else None


def _maps(view: View) -> Indices | None:
    """Which of its operation's attention maps the view consists of, each as it is."""
    base = view.base
    if base is None or len(base.shape) < 2 or view.shape[-2:] != base.shape[-2:]:
        return None
    size = base.shape[-1] * base.shape[-2]
    index = view.index.reshape(-1, size)
    return index[:, 0] // size if np.array_equal(index % size, np.tile(np.arange(size), (len(index), 1))) else None


def attended(attend: Attend) -> View:
    """The result as heads x tokens x features, as users get it."""
    tokens, (heads, _, features) = attend.q.shape[1], attend.v.shape
    result = whole(attend)
    return result.pick(result.index.reshape(tokens, heads, features).transpose(1, 0, 2))


# --- Constants times and plus tensors ---


def fold_affine_input(node: Linear, _: Pass) -> Linear | None:
    """W(x * f + c) = (W f)x + Wc, e.g. images normalised in forward; f and c alike for all tokens."""
    base = node.x.base
    if isinstance(base, Scale):
        factor = _per_column(base.factor, node.x.index)
        if factor is not None and node.epsilon is None:
            x = node.x.substitute({base: base.x})
            return fold_affine_input(replace(node, x=x, weight=node.weight * factor), _) or replace(
                node, x=x, weight=node.weight * factor
            )
    if isinstance(base, Add):
        for view, other in ((base.a, base.b), (base.b, base.a)):
            value = constant(other)
            shift = None if value is None else _per_column(value, node.x.index)
            if shift is not None and node.epsilon is None and isinstance(view.base, Source | Scale):
                moved = replace(node, x=node.x.substitute({base: view}), bias=node.bias + node.weight @ shift)
                return fold_affine_input(moved, _) or moved
    return None


def _per_column(value: Floats, index: Indices) -> Floats | None:
    gathered = np.append(value.reshape(-1), np.float32(0))[index]
    return gathered[0] if (gathered == gathered[0]).all() else None


def fold_scale(node: Scale, at: Pass) -> Primitive:
    """A factor per feature belongs in the weights of the layer before."""
    if (node.factor != node.factor[0]).any():
        raise UnsupportedError(
            "multiplies by a constant that differs between tokens",
            "a learned factor must be a scalar or have one value per feature",
        )
    factor = node.factor[0]
    before = producer(node.x, Linear)
    if before and at.only_here(before) and before.activation == "none" and before.residual is None:
        return replace(before, weight=before.weight * factor[:, None], bias=before.bias * factor)
    mixture = producer(node.x, Mixture)
    if mixture and at.only_here(mixture) and mixture.residual is None:
        experts = (Expert(e.w1, e.b1, e.w2 * factor[:, None], e.b2 * factor) for e in mixture.experts)
        return replace(mixture, experts=tuple(experts))
    return identity(node, node.x, weight=np.diag(factor))


# --- Layer normalisation ---


def read_whole_rows(node: Linear | Mixture, _: Pass) -> Primitive | None:
    """A layer that reads some columns reads all, with weight zero for the others."""
    if node.x.base is None or isinstance(node.x.base, Source | Fixed) or len(node.x.base.shape) != 2:
        return None
    chosen = selection(node.x)
    if chosen is None or chosen.all_columns or node.epsilon is not None:
        return None
    x = whole(chosen.base).pick(whole(chosen.base).index[chosen.rows])
    if isinstance(node, Linear):
        return replace(node, x=x, weight=node.weight @ chosen.matrix)
    experts = tuple(Expert(e.w1 @ chosen.matrix, e.b1, e.w2, e.b2) for e in node.experts)
    return replace(node, x=x, gate_weight=node.gate_weight @ chosen.matrix, experts=experts)


def fold_norm(node: Linear | Mixture, _: Pass) -> Primitive | None:
    """W(g * norm(x) + c) + b = (W g)norm(x) + (Wc + b)."""
    norm = node.x.base
    if not isinstance(norm, Normalise) or node.epsilon is not None:
        return None
    chosen = selection(node.x)
    if chosen is None or not chosen.all_columns:
        return None

    def fold(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        return weight * norm.gamma, float32(bias + weight.astype(np.float64) @ norm.beta)

    changes: dict[str, Any] = {"x": node.x.substitute({norm: norm.x}), "epsilon": norm.epsilon}
    if isinstance(node, Linear):
        changes["weight"], changes["bias"] = fold(node.weight, node.bias)
    else:
        changes["gate_weight"], changes["gate_bias"] = fold(node.gate_weight, node.gate_bias)
        changes["experts"] = tuple(Expert(*fold(e.w1, e.b1), e.w2, e.b2) for e in node.experts)
    return replace(node, **changes)


def lone_norm(node: Normalise, _: Pass) -> Linear:
    return identity(node, node.x, weight=np.diag(node.gamma), bias=node.beta, epsilon=node.epsilon)


# --- Activations ---


def fuse_activation(node: Activate, at: Pass) -> Linear:
    before = producer(node.x, Linear)
    if before and at.only_here(before) and before.activation == "none" and before.residual is None:
        return replace(before, activation=node.activation)
    return identity(node, node.x, activation=node.activation)


# --- Learned tokens and positions ---


def fuse_constant(node: Add, at: Pass) -> Primitive | View | None:
    """Constants join the residual of the layer before, or its bias when alike for all tokens."""
    for view, other in ((node.a, node.b), (node.b, node.a)):
        value = constant(other)
        if value is None or view.base is None:
            continue
        before = layer(view)
        if before is None or not at.only_here(before) or not _is_fixed(before.residual):
            continue
        alike = before.residual is None and bool((value == value[0]).all())
        if alike and isinstance(before, Linear) and before.activation == "none":
            return replace(before, bias=before.bias + value[0])
        return _plus(before, value, node)
    return None


def _is_fixed(view: View | None) -> bool:
    return view is None or constant(view) is not None


def _value(view: View) -> Floats:
    value = constant(view)
    assert value is not None
    return value


def join_tokens(node: Primitive, at: Pass) -> Primitive:
    """Constant rows beside rows of the input or of a layer over it, e.g. a class token, become one layer."""

    def joined(view: View) -> View:
        if len(view.terms) < 2 or len(view.shape) != 2:
            return view
        key = (view.terms, view.index.tobytes(), view.shape)
        linear = at.once(key, lambda: _joined(view, node) or Opaque(out_shape=()))
        return whole(linear) if isinstance(linear, Linear) else view

    return node.with_views(joined)


def _joined(view: View, node: Primitive) -> Linear | None:
    live = [i for i, (base, _) in enumerate(view.terms) if not isinstance(base, Fixed)]
    if len(live) != 1:
        return None
    base, factor = view.terms[live[0]]
    start = sum(other.size for other, _ in view.terms[: live[0]])
    index = view.index - start
    inside = (index >= 0) & (index < base.size)
    here = inside.all(axis=1)
    fixed = _fixed_part(view)
    if isinstance(base, Source):
        return selecting(view, node)
    if not isinstance(base, Linear) or factor != 1.0 or (inside.any(axis=1) != here).any():
        return None
    rows = np.where(here, index[:, 0] // base.shape[1], -1)
    if not np.array_equal(index[here], whole(base).index[rows[here]]):
        return None
    gathered = _gathered(base, rows)
    if gathered is None or fixed is None:
        return None
    return _plus(gathered, fixed, node)


def _gathered(old: Linear, rows: Indices) -> Linear | None:
    """Any rows of a layer over the input, in any order; row -1 is zero."""
    x = _gathered_operand(old.x, rows)
    if x is None or not _is_fixed(old.residual):
        return None
    added = np.zeros(old.shape, np.float32) if old.residual is None else _value(old.residual)
    empty = -ACTIVATIONS[old.activation](old.bias)  # what a zero token would give
    residual = float32(np.where(rows[:, None] >= 0, added[rows], empty))
    return _plus(replace(old, x=x, residual=None), residual, old)


def _gathered_operand(x: View, rows: Indices) -> View | None:
    if isinstance(x.base, Source):
        return x.pick(np.where(rows[:, None] >= 0, x.index[rows], -1))
    chosen = selection(x) if isinstance(x.base, Linear) else None
    if not isinstance(x.base, Linear) or chosen is None or not chosen.all_columns:
        return None
    before = _gathered(x.base, np.where(rows >= 0, chosen.rows[rows], -1))
    return None if before is None else whole(before)


def _plus(before: Layer, value: Floats, node: Primitive) -> Layer:
    total = value if before.residual is None else float32(value + _value(before.residual))
    return replace(before, residual=whole(Fixed(origin=node.origin, value=total)))


# --- Residual connections ---


def fuse_residual(node: Add, at: Pass) -> Linear | Mixture:
    """A sum joins the layer that makes one side of it, or a layer that copies one side."""
    for view, other in ((node.b, node.a), (node.a, node.b)):
        before = layer(view)
        if before and at.only_here(before) and before.residual is None:
            return replace(before, residual=other)
    first, second = (node.a, node.b) if constant(node.b) is not None or node.b.is_whole() else (node.b, node.a)
    return identity(node, first, residual=second)


# --- Operands the machine can read ---


def is_opaque(view: View) -> bool:
    """Depends on what is reported already."""
    return any(isinstance(base, Opaque) for base, _ in view.terms)


def as_node(view: View, reader: Primitive, at: Pass) -> View:
    """The view as the whole result of one operation."""
    if view.is_whole() or isinstance(view.base, Source):
        return view
    if is_opaque(view):
        return whole(Opaque(origin=reader.origin, out_shape=view.shape))
    value = constant(view)
    if value is not None:
        return whole(Fixed(origin=reader.origin, value=value))
    key = (view.terms, view.shape, view.index.tobytes())
    return whole(at.once(key, lambda: selecting(view, reader)))


def settle_linear(node: Linear, at: Pass) -> Linear:
    """Reads consecutive rows of one operation; the residual is one operation."""
    residual = None if node.residual is None else as_node(node.residual, node, at)
    x = node.x
    chosen = selection(x) if x.base else None
    readable = isinstance(x.base, Source) or (chosen and chosen.block and chosen.all_columns)
    if not readable:
        x = as_node(x, node, at)
    return node if x is node.x and residual is node.residual else replace(node, x=x, residual=residual)


def settle_mixture(node: Mixture, at: Pass) -> Mixture:
    residual = None if node.residual is None else as_node(node.residual, node, at)
    return replace(node, x=as_node(node.x, node, at), residual=residual)


def settle_attend(node: Attend, at: Pass) -> Attend:
    """Each head must be consecutive columns of all rows of one operation."""
    return node.with_views(lambda view: _heads_as_columns(view, node, at))


def _heads_as_columns(view: View, node: Attend, at: Pass) -> View:
    if first_columns(view) is not None:
        return view
    heads, tokens, features = view.shape
    side_by_side = view.pick(view.index.transpose(1, 0, 2).reshape(tokens, heads * features))
    result = as_node(side_by_side, node, at)
    if isinstance(result.base, Source):
        result = whole(identity(node, result))
    return result.pick(result.index.reshape(tokens, heads, features).transpose(1, 0, 2))


def first_columns(view: View) -> tuple[int, ...] | None:
    """The column at which each head starts, if it is consecutive columns of all rows."""
    _, tokens, features = view.shape
    base = view.base
    if base is None or isinstance(base, Source) or len(base.shape) != 2 or base.shape[0] != tokens:
        return None
    columns = view.index[:, 0, 0]
    rows = np.arange(tokens)[:, None] * base.shape[1] + np.arange(features)
    good = columns.max() + features <= base.shape[1] and columns.min() >= 0
    same = np.array_equal(view.index, columns[:, None, None] + rows)
    return tuple(int(column) for column in columns) if good and same and view.terms[0][1] == 1.0 else None


def refuse(text: str, hint: str) -> Rule:
    def rule(node: Primitive, _: Pass) -> Primitive:
        if any(is_opaque(view) for view in node.views):
            return Opaque(origin=node.origin, out_shape=node.shape)
        raise UnsupportedError(text, hint)

    return rule


# The pipeline: (name, rules). Operations are gone once a pass turned all of their kind into others.
PASSES: tuple[tuple[str, Mapping[type[Primitive], Rule]], ...] = (
    # First, while scores are still a product under a softmax.
    ("attention", {Product: find_attention}),
    # Images normalised in forward cost nothing; before scales, which would make them a layer.
    ("affine input", {Linear: fold_affine_input}),
    # Learned and constant factors vanish in weights; before norms, so that none stands between norm and layer.
    ("scales", {Scale: fold_scale}),
    # Layers that read some columns read all; before norms, which need the whole token.
    ("columns", {Linear: read_whole_rows, Mixture: read_whole_rows}),
    # Norms become part of the layers that read them ...
    ("norms", {Linear: fold_norm, Mixture: fold_norm}),
    # ... and a layer of their own where anything else does.
    ("lone norms", {Normalise: lone_norm}),
    # Before residuals: a layer applies its activation first.
    ("activations", {Activate: fuse_activation}),
    # Positions added to patches, so that a class token can join what is one layer by now.
    ("constants", {Add: fuse_constant}),
    # Class tokens join the layer over the input, ...
    ("tokens", dict.fromkeys((Linear, Mixture, Add, Attend), join_tokens)),
    # ... and positions added after them its residual.
    ("constants of joined tokens", {Add: fuse_constant}),
    # The last operation that is not canonical.
    ("residuals", {Add: fuse_residual}),
    # What is left that no pass could use.
    (
        "leftovers",
        {
            Product: refuse("multiplies two tensors outside of attention", ATTENTION_FORMS),
            Softmax: refuse("is a softmax outside of attention", ATTENTION_FORMS),
        },
    ),
    # Operands by rows and columns; last, because it inserts layers that select them.
    ("operands", {Linear: settle_linear, Mixture: settle_mixture, Attend: settle_attend}),
)


def rewrite(results: Mapping[str, View]) -> tuple[dict[str, View], list[Problem]]:
    """All passes over the named results of one task."""
    names, views = list(results), list(results.values())
    problems: list[Problem] = []
    for _, rules in PASSES:
        views = Pass(rules, problems).run(views)
    views = [_settle_result(view, problems) for view in views]
    return dict(zip(names, views, strict=True)), problems


def _settle_result(view: View, problems: list[Problem]) -> View:
    """A result may arrange one operation's elements freely; several operations must first become one."""
    base = view.terms[0][0]
    if is_opaque(view) or (view.base and not isinstance(base, Fixed) and view.index.min() >= 0):
        return view
    if constant(view) is not None:
        text = "is returned, but does not depend on the input"
        problems.append(Problem(base.origin, text, "return only what the model computes from its input"))
        return view
    try:
        rows = view.reshape(-1, view.shape[-1] if view.shape else 1)
        return as_node(rows, Opaque(origin=base.origin, out_shape=()), Pass({}, problems)).reshape(*view.shape)
    except UnsupportedError as refusal:
        problems.append(Problem(base.origin, refusal.text, refusal.hint))
        return view


# --- Into the canonical graph ---


class Pool:
    """One array for equal contents, so that what tasks share stays shared after folding."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[bytes, tuple[int, ...]], Floats] = {}

    def __call__(self, array: Floats) -> Floats:
        array = float32(array)
        digest = blake2b(array.data, digest_size=16).digest()
        return self.arrays.setdefault((digest, array.shape), array)

    def expert(self, expert: Expert) -> Expert:
        return Expert(self(expert.w1), self(expert.b1), self(expert.w2), self(expert.b2))


class Lowering:
    """One task's rewritten operations, as canonical nodes with unique names."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.nodes: dict[object, Node] = {}
        self.names: Counter[str] = Counter()

    def graph(self, task: str, results: Mapping[str, View]) -> Graph:
        for base in in_order(list(results.values())):
            if not isinstance(base, Source):
                self.node(whole(base))
        return Graph(task, tuple(self._output(name, view) for name, view in results.items()))

    def _output(self, name: str, view: View) -> nodes.Output:
        if not isinstance(view.base, Source):
            return nodes.Output(name=name, x=self.node(view), index=view.index)
        x = self.node(view.reshape(-1, view.shape[-1] if view.shape else 1))
        return nodes.Output(name=name, x=x, index=np.arange(view.index.size).reshape(view.shape))

    def node(self, view: View) -> Node:
        """The canonical node of a settled operand."""
        base = view.base
        assert base is not None, "settled operands come from one operation"
        key: object = (base, view.shape, view.index.tobytes()) if isinstance(base, Source) else base
        if key not in self.nodes:
            self.nodes[key] = LOWER[type(base)](self, base, view)
        return self.nodes[key]

    def name(self, base: Primitive) -> dict[str, str]:
        """Inputs and outputs have names of their own."""
        name = base.origin.name or base.origin.op or type(base).__name__.lower()
        self.names[name] += 1
        unique = name if self.names[name] == 1 else f"{name}_{self.names[name] - 1}"
        return {"name": unique, "source": base.origin.where}

    def optional(self, view: View | None) -> Node | None:
        return None if view is None else self.node(view)


def _lower_source(_: Lowering, base: Source, view: View) -> Node:
    return nodes.Input(name=base.name, index=np.ascontiguousarray(view.index), user_shape=base.user_shape)


def _lower_fixed(at: Lowering, base: Fixed, _: View) -> Node:
    return nodes.Constant(value=at.pool(base.value), **at.name(base))


def _lower_linear(at: Lowering, base: Linear, _: View) -> Node:
    chosen = None if isinstance(base.x.base, Source) else selection(base.x)
    name = at.name(base)  # before its operands take theirs
    return nodes.Matmul(
        x=at.node(base.x),
        weight=at.pool(base.weight),
        bias=at.pool(base.bias),
        epsilon=base.epsilon,
        activation=base.activation,
        residual=at.optional(base.residual),
        rows=(chosen and chosen.block) or (0, base.shape[0]),
        **name,
    )


def _lower_mixture(at: Lowering, base: Mixture, _: View) -> Node:
    return nodes.Moe(
        x=at.node(base.x),
        gate_weight=at.pool(base.gate_weight),
        gate_bias=at.pool(base.gate_bias),
        experts=tuple(at.pool.expert(expert) for expert in base.experts),
        activation=base.activation,
        top_k=base.top_k,
        scoring=base.scoring,
        epsilon=base.epsilon,
        residual=at.optional(base.residual),
        **at.name(base),
    )


def _lower_attend(at: Lowering, base: Attend, _: View) -> Node:
    return nodes.Attention(
        q=at.node(base.q),
        k=at.node(base.k),
        v=at.node(base.v),
        q_columns=first_columns(base.q) or (),
        k_columns=first_columns(base.k) or (),
        v_columns=first_columns(base.v) or (),
        head_dim=base.q.shape[2],
        value_dim=base.v.shape[2],
        scale=base.scale,
        **at.name(base),
    )


LOWER: Mapping[type[Primitive], Callable[[Lowering, Any, View], Node]] = {
    Source: _lower_source,
    Fixed: _lower_fixed,
    Linear: _lower_linear,
    Mixture: _lower_mixture,
    Attend: _lower_attend,
}
