"""Means and sums over some dimensions, and over some positions of a map."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from patchloom.compiler.frontend.elementwise import summed
from patchloom.compiler.frontend.site import ALL, Args, Rows, Site, call_by_schema, operation_name, refused, rows
from patchloom.compiler.node import View, float32, whole
from patchloom.compiler.nodes import Attention, Input, Matmul, Maximum, Mix
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.passes.views import grid
from patchloom.compiler.problems import UnsupportedError

WIDEST_HEAD = 64  # of the attention that a mean over tokens becomes
MOST_POSITIONS = 4096  # of a map that is pooled or interpolated
FEW = 8  # tensors that a sum adds one by one


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
        return resampled(site, a)
    dim = a.get("dim")
    axes = (
        {rank - 2, rank - 1}
        if pooling
        else {axis % rank for axis in ([dim] if isinstance(dim, int) else dim or range(rank))}
    )
    shape = _left(view, axes, keep=pooling or a.get("keepdim"))
    of_tokens = over_features(site, view, axes, average=average)
    if of_tokens is not None:
        return of_tokens.reshape(*shape)
    parts = _along(view, axes)
    count = len(parts.index)
    if count <= FEW and selection(parts.reshape(count, -1)) is None:
        slices = [parts.pick(part) for part in parts.index]
        result = slices[0]
        for part in slices[1:]:
            result = summed(site, result, part, 1.0, 1.0)
        result = result.scaled(1 / count if average else 1.0)
    else:
        result = token_mean(site, parts).scaled(1.0 if average else count)
    return result.reshape(*shape)


def largest(site: Site, a: Args) -> View:
    """By halves, which may overlap."""
    view: View = a["self"]
    rank = len(view.shape)
    axes = {axis % rank for axis in (a["dim"] or range(rank))}
    parts = _along(view, axes)
    while len(parts.index) > 1:
        half = -(-len(parts.index) // 2)
        few, many = parts.pick(parts.index[-half:]), parts.pick(parts.index[:half])
        features = parts.shape[-1] if len(parts.shape) > 1 else 1
        made = Maximum(origin=site.origin, x=tuple(part.reshape(-1, features) for part in (many, few)))
        parts = whole(made).reshape(half, *parts.shape[1:])
    return parts.reshape(*_left(view, axes, keep=a["keepdim"]))


def _along(view: View, axes: set[int]) -> View:
    """These axes as one, before the others."""
    order = sorted(range(len(view.shape)), key=lambda axis: axis not in axes)
    return view.pick(view.index.transpose(order).reshape(-1, *(view.shape[axis] for axis in order[len(axes) :])))


def _left(view: View, axes: set[int], *, keep: Any) -> list[int]:
    """The shape without these axes, or with one element along them."""
    return [1 if axis in axes else n for axis, n in enumerate(view.shape) if keep or axis not in axes]


def over_features(site: Site, view: View, axes: set[int], *, average: bool) -> View | None:
    """By a layer, where each result is of one token's features, and all tokens have results alike."""
    view, factor = without_factors(view)
    order, last = grid(view), len(view.shape) - len(axes)
    if isinstance(view.base, Input) and axes == set(range(last, len(view.shape))):
        order = np.arange(view.index.size).reshape(-1, int(np.prod(view.shape[last:])))
    if order is None:
        return None
    kept = [1 if axis in axes else n for axis, n in enumerate(view.shape)]
    results = np.broadcast_to(np.arange(np.prod(kept)).reshape(kept), view.shape).reshape(-1)[order]
    _, first, of = np.unique(results[0], return_index=True, return_inverse=True)
    if results[:, first].size != np.prod(kept) or (results[:, first][:, of] != results).any():
        return None
    weight = (of == np.arange(len(first))[:, None]) / (len(of) / len(first) if average else 1)
    x = view.pick(view.index.reshape(-1)[order])
    made = Matmul(origin=site.origin, x=x, weight=float32(weight), bias=np.zeros(len(first), np.float32))
    return View(((made, factor),), np.argsort(results[:, first].reshape(-1)).reshape(kept))


def token_mean(site: Site, parts: View) -> View:
    """Attention with a query of zeros weighs all tokens alike."""
    view, factor = without_factors(parts)
    tokens = view.reshape(len(view.index), -1)
    made = _alike(site, tokens.pick(tokens.index[:1]), tokens)
    return whole(made).reshape(*parts.shape[1:]).scaled(factor)


def spread(site: Site, row: View, tokens: View) -> View:
    """One row for each of the tokens: of all that there is to attend to, it is the mean."""
    view, factor = without_factors(row)
    return whole(_alike(site, tokens, view)).scaled(factor)


def _alike(site: Site, asking: View, tokens: View) -> Attention:
    """The mean over tokens, once for each row that asks."""
    features = tokens.shape[1]
    width = next(width for width in range(min(features, WIDEST_HEAD), 0, -1) if features % width == 0)
    zeros = np.zeros((width, asking.shape[1]), np.float32)
    origin = replace(site.origin, name=f"{site.origin.name}.query")
    query = Matmul(origin=origin, x=asking, weight=zeros, bias=np.zeros(width, np.float32))
    values = tokens.pick(tokens.index.reshape(-1, features // width, width).transpose(1, 0, 2))
    keys = tokens.pick(np.broadcast_to(values.index[:1], values.shape))
    q = whole(query).pick(np.broadcast_to(whole(query).index, (features // width, *query.shape)))
    return Attention(origin=site.origin, q=q, k=keys, v=values, scale=1.0)


def resampled(site: Site, a: Args) -> View:
    """A sum of each channel's positions with the same weights: what the operation makes of each position alone."""
    target, name = a["target"], "input" if "input" in a else "self"
    view, factor = without_factors(a[name])
    space = next(count for count in (1, 2, 3) if f"{count}d" in operation_name(target))
    outside, places = view.shape[:-space], view.shape[-space:]
    if math.prod(places) > MOST_POSITIONS:
        raise UnsupportedError(
            f"resamples {math.prod(places)} positions, more than {MOST_POSITIONS}",
            "resample smaller maps, or the input before",
        )
    alone = torch.eye(math.prod(places)).reshape(1, -1, *places)
    matrix, again = (call_by_schema(target, {**a, name: alone}) for _ in range(2))
    if not torch.equal(matrix, again):  # torch reads beyond its memory where a scale does not fit the sizes
        raise UnsupportedError("gives another result each time", "give a size, or a scale that fits it")
    positions = view.index.reshape(-1, alone.shape[1]).T
    made = Mix.of(view.pick(positions), float32(matrix.reshape(alone.shape[1], -1).T), origin=site.origin)
    result = whole(made)
    return result.pick(result.index.T.reshape(*outside, *matrix.shape[2:])).scaled(factor)


ROWS: Rows = {
    **rows(
        resampled,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d _adaptive_avg_pool2d "
        "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        data="self input",
        reads=ALL,
    ),
    **rows(mean, "mean adaptive_avg_pool2d", data="self", reads="dim keepdim dtype output_size"),
    **rows(total, "sum", data="self", reads="dim keepdim dtype"),
    **rows(largest, "amax", data="self", reads="dim keepdim"),
    **refused("amin min aminmax", "take the maximum of what has the opposite sign"),
    **refused("max", "amax gives values without their places"),
    **refused("argmax argmin", "return the scores and take the maximum after the accelerator"),
    **refused(
        "cumsum cumprod cummax cummin logcumsumexp",
        "no result may run along the tokens; a mixture of experts must not limit how many tokens an expert takes",
    ),
}
