"""Convolutions: each position is a token, its patch a row of the operand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.frontend.linear import apply_linear, need_constants
from patchloom.compiler.frontend.reduction import MOST_POSITIONS
from patchloom.compiler.frontend.site import Args, Rows, Site, call_by_schema, operation_name, refused, rows
from patchloom.compiler.node import Indices, View, float32, whole
from patchloom.compiler.nodes import Constant, Maximum, Mix
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.passes.views import fixed_part
from patchloom.compiler.problems import UnsupportedError


def convolution(site: Site, a: Args) -> View:
    """Each output position is a token: the patch under the kernel times the weights."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    space = weight.dim() - 2
    stride, dilation = (_per_axis(a[name], space) for name in ("stride", "dilation"))
    weight = _ungrouped(weight, a["groups"])
    batched = _batched(x, space)
    reach = _reach(weight.shape[2:], dilation)
    windows = _windows(batched.index, reach, stride, dilation, _edges(a["padding"], reach))
    positions = windows.shape[2 : 2 + space]
    patches = np.moveaxis(windows, 1, 1 + space).reshape(len(windows), *positions, -1)
    result = apply_linear(site, batched.pick(patches), weight.reshape(len(weight), -1), bias)
    return _as_given(_channels_first(result), x, space)


def unfolded(_: Site, a: Args) -> View:
    """The patches themselves: batch, channels and kernel, positions."""
    x: View = a["self"]
    space = len(a["kernel_size"])
    names = ("kernel_size", "dilation", "padding", "stride")
    kernel, dilation, padding, stride = (_per_axis(a[name], space) for name in names)
    batched = _batched(x, space)
    windows = _windows(batched.index, _reach(kernel, dilation), stride, dilation, [(p, p) for p in padding])
    batch, channels, *positions = windows.shape[: 2 + space]
    patches = np.moveaxis(windows.reshape(batch, channels, math.prod(positions), -1), 2, 3)
    return _as_given(batched.pick(patches.reshape(batch, -1, math.prod(positions))), x, space)


def folded(site: Site, a: Args) -> View:
    """Patches back in their places: where they overlap, their sum, by what the operation makes of each element."""
    target, (view, factor) = a["target"], without_factors(a["self"])
    count, positions = math.prod(a["kernel_size"]), view.shape[-1]
    batched = _batched(view, 1)
    size = count * positions
    if size > MOST_POSITIONS:
        raise UnsupportedError(f"folds {size} elements, more than {MOST_POSITIONS}", "fold smaller maps")
    matrix = call_by_schema(target, {**a, "self": torch.eye(size).reshape(size, count, positions)}).reshape(size, -1)
    outside, sizes = (len(batched.index), batched.shape[1] // count), tuple(a["output_size"])
    elements = batched.index.reshape(-1, size)
    if int((matrix != 0).sum(0).max()) == 1:
        where = np.where(matrix.any(0).numpy(), elements[:, matrix.argmax(0).numpy()], -1)
        return _as_given(view.pick(where.reshape(*outside, *sizes)).scaled(factor), view, 1)
    made = whole(Mix.of(view.pick(elements.T), float32(matrix.T), origin=site.origin))
    return _as_given(made.pick(made.index.T.reshape(*outside, *sizes)).scaled(factor), view, 1)


def max_pooling(site: Site, a: Args) -> View:
    """The largest of the positions under the kernel; beyond the edge there is nothing, unlike a zero that x has."""
    x, space = a["self"], int(operation_name(a["target"])[-2])  # aten.max_pool2d
    x = _with_zeros(site, x)
    kernel, dilation, padding = (_per_axis(a[name], space) for name in ("kernel_size", "dilation", "padding"))
    stride = _per_axis(a["stride"] or kernel, space)
    batched = _batched(x, space)
    positions = call_by_schema(a["target"], {**a, "self": torch.zeros(x.shape)}).shape[-space:]
    reach, sizes = _reach(kernel, dilation), batched.shape[2:]
    ends = [(count - 1) * step + size + 1 for count, step, size in zip(positions, stride, reach, strict=True)]
    edges = [(p, max(end - p - size, 0)) for p, end, size in zip(padding, ends, sizes, strict=True)]
    windows = _windows(batched.index, reach, stride, dilation, edges)
    windows = windows[(slice(None), slice(None), *map(slice, positions))]
    taps = np.moveaxis(windows, 1, 1 + space).reshape(-1, windows.shape[1], math.prod(kernel))
    x_taps = tuple(batched.pick(taps[:, :, tap]) for tap in range(taps.shape[2]))
    made = Maximum(origin=site.origin, x=x_taps, pooled=True)
    return _as_given(_channels_first(whole(made).reshape(len(windows), *positions, -1)), x, space)


def _with_zeros(site: Site, x: View) -> View:
    """Its zeros as elements of a constant, and nothing in their place where it is minus infinity."""
    fixed = fixed_part(x)
    nothing = np.zeros(x.shape, bool) if fixed is None else np.isneginf(fixed)
    if (x.index < 0).any():
        zero = Constant(origin=site.origin, value=np.zeros((1, 1), np.float32))
        x = View((*x.terms, (zero, 1.0)), np.where(x.index < 0, sum(base.size for base, _ in x.terms), x.index))
    return x.pick(np.where(nothing, -1, x.index))


def _batched(x: View, space: int) -> View:
    return x if len(x.shape) == space + 2 else x.reshape(1, *x.shape)


def _as_given(result: View, x: View, space: int) -> View:
    """Without a batch, if x had none."""
    return result if len(x.shape) == space + 2 else result.reshape(*result.shape[1:])


def _channels_first(result: View) -> View:
    return result.pick(np.moveaxis(result.index, -1, 1))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """As of one group: zero for the channels of the others."""
    if groups == 1:
        return weight
    parts, (outputs, inputs) = weight.chunk(groups), weight.shape[:2]
    every = weight.new_zeros(outputs, inputs * groups, *weight.shape[2:])
    for group, part in enumerate(parts):
        every[group * len(part) : (group + 1) * len(part), group * inputs : (group + 1) * inputs] = part
    return every


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """From the first position under the kernel to the last one."""
    return [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]


def _windows(
    index: Indices,
    reach: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    edges: Sequence[tuple[int, int]],
) -> Indices:
    """Batch, channels, positions, kernel; -1 beyond the edge."""
    padded = np.pad(index, [(0, 0), (0, 0), *edges], constant_values=-1)
    axes = tuple(range(2, 2 + len(reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, [size + 1 for size in reach], axis=axes)
    steps = [slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation))]
    return np.asarray(windows[tuple(steps)])


def _edges(padding: Any, reach: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis, over which the kernel reaches so far."""
    if padding == "same":
        return [(size // 2, size - size // 2) for size in reach]
    return [(int(p), int(p)) for p in _per_axis(0 if padding == "valid" else padding, len(reach))]


def _per_axis(value: Any, space: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * space if len(values) == 1 else values


def transposed_convolution(site: Site, a: Args) -> View:
    """With kernel == stride, each token becomes one patch: a matmul whose result is rearranged."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    kernel = tuple(weight.shape[2:])
    space = len(kernel)
    others = [*_per_axis(a["padding"], space), *_per_axis(a["output_padding"], space)]
    apart = _per_axis(a["stride"], space) == kernel and {*_per_axis(a["dilation"], space)} == {1}
    if not apart or any(others) or len(x.shape) != space + 2:
        return _overlapping(site, a, weight, kernel)
    weight = _ungrouped(weight, a["groups"])
    flat = weight.reshape(len(weight), -1).T
    wide = None if bias is None else bias.repeat_interleave(int(np.prod(kernel)))
    result = apply_linear(site, x.pick(np.moveaxis(x.index, 1, -1)), flat, wide)
    batch, *positions, _ = result.shape
    parts = result.index.reshape(batch, *positions, weight.shape[1], *kernel)
    axes = [0, 1 + space, *(axis for i in range(space) for axis in (1 + i, 2 + space + i))]
    sizes = [n * k for n, k in zip(positions, kernel, strict=True)]
    return result.pick(parts.transpose(axes).reshape(batch, weight.shape[1], *sizes))


def _overlapping(site: Site, a: Args, weight: Tensor, kernel: tuple[int, ...]) -> View:
    """A convolution with the kernel turned, of the positions with nothing between them."""
    x: View = a["input"]
    space = len(kernel)
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, beyond, dilation = (_per_axis(a[name], space) for name in names)
    batched = _batched(x, space)
    index = batched.index
    for axis, (step, cut, more, reach) in enumerate(
        zip(stride, padding, beyond, _reach(kernel, dilation), strict=True), 2
    ):
        spread = np.full((*index.shape[:axis], (index.shape[axis] - 1) * step + 1, *index.shape[axis + 1 :]), -1)
        spread[(slice(None),) * axis + (slice(None, None, step),)] = index
        edges = [(0, 0)] * spread.ndim
        edges[axis] = (max(reach - cut, 0), max(reach - cut + more, 0))
        index = np.pad(spread, edges, constant_values=-1)
        first, last = max(cut - reach, 0), index.shape[axis] - max(cut - reach - more, 0)
        index = index[(slice(None),) * axis + (slice(first, last),)]
    turned = _ungrouped(weight, a["groups"]).transpose(0, 1).flip(*range(2, 2 + space))
    plain = {"weight": turned, "bias": a["bias"], "stride": [1], "padding": 0, "dilation": dilation, "groups": 1}
    return _as_given(convolution(site, {**plain, "input": batched.pick(index)}), x, space)


ROWS: Rows = {
    **rows(
        max_pooling,
        "max_pool1d max_pool2d max_pool3d",
        data="self",
        reads="kernel_size stride padding dilation ceil_mode",
    ),
    **rows(unfolded, "im2col", data="self", reads="kernel_size dilation padding stride"),
    **rows(folded, "col2im", data="self", reads="output_size kernel_size dilation padding stride"),
    **refused("max_pool2d_with_indices max_pool3d_with_indices", "pool without the places"),
    **refused("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", "pool with a kernel, or by amax over all"),
    **rows(convolution, "conv1d conv2d conv3d", data="input weight bias", reads="stride padding dilation groups"),
    **rows(
        transposed_convolution,
        "conv_transpose1d conv_transpose2d conv_transpose3d",
        data="input weight bias",
        reads="stride padding output_padding groups dilation",
    ),
}
