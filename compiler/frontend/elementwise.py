"""Sums, products and functions of elements."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.activations import FUNCTIONS, Function
from patchloom.compiler.frontend.site import (
    ALL,
    Args,
    Handler,
    Row,
    Rows,
    Site,
    call_by_schema,
    operation_name,
    refused,
    rows,
)
from patchloom.compiler.node import Indices, Node, View, whole
from patchloom.compiler.nodes import Constant, Input, Maximum, captured
from patchloom.compiler.nodes.captured import Activate, Add, Multiply, Scale
from patchloom.compiler.passes.factors import by_element, plain, without_factors
from patchloom.compiler.passes.views import grid
from patchloom.compiler.problems import UnsupportedError

TITLES = [row.title for row in FUNCTIONS]
SUPPORTED = f"supported activations are {', '.join(TITLES[:-1])} and {TITLES[-1]}"


def same_layout(views: Sequence[View]) -> tuple[list[View], Callable[[Node], View]]:
    """Operands of one shape as matrices, laid out as the rows and columns that one of them is of its operation."""
    shape = views[0].shape
    for view in views:
        order = grid(view)
        if order is not None:
            matrices = [part.pick(part.index.reshape(-1)[order]) for part in views]
            return matrices, partial(_seen_through, np.argsort(order, axis=None).reshape(shape))
    matrices = [view.reshape(-1, shape[-1] if shape else 1) for view in views]
    return matrices, lambda made: whole(made).reshape(*shape)


def _seen_through(index: Indices, made: Node) -> View:
    return View(((made, 1.0),), index)


def add(site: Site, a: Args) -> View:
    return summed(site, a["self"], a["other"], 1.0, float(a.get("alpha", 1)))


def subtract(site: Site, a: Args) -> View:
    return summed(site, a["self"], a["other"], 1.0, -float(a.get("alpha", 1)))


def subtract_from(site: Site, a: Args) -> View:
    return summed(site, a["self"], a["other"], -float(a.get("alpha", 1)), 1.0)


def summed(site: Site, first: Any, second: Any, times: float, second_times: float) -> View:
    parts = [part if isinstance(part, View) else torch.as_tensor(part) for part in (first, second)]
    shape = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
    for part, other, by in ((parts[0], parts[1], times), (parts[1], parts[0], second_times)):
        if isinstance(part, View) and isinstance(other, Tensor) and not other.any():
            return part.pick(np.broadcast_to(part.index, shape)).scaled(by)
    views = [site.view(part) for part in parts]
    views = [plain(view.scaled(by)) for view, by in zip(views, (times, second_times), strict=True)]
    (x, y), arrange = same_layout([view.pick(np.broadcast_to(view.index, shape)) for view in views])
    return arrange(Add(origin=site.origin, a=x, b=y))


def multiply(site: Site, a: Args) -> View:
    return multiplied(site, a["self"], a["other"])


def multiplied(site: Site, first: Any, second: Any) -> View:
    if not isinstance(first, View):
        first, second = second, first
    if not isinstance(second, View):
        return times(site, first, torch.as_tensor(second))
    shape = np.broadcast_shapes(first.shape, second.shape)
    (one, by), (other, by_other) = without_factors(first), without_factors(second)
    (x, y), arrange = same_layout([view.pick(np.broadcast_to(view.index, shape)) for view in (one, other)])
    return arrange(Multiply(origin=site.origin, a=x, b=y)).scaled(by * by_other)


def divide(site: Site, a: Args) -> View:
    if a.get("rounding_mode"):
        raise UnsupportedError("rounds", "everything that depends on the inputs must stay as it is computed")
    if isinstance(a["other"], View):
        told = "divides by a tensor that depends on the input", "multiply by constants only"
        return multiplied(site, a["self"], function_of(site, a["other"], torch.reciprocal, *told))
    divisor = torch.as_tensor(a["other"]).double()
    if not divisor.all():
        raise UnsupportedError("divides by zero", "a constant divisor must not hold zeros")
    return times(site, a["self"], divisor.reciprocal())


def negate(_: Site, a: Args) -> View:
    view: View = a["self"]
    return view.scaled(-1.0)


def times(site: Site, view: View, factor: Tensor) -> View:
    shape = np.broadcast_shapes(view.shape, tuple(factor.shape))
    if bool((factor == factor.reshape(-1)[:1]).all()):
        return view.pick(np.broadcast_to(view.index, shape)).scaled(float(factor.reshape(-1)[0]))
    view, by = by_element(view.pick(np.broadcast_to(view.index, shape)))
    constant = site.view(factor.expand(shape) * torch.from_numpy(by))
    (x, y), arrange = same_layout([view, constant])
    [(fixed, _)] = y.terms
    assert isinstance(fixed, Constant)
    return arrange(Scale(origin=site.origin, x=x, factor=fixed.value.reshape(-1)[y.index]))


def activation(site: Site, a: Args) -> View:
    operation = operation_name(a["target"])
    forms = ((row.name, form) for row in FUNCTIONS for form in row.forms if form.operation == operation)
    found = [name for name, form in forms if form.fits(a)]
    if not found:
        other: View = function(SUPPORTED)(site, a)
        return other
    name = found[0]
    return of_elements(plain(a["self"]), lambda x: Activate(origin=site.origin, x=x, activation=name))


def leaky_relu(site: Site, a: Args) -> View:
    """A part of x, and the rest of what is positive; the slope may be one of each channel."""
    x, given = a["self"], a["weight"] if "weight" in a else a["negative_slope"]
    if not isinstance(x, View) or isinstance(given, View):
        raise UnsupportedError("has a slope that depends on the input", "slopes must be learned constants")
    slope = torch.as_tensor(given).double()
    if slope.dim() == 1 and len(slope) > 1:
        slope = slope.reshape(-1, *(1 for _ in x.shape[2:]))
    positive = of_elements(plain(x), lambda part: Activate(origin=site.origin, x=part, activation="relu"))
    if not slope.any():
        return positive
    return summed(site, times(site, x, slope), times(site, positive, 1 - slope), 1.0, 1.0)


def gated(site: Site, a: Args) -> View:
    """The first half times the sigmoid of the second."""
    view: View = a["self"]
    first, second = (view.pick(part) for part in np.split(view.index, 2, axis=a["dim"]))
    gate = of_elements(plain(second), lambda x: Activate(origin=site.origin, x=x, activation="sigmoid"))
    return multiplied(site, first, gate)


def add_product(site: Site, a: Args) -> View:
    first, second = a["tensor1"], a["tensor2"]
    fixed = not (isinstance(first, View) or isinstance(second, View))
    product = first * second if fixed else multiplied(site, first, second)
    return summed(site, a["self"], product, 1.0, float(a["value"]))


def between(site: Site, a: Args) -> View:
    """So far from the one to the other."""
    first, second, weight = a["self"], a["end"], a["weight"]
    if isinstance(weight, View):
        apart = summed(site, second, first, 1.0, -1.0)
        return summed(site, first, multiplied(site, apart, weight), 1.0, 1.0)
    weight = torch.as_tensor(weight).double()
    one, other = (times(site, site.view(part), by) for part, by in ((first, 1 - weight), (second, weight)))
    return summed(site, one, other, 1.0, 1.0)


def larger(site: Site, a: Args) -> View:
    """Of two tensors, element by element, or of one and a number."""
    if not (isinstance(a["self"], View) and isinstance(a["other"], View)):
        found: View = function(SUPPORTED)(site, a)
        return found
    shape = np.broadcast_shapes(a["self"].shape, a["other"].shape)
    views = [plain(view.pick(np.broadcast_to(view.index, shape))) for view in (a["self"], a["other"])]
    x, arrange = same_layout(views)
    return arrange(Maximum(origin=site.origin, x=tuple(x)))


def of_elements(view: View, make: Callable[[View], Node]) -> View:
    """Of all elements of an operation, then viewed; of those of several as they are."""
    base = view.base
    if base is not None and len(base.shape) == 2 and not isinstance(base, Input | Constant):
        return View(((make(whole(base).scaled(view.terms[0][1])), 1.0),), view.index)
    (x,), arrange = same_layout([view])
    return arrange(make(x))


def function_of(site: Site, view: View, apply: Function, text: str, hint: str) -> View:
    return of_elements(view, lambda x: captured.Function(origin=site.origin, x=x, apply=apply, text=text, hint=hint))


def function(hint: str) -> Handler:
    """Of single elements, by torch's own operation; others among its tensors must be one number."""

    def handler(site: Site, a: Args) -> View:
        [name, *more] = [name for name, value in a.items() if isinstance(value, View)]
        others = {other: value for other, value in a.items() if isinstance(value, Tensor)}
        if more or not all(bool((value == value.reshape(-1)[0]).all()) for value in others.values()):
            raise UnsupportedError("is not supported", hint)
        shape = np.broadcast_shapes(a[name].shape, *(tuple(value.shape) for value in others.values()))
        view: View = a[name].pick(np.broadcast_to(a[name].index, shape))
        given = {**a, **{other: value.reshape(-1)[0].double() for other, value in others.items()}}

        def apply(x: Tensor) -> Tensor:
            return cast(Tensor, call_by_schema(a["target"], {**given, name: x}))

        return function_of(site, view, apply, "is not supported", hint)

    return handler


ROWS: Rows = {
    **rows(add, "add", data="self other", reads="alpha"),
    **rows(subtract, "sub subtract", data="self other", reads="alpha"),
    **rows(subtract_from, "rsub", data="self other", reads="alpha"),
    **rows(multiply, "mul multiply", data="self other"),
    **rows(divide, "div divide true_divide", data="self other", reads="rounding_mode"),
    **rows(negate, "neg negative", data="self"),
    **rows(
        function(SUPPORTED),
        "silu sigmoid log_sigmoid tanh elu celu selu mish softplus hardswish hardsigmoid hardtanh hardshrink "
        "softshrink relu6 threshold erf clamp clamp_min clamp_max clip minimum "
        "abs exp exp2 log log2 log10 log1p expm1 square pow reciprocal sin cos atan asinh erfc logit "
        "round floor ceil trunc",
        data="self other min max weight exponent",
        reads=ALL,
    ),
    **rows(leaky_relu, "leaky_relu prelu _prelu_kernel", data="self weight", reads="negative_slope"),
    **rows(gated, "glu", data="self", reads="dim"),
    **rows(add_product, "addcmul", data="self tensor1 tensor2", reads="value"),
    **rows(between, "lerp", data="self end weight"),
    **rows(larger, "maximum", data="self other"),
    **refused("rrelu", SUPPORTED),
    **{
        form.operation: Row(activation, data=("self", *form.arguments), reads=ALL)
        for row in FUNCTIONS
        for form in row.forms
    },
}
