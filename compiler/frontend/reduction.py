"""Means and sums over some dimensions."""

from dataclasses import replace

import numpy as np

from patchloom.compiler.frontend.elementwise import summed
from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Attention, Matmul
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.problems import UnsupportedError

WIDEST_HEAD = 64  # of the attention that a mean over tokens becomes
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
        raise UnsupportedError("pools to more than one position", "pool to 1, or take a linear layer")
    axes = {rank - 2, rank - 1} if pooling else {axis % rank for axis in (a.get("dim") or range(rank))}
    order = sorted(range(rank), key=lambda axis: axis not in axes)
    parts = view.pick(view.index.transpose(order).reshape(-1, *(view.shape[axis] for axis in order[len(axes) :])))
    count = len(parts.index)
    if count <= FEW and selection(parts.reshape(count, -1)) is None:
        slices = [parts.pick(part) for part in parts.index]
        result = slices[0]
        for part in slices[1:]:
            result = summed(site, result, part, 1.0, 1.0)
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
    query = Matmul(origin=origin, x=tokens.pick(tokens.index[:1]), weight=zeros, bias=zeros[:, 0])
    values = tokens.pick(tokens.index.reshape(-1, features // width, width).transpose(1, 0, 2))
    keys = tokens.pick(np.broadcast_to(values.index[:1], values.shape))
    q = whole(query).pick(np.broadcast_to(np.arange(width), (features // width, 1, width)))
    made = Attention(origin=site.origin, q=q, k=keys, v=values, scale=1.0)
    return whole(made).reshape(*parts.shape[1:]).scaled(factor)


ROWS: Rows = {
    **rows(mean, "mean adaptive_avg_pool2d", data="self", reads="dim keepdim dtype output_size"),
    **rows(total, "sum", data="self", reads="dim keepdim dtype"),
    **refused(
        "amax amin max min aminmax avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d "
        "max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool3d "
        "_adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
        "take a class token, or the mean over all tokens",
    ),
    **refused("argmax argmin", "return the scores and take the maximum after the accelerator"),
    **refused(
        "cumsum cumprod cummax cummin logcumsumexp",
        "no result may run along the tokens; a mixture of experts must not limit how many tokens an expert takes",
    ),
}
