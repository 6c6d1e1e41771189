"""Convolutions: each position is a token, its patch a row of the operand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from patchloom.compiler.frontend.linear import apply_linear, need_constants
from patchloom.compiler.frontend.site import Args, Rows, Site, rows
from patchloom.compiler.node import View
from patchloom.compiler.problems import UnsupportedError


def convolution(site: Site, a: Args) -> View:
    """Each output position is a token: the patch under the kernel times the weights."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    space = weight.dim() - 2
    stride, dilation = (_per_axis(a[name], space) for name in ("stride", "dilation"))
    weight = _ungrouped(weight, a["groups"])
    batched = x if len(x.shape) == space + 2 else x.reshape(1, *x.shape)
    reach = [(kernel - 1) * step for kernel, step in zip(weight.shape[2:], dilation, strict=True)]
    padded = np.pad(batched.index, [(0, 0), (0, 0), *_edges(a["padding"], reach)], constant_values=-1)
    axes = tuple(range(2, 2 + space))
    windows = np.lib.stride_tricks.sliding_window_view(padded, [size + 1 for size in reach], axis=axes)
    steps = [slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation))]
    windows = windows[tuple(steps)]
    positions = windows.shape[2 : 2 + space]  # windows: batch, channels, positions, kernel
    patches = np.moveaxis(windows, 1, 1 + space).reshape(len(padded), *positions, -1)
    result = apply_linear(site, batched.pick(patches), weight.reshape(len(weight), -1), bias)
    moved = result.pick(np.moveaxis(result.index, -1, 1))
    return moved if batched is x else moved.reshape(*moved.shape[1:])


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """As of one group: zero for the channels of the others."""
    if groups == 1:
        return weight
    parts, (outputs, inputs) = weight.chunk(groups), weight.shape[:2]
    whole = weight.new_zeros(outputs, inputs * groups, *weight.shape[2:])
    for group, part in enumerate(parts):
        whole[group * len(part) : (group + 1) * len(part), group * inputs : (group + 1) * inputs] = part
    return whole


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
    if (
        _per_axis(a["stride"], space) != kernel
        or any(others)
        or {*_per_axis(a["dilation"], space)} != {1}
        or len(x.shape) != space + 2
    ):
        raise UnsupportedError(
            "is a transposed convolution whose patches overlap or are padded",
            "supported are kernel == stride and padding 0",
        )
    weight = _ungrouped(weight, a["groups"])
    flat = weight.reshape(len(weight), -1).T
    wide = None if bias is None else bias.repeat_interleave(int(np.prod(kernel)))
    result = apply_linear(site, x.pick(np.moveaxis(x.index, 1, -1)), flat, wide)
    batch, *positions, _ = result.shape
    parts = result.index.reshape(batch, *positions, weight.shape[1], *kernel)
    axes = [0, 1 + space, *(axis for i in range(space) for axis in (1 + i, 2 + space + i))]
    sizes = [n * k for n, k in zip(positions, kernel, strict=True)]
    return result.pick(parts.transpose(axes).reshape(batch, weight.shape[1], *sizes))


ROWS: Rows = {
    **rows(convolution, "conv1d conv2d conv3d", data="input weight bias", reads="stride padding dilation groups"),
    **rows(
        transposed_convolution,
        "conv_transpose1d conv_transpose2d conv_transpose3d",
        data="input weight bias",
        reads="stride padding output_padding groups dilation",
    ),
}
