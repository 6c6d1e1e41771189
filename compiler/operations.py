"""What each operation of torch means in terms of primitives and views: `OPERATIONS`, a table.

A handler gets the place in the user's model and the operation's arguments by name, of which those that depend
on the inputs are views. It returns a view, or a list of them, or raises `UnsupportedError`.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from patchloom.compiler import moe
from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.graph import Indices
from patchloom.compiler.primitive import (
    Activate,
    Add,
    Attend,
    Fixed,
    Linear,
    Mixture,
    Normalise,
    Origin,
    Primitive,
    Product,
    Scale,
    Softmax,
    Source,
    UnsupportedError,
    View,
    common_terms,
    float32,
    whole,
)
from patchloom.compiler.rewrite import ATTENTION_FORMS, attended, selection, without_factor

Args = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """Where an operation stands, and the recognised mixtures of experts of its model."""

    origin: Origin
    layers: Sequence[moe.Layer]

    def view(self, value: View | Tensor) -> View:
        if isinstance(value, View):
            return value
        return whole(Fixed(origin=self.origin, value=float32(value.detach())))


def operation_name(target: Any) -> str:
    """Without the overload, e.g. aten.add."""
    return str(target).rpartition(".")[0] if isinstance(target, OpOverload) else str(target)


def parameters_of(target: Any) -> list[Any]:
    return list(target._schema.arguments) if isinstance(target, OpOverload) else []


def arguments_of(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Args:
    """By the names of the operation's schema, with its defaults."""
    parameters = parameters_of(target)
    bound = {parameter.name: parameter.default_value for parameter in parameters}
    bound.update(zip((parameter.name for parameter in parameters), args, strict=False))
    bound.update(kwargs)
    return {**bound, "target": target}


def refuse(_: Site, a: Args) -> Any:
    raise UnsupportedError("is not supported", hint_for(operation_name(a["target"])))


HINTS = (
    (
        r"silu|sigmoid|tanh|elu|mish|softplus|hardswish|hardsigmoid|relu6|prelu|hardtanh|erf",
        f"supported activations are {' and '.join(row.title for row in ACTIVATIONS.values() if row.forms)}",
    ),
    (r"batch_norm|group_norm|instance_norm", "use LayerNorm, or fold the trained normalisation into the layer before"),
    (r"rms_norm|rsqrt|var|std|pow|sqrt", "supported normalisation is torch.nn.LayerNorm over the last dimension"),
    (r"upsample|interpolate|grid_sampl", "return the map as it is and interpolate it after the accelerator"),
    (r"pool|sum|amax|amin", "take a class token, or the mean over all tokens"),
    (r"masked_fill|tril|triu", f"attention has no masks: {ATTENTION_FORMS}"),
    (r"topk|sort|index_put|nonzero|scatter|gather|one_hot|where|masked|eq|ne|any|unbind_int", moe.HOW_TO_WRITE),
    (r"auxiliary", "a mixture-of-experts block's other results, e.g. a balancing loss, must stay unused"),
    (r"argmax|argmin", "return the scores and take the maximum after the accelerator"),
    (r"lstm|gru|rnn|fft|cumsum", "only feed-forward layers are supported"),
)


def hint_for(op: str) -> str:
    hints = (hint for pattern, hint in HINTS if re.search(pattern, op.rpartition(".")[2]))
    return next(hints, "see the list of supported operations in compiler/operations.py, OPERATIONS")


# --- Operations that only move elements ---


def keep(_: Site, a: Args) -> View:
    dtype = a.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise UnsupportedError(f"makes {dtype} of a float", "everything that depends on the inputs must stay float")
    return next(value for value in a.values() if isinstance(value, View))


def move(site: Site, a: Args) -> Any:
    """Run the same operation on the element numbers; constants that are joined take part as numbered ones."""
    target = a.pop("target")
    joins = isinstance(a.get("tensors"), list | tuple)
    if joins:
        a["tensors"] = [site.view(part) for part in a["tensors"]]
    views = a["tensors"] if joins else [value for value in a.values() if isinstance(value, View)]
    if len(views) < sum(isinstance(leaf, View) for leaf in tree_leaves(a)):
        raise UnsupportedError("selects elements by what depends on the input", "select by position")
    terms, indices = common_terms(views)
    numbers = iter(torch.from_numpy(np.ascontiguousarray(index)) for index in indices)
    if joins:
        a["tensors"] = list(numbers)
    a = {name: next(numbers) if isinstance(value, View) else value for name, value in a.items()}
    result = call_by_schema(target, a)

    def view(part: Tensor) -> View:
        return View(terms, part.numpy()).pick(part.numpy().copy())

    return view(result) if isinstance(result, Tensor) else [view(part) for part in result]


def call_by_schema(target: Any, a: Args) -> Any:
    parameters = parameters_of(target)
    positional = [a[part.name] for part in parameters if not part.kwarg_only]
    return target(*positional, **{part.name: a[part.name] for part in parameters if part.kwarg_only})


def pad(_: Site, a: Args) -> View:
    """Zeros around: their element number is -1."""
    if a.get("value") not in (None, 0, 0.0) or a.get("mode", "constant") != "constant":
        raise UnsupportedError("pads with something other than zero", "pad with zeros")
    view: View = a["self"] if "self" in a else a["input"]
    padded = torch.constant_pad_nd(torch.from_numpy(np.ascontiguousarray(view.index)), a["pad"], -1)
    return view.pick(padded.numpy())


def enlarge(_: Site, a: Args) -> View:
    """Nearest-neighbour interpolation repeats elements."""
    target = a.pop("target")
    name, view = next((name, value) for name, value in a.items() if isinstance(value, View))
    a[name] = torch.from_numpy(view.index.astype(np.float64))  # exact: element numbers stay far below 2**53
    return view.pick(call_by_schema(target, a).numpy().astype(np.int64))


# --- Elementwise operations ---


def same_layout(views: Sequence[View]) -> tuple[list[View], Callable[[Primitive], View]]:
    """Operands of one shape as matrices, laid out as the rows and columns that one of them is of its operation."""
    shape = views[0].shape
    for view in views:
        order = grid(view)
        if order is not None:
            matrices = [part.pick(part.index.reshape(-1)[order]) for part in views]
            place = np.empty(order.size, np.int64)
            place[order.reshape(-1)] = np.arange(order.size)
            return matrices, partial(_seen_through, place.reshape(shape))
    matrices = [view.reshape(-1, shape[-1] if shape else 1) for view in views]
    return matrices, lambda made: whole(made).reshape(*shape)


def grid(view: View) -> Indices | None:
    """Which element of the view is where in the rows and columns of the operation, if it is each of them once."""
    base = view.base
    if base is None or isinstance(base, Source | Fixed) or len(base.shape) != 2:
        return None
    order = np.argsort(view.index, axis=None, kind="stable")
    rows, columns = np.divmod(view.index.reshape(-1)[order], base.shape[1])
    height = len(np.unique(rows))
    if rows[0] < 0 or order.size % height:
        return None
    rows, columns = rows.reshape(height, -1), columns.reshape(height, -1)
    regular = (rows == rows[:, :1]).all() and (columns == columns[:1]).all() and (np.diff(columns[0]) > 0).all()
    return order.reshape(height, -1) if regular else None


def _seen_through(index: Indices, made: Primitive) -> View:
    return View(((made, 1.0),), index)


def without_factors(view: View) -> tuple[View, float]:
    """The view without the factor of its terms; factors that differ are multiplied in first."""
    uniform = without_factor(view)
    if uniform:
        return uniform
    scaled = {base: multiplied(base, factor) for base, factor in view.terms if factor != 1.0}
    return View(tuple((base, 1.0) for base, _ in view.terms), view.index).substitute(scaled), 1.0


def multiplied(base: Primitive, factor: float) -> View:
    if isinstance(base, Fixed):
        return whole(Fixed(origin=base.origin, value=float32(base.value * factor)))
    return whole(Scale(origin=base.origin, x=whole(base), factor=np.full(base.shape, factor, np.float32)))


def plain(view: View) -> View:
    view, factor = without_factors(view)
    if factor == 1.0:
        return view
    return view.substitute({base: multiplied(base, factor) for base, _ in view.terms})


def add(site: Site, a: Args) -> View:
    return _sum(site, a["self"], a["other"], 1.0, float(a.get("alpha", 1)))


def subtract(site: Site, a: Args) -> View:
    return _sum(site, a["self"], a["other"], 1.0, -float(a.get("alpha", 1)))


def subtract_from(site: Site, a: Args) -> View:
    return _sum(site, a["self"], a["other"], -float(a.get("alpha", 1)), 1.0)


def _sum(site: Site, first: Any, second: Any, times: float, second_times: float) -> View:
    views = [site.view(part if isinstance(part, View) else torch.as_tensor(part)) for part in (first, second)]
    shape = np.broadcast_shapes(*(view.shape for view in views))
    views = [plain(view.scaled(by)) for view, by in zip(views, (times, second_times), strict=True)]
    (x, y), arrange = same_layout([view.pick(np.broadcast_to(view.index, shape)) for view in views])
    return arrange(Add(origin=site.origin, a=x, b=y))


def multiply(site: Site, a: Args) -> View:
    first, second = a["self"], a["other"]
    if isinstance(first, View) and isinstance(second, View):
        raise UnsupportedError("multiplies two tensors that depend on the input", "this is supported in attention only")
    view, factor = (first, second) if isinstance(first, View) else (second, first)
    return _times(site, view, torch.as_tensor(factor))


def divide(site: Site, a: Args) -> View:
    if isinstance(a["other"], View) or a.get("rounding_mode"):
        raise UnsupportedError("divides by a tensor that depends on the input, or rounds", "multiply by constants only")
    return _times(site, a["self"], torch.as_tensor(a["other"]).double().reciprocal())


def negate(_: Site, a: Args) -> View:
    view: View = a["self"]
    return view.scaled(-1.0)


def _times(site: Site, view: View, factor: Tensor) -> View:
    if factor.numel() == 1:
        shape = np.broadcast_shapes(view.shape, tuple(factor.shape))
        return view.pick(np.broadcast_to(view.index, shape)).scaled(float(factor))
    constant = site.view(factor)
    shape = np.broadcast_shapes(view.shape, constant.shape)
    view, by = without_factors(view)
    operands = [part.pick(np.broadcast_to(part.index, shape)) for part in (view, constant)]
    (x, y), arrange = same_layout(operands)
    [(fixed, _)] = y.terms
    assert isinstance(fixed, Fixed)
    return arrange(Scale(origin=site.origin, x=x, factor=fixed.value.reshape(-1)[y.index])).scaled(by)


def activation(site: Site, a: Args) -> View:
    operation = operation_name(a["target"])
    forms = ((row.name, form) for row in ACTIVATIONS.values() for form in row.forms if form.operation == operation)
    found = [(name, form) for name, form in forms if form.arguments.items() <= a.items()]
    if not found:
        refuse(site, a)
    name, form = found[0]
    if form.warning:
        warnings.warn(f"{site.origin}: {form.warning}", stacklevel=2)
    view = plain(a["self"])
    base = view.base
    if base is not None and len(base.shape) == 2 and not isinstance(base, Source | Fixed):
        made = Activate(origin=site.origin, x=whole(base), activation=name)  # elementwise: of all, then viewed
        return View(((made, 1.0),), view.index)
    (x,), arrange = same_layout([view])
    return arrange(Activate(origin=site.origin, x=x, activation=name))


# --- Layers ---


def apply_linear(site: Site, x: View, weight: Tensor, bias: Tensor | None) -> View:
    """Along the last dimension of x; weight is outputs x inputs."""
    x, factor = without_factors(x)
    made = Linear(
        origin=site.origin,
        x=x.reshape(-1, x.shape[-1]),
        weight=float32(weight.double() * factor),
        bias=np.zeros(len(weight), np.float32) if bias is None else float32(bias),
    )
    return whole(made).reshape(*x.shape[:-1], len(weight))


def need_constants(*values: Any) -> None:
    if any(isinstance(value, View) for value in values):
        raise UnsupportedError("has weights that depend on the input", "weights and biases must be learned constants")


def linear(site: Site, a: Args) -> View:
    need_constants(a["weight"], a["bias"])
    return apply_linear(site, a["input"], a["weight"], a["bias"])


def matmul(site: Site, a: Args) -> View:
    first, second = (a[name] for name in ("self", "mat2" if "mat2" in a else "other"))
    return product(site, first, second)


def product(site: Site, first: View | Tensor, second: View | Tensor) -> View:
    if isinstance(first, View) and isinstance(second, View):
        return batched_product(site, first, second)
    if isinstance(first, View) and isinstance(second, Tensor):
        while second.dim() > 2 and second.shape[0] == 1:
            second = second[0]
        if second.dim() == 2:
            return apply_linear(site, first, second.T, None)
    if isinstance(second, View) and isinstance(first, Tensor) and first.dim() == 2 and len(second.shape) >= 2:
        result = apply_linear(site, second.pick(second.index.swapaxes(-1, -2)), first, None)
        return result.pick(result.index.swapaxes(-1, -2))
    raise UnsupportedError("multiplies by a constant that is not a matrix", "use one weight matrix for all tokens")


def batched_product(site: Site, first: View, second: View) -> View:
    if len(first.shape) < 2 or len(second.shape) < 2:
        raise UnsupportedError("multiplies vectors that depend on the input", "this is supported in attention only")
    batch = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    count = int(np.prod(batch))
    a, b = (
        view.pick(np.broadcast_to(view.index, (*batch, *view.shape[-2:])).reshape(count, *view.shape[-2:]))
        for view in (first, second)
    )
    made = Product(origin=site.origin, a=a, b=b)
    return whole(made).reshape(*batch, *made.shape[1:])


def addmm(site: Site, a: Args) -> View:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise UnsupportedError("has beta or alpha", "write the factors as multiplications")
    first, second = (a[name] for name in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    result = product(site, first, second)
    bias = a["self"]
    made = result.base
    if isinstance(made, Linear) and isinstance(bias, Tensor) and bias.numel() == made.shape[1]:
        return View(((_with_bias(made, bias), 1.0),), result.index)
    return _sum(site, result, bias, 1.0, 1.0)


def _with_bias(made: Linear, bias: Tensor) -> Linear:
    return Linear(origin=made.origin, x=made.x, weight=made.weight, bias=float32(bias).reshape(-1))


def einsum(site: Site, a: Args) -> View:
    """Of two operands without repeated letters: a matmul of rearranged operands."""
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    inputs, _, output = equation.partition("->")
    letters = inputs.split(",")
    if len(letters) != 2 or "." in equation or not output or any(len(set(part)) < len(part) for part in letters):
        raise UnsupportedError(
            f"has the form '{equation}'", "name two operands, each letter once in an operand, and a result"
        )
    left, right = letters
    batch = [c for c in left if c in right and c in output]
    summed = [c for c in left if c in right and c not in output]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    sizes = {c: n for part, x in zip(letters, operands, strict=True) for c, n in zip(part, x.shape, strict=True)}
    x = _arranged(operands[0], left, batch, rows, summed)
    y = _arranged(operands[1], right, batch, summed, columns)
    if isinstance(y, Tensor) and y.dim() == 3 and y.shape[0] == 1:
        y = y[0]
    result = product(site, x, y)
    order = [*batch, *rows, *columns]
    shaped = result.reshape(*(sizes[c] for c in order))
    return shaped.pick(shaped.index.transpose([order.index(c) for c in output]))


def _arranged(x: View | Tensor, letters: str, *groups: list[str]) -> Any:
    index = x.index if isinstance(x, View) else x.detach().numpy()
    flat = index.transpose([letters.index(c) for group in groups for c in group])
    sizes = [int(np.prod([index.shape[letters.index(c)] for c in group])) for group in groups]
    return x.pick(flat.reshape(sizes)) if isinstance(x, View) else torch.from_numpy(flat.reshape(sizes).copy())


def convolution(site: Site, a: Args) -> View:
    """Each output position is a token: the patch under the kernel times the weights."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    space = weight.dim() - 2
    stride, padding, dilation = (_per_axis(a[name], space) for name in ("stride", "padding", "dilation"))
    if a["groups"] != 1 or set(dilation) != {1} or a.get("transposed"):
        raise UnsupportedError(
            f"is a convolution with groups {a['groups']}, dilation {dilation}",
            "supported is the patch embedding: groups 1, dilation 1, on the model's input",
        )
    batched = x if len(x.shape) == space + 2 else x.reshape(1, *x.shape)
    edges = [(0, 0), (0, 0), *((int(p), int(p)) for p in padding)]
    padded = np.pad(batched.index, edges, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=tuple(range(2, 2 + space)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    positions = windows.shape[2 : 2 + space]  # windows: batch, channels, positions, kernel
    patches = np.moveaxis(windows, 1, 1 + space).reshape(len(padded), *positions, -1)
    result = apply_linear(site, batched.pick(patches), weight.reshape(len(weight), -1), bias)
    moved = result.pick(np.moveaxis(result.index, -1, 1))
    return moved if batched is x else moved.reshape(*moved.shape[1:])


def _per_axis(value: Any, space: int) -> tuple[int, ...]:
    if isinstance(value, str):
        if value != "valid":
            raise UnsupportedError(f"pads '{value}'", "give the padding as numbers")
        value = 0
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * space if len(values) == 1 else values


def transposed_convolution(site: Site, a: Args) -> View:
    """With kernel == stride, each token becomes one patch: a matmul whose result is rearranged."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    kernel = tuple(weight.shape[2:])
    space = len(kernel)
    others = [*_per_axis(a["padding"], space), *_per_axis(a["output_padding"], space)]
    if _per_axis(a["stride"], space) != kernel or any(others) or a["groups"] != 1 or len(x.shape) != space + 2:
        raise UnsupportedError(
            "is a transposed convolution whose patches overlap or are padded",
            "supported are kernel == stride, padding 0, groups 1",
        )
    flat = weight.reshape(len(weight), -1).T
    wide = None if bias is None else bias.repeat_interleave(int(np.prod(kernel)))
    result = apply_linear(site, x.pick(np.moveaxis(x.index, 1, -1)), flat, wide)
    batch, *positions, _ = result.shape
    parts = result.index.reshape(batch, *positions, weight.shape[1], *kernel)
    axes = [0, 1 + space, *(axis for i in range(space) for axis in (1 + i, 2 + space + i))]
    sizes = [n * k for n, k in zip(positions, kernel, strict=True)]
    return result.pick(parts.transpose(axes).reshape(batch, weight.shape[1], *sizes))


def layer_norm(site: Site, a: Args) -> View:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    features = x.shape[-1]
    if list(a["normalized_shape"]) != [features]:
        raise UnsupportedError(f"normalises over {a['normalized_shape']}", "normalise over the last dimension only")
    x, factor = without_factors(x)
    made = Normalise(
        origin=site.origin,
        x=x.reshape(-1, features),
        gamma=float32(torch.ones(features) if weight is None else weight) * np.float32(np.sign(factor)),
        beta=float32(torch.zeros(features) if bias is None else bias),
        epsilon=float(a["eps"]) / factor**2,  # normalising f * x
    )
    return whole(made).reshape(*x.shape)


def softmax(site: Site, a: Args) -> View:
    view: View = a["self"]
    last = view.pick(np.moveaxis(view.index, a["dim"], -1))
    result = whole(Softmax(origin=site.origin, x=last))
    return result.pick(np.moveaxis(result.index, -1, a["dim"]))


def attention(site: Site, a: Args) -> View:
    query, key, value = (a[name] for name in ("query", "key", "value"))
    if a["attn_mask"] is not None or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError(
            "has a mask, is causal or has dropout", "supported is attention of every token to every token"
        )
    need = [part for part in (query, key, value) if not isinstance(part, View)]
    if need or a.get("enable_gqa") or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise UnsupportedError(
            "has keys or values of other heads than its queries", "give each head its own keys and values"
        )
    (q, by_q), (k, by_k), (v, by_v) = (without_factors(view) for view in (query, key, value))
    q, k, v = (view.reshape(-1, *view.shape[-2:]) for view in (q, k, v))
    scale = query.shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
    made = Attend(origin=site.origin, q=q, k=k, v=v, scale=scale * by_q * by_k)
    return attended(made).scaled(by_v).reshape(*query.shape[:-1], value.shape[-1])


def mean(site: Site, a: Args) -> View:
    return reduced(site, a, average=True)


def total(site: Site, a: Args) -> View:
    return reduced(site, a, average=False)


def reduced(site: Site, a: Args, *, average: bool) -> View:
    """Mean or sum over some dimensions."""
    view: View = a["self"]
    rank = len(view.shape)
    pooling = "output_size" in a
    if pooling and list(a["output_size"]) != [1, 1]:
        raise UnsupportedError("pools to more than one position", "pool to 1, or take a linear layer")
    axes = {rank - 2, rank - 1} if pooling else {axis % rank for axis in (a.get("dim") or range(rank))}
    order = sorted(range(rank), key=lambda axis: axis not in axes)
    parts = view.pick(view.index.transpose(order).reshape(-1, *(view.shape[axis] for axis in order[len(axes) :])))
    count = len(parts.index)
    if count <= FEW and selection(parts.reshape(count, -1)) is None:
        slices = [parts.pick(part) for part in parts.index]
        result = slices[0]
        for part in slices[1:]:
            result = _sum(site, result, part, 1.0, 1.0)
        result = result.scaled(1 / count if average else 1.0)
    else:
        result = token_mean(site, parts).scaled(1.0 if average else count)
    keep = pooling or a.get("keepdim")
    return result.reshape(*(1 if axis in axes else n for axis, n in enumerate(view.shape) if keep or axis not in axes))


def token_mean(site: Site, parts: View) -> View:
    """Attention with a query of zeros weighs all tokens alike."""
    view, factor = without_factors(parts)
    tokens = view.reshape(len(view.index), -1)
    features = tokens.shape[1]
    width = next(width for width in range(min(features, WIDEST_HEAD), 0, -1) if features % width == 0)
    zeros = np.zeros((width, features), np.float32)
    origin = replace(site.origin, name=f"{site.origin.name}.query")
    query = Linear(origin=origin, x=tokens.pick(tokens.index[:1]), weight=zeros, bias=zeros[:, 0])
    values = tokens.pick(tokens.index.reshape(-1, features // width, width).transpose(1, 0, 2))
    keys = tokens.pick(np.broadcast_to(values.index[:1], values.shape))
    q = whole(query).pick(np.broadcast_to(np.arange(width), (features // width, 1, width)))
    made = Attend(origin=site.origin, q=q, k=keys, v=values, scale=1.0)
    return whole(made).reshape(*parts.shape[1:]).scaled(factor)


def mixture(site: Site, a: Args) -> View:
    layer = site.layers[a["layer"]]
    x = plain(a["x"])
    made = Mixture(
        origin=site.origin,
        x=x.reshape(-1, x.shape[-1]),
        gate_weight=layer.gate_weight,
        gate_bias=layer.gate_bias,
        experts=layer.experts,
        activation=layer.activation,
        top_k=layer.top_k,
        scoring=layer.scoring,
    )
    return whole(made).reshape(*x.shape[:-1], a["features"])


WIDEST_HEAD = 64  # of the attention that a mean over tokens becomes
FEW = 8  # tensors that a sum adds one by one
Handler = Callable[[Site, Args], Any]


def table(handler: Handler, names: str, prefix: str = "aten.") -> dict[str, Handler]:
    return {prefix + name: handler for name in names.split()}


# Every supported operation.
OPERATIONS: dict[str, Handler] = {
    **table(keep, "clone contiguous detach alias lift_fresh_copy dropout feature_dropout _to_copy to type_as positive"),
    **table(
        move,
        "view _unsafe_view reshape view_as reshape_as flatten unflatten permute transpose t numpy_T mT swapaxes "
        "movedim moveaxis slice select narrow unsqueeze squeeze expand expand_as broadcast_to repeat tile "
        "split split_with_sizes chunk tensor_split unbind cat concat stack hstack vstack flip roll rot90 index_select "
        "index repeat_interleave unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal atleast_2d",
    ),
    **table(pad, "constant_pad_nd pad"),
    **table(enlarge, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **table(add, "add"),
    **table(subtract, "sub subtract"),
    **table(subtract_from, "rsub"),
    **table(multiply, "mul multiply"),
    **table(divide, "div divide true_divide"),
    **table(negate, "neg negative"),
    **{form.operation: activation for row in ACTIVATIONS.values() for form in row.forms},
    **table(linear, "linear"),
    **table(matmul, "matmul mm bmm"),
    **table(addmm, "addmm baddbmm"),
    **table(einsum, "einsum"),
    **table(convolution, "conv1d conv2d conv3d"),
    **table(transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **table(layer_norm, "layer_norm"),
    **table(softmax, "softmax _softmax"),
    **table(attention, "scaled_dot_product_attention"),
    **table(mean, "mean adaptive_avg_pool2d"),
    **table(total, "sum"),
    **table(mixture, "moe", prefix="patchloom."),
}
