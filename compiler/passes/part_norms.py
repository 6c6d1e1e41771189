"""A norm of parts of tokens, e.g. of each head's queries, becomes a norm of a layer's whole tokens for each part.

Behind it a layer puts the part in its place and adds those before. Before the norms join layers.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Floats, Indices, Node, View, whole
from patchloom.compiler.nodes import Input, Matmul
from patchloom.compiler.nodes.captured import Normalise, Scale
from patchloom.compiler.passes.copies import identity
from patchloom.compiler.passes.engine import Pass, Run


def find_parts(node: Normalise, at: Run) -> View | None:
    base = node.x.base
    if base is None or isinstance(base, Input) or len(base.shape) != 2 or (node.x.index < 0).any():
        return None
    width, (tokens, columns) = node.x.shape[1], np.divmod(node.x.index, base.shape[1])
    starts, number = np.unique(columns[:, 0], return_inverse=True)
    if (columns != columns[:, :1] + np.arange(width)).any() or (tokens != tokens[:, :1]).any() or len(starts) == 1:
        return None
    result: Node | None = None
    for place, part in enumerate(_parts(base, starts, width)):
        normal = whole(replace(node, x=whole(part)))
        weight = np.eye(len(starts) * width, dtype=np.float32)[:, place * width :][:, :width]
        bias, before = np.zeros(len(weight), np.float32), None if result is None else whole(result)
        result = Matmul(origin=node.origin, x=normal, weight=weight, bias=bias, residual=before)
    assert result is not None
    first = tokens[:, 0] * result.shape[1] + number.reshape(-1) * width
    return whole(result).pick(first[:, None] + np.arange(width))


def _parts(base: Node, starts: Indices, width: int) -> Iterator[Matmul]:
    """Some columns each, of a layer that computes no others where it is one without more."""
    for start in starts.tolist():
        if isinstance(base, Matmul) and base.activation == "none" and base.second is None:
            some = slice(start, start + width)
            yield replace(base, weight=base.weight[some], bias=base.bias[some])
        else:
            chosen: Floats = np.eye(base.shape[1], dtype=np.float32)[start : start + width]
            yield identity(base, whole(base), weight=chosen, bias=np.zeros(width, np.float32))


def scale_as_they_lie(node: Scale, _: Run) -> View | None:
    """Factors that differ between the parts of a token differ between its features."""
    base, index = node.x.base, node.x.index
    if not isinstance(base, Matmul) or index.size != base.size or node.x.is_whole():
        return None
    order = np.argsort(index, axis=None)
    if not np.array_equal(index.reshape(-1)[order], np.arange(base.size)):
        return None
    made = replace(node, x=whole(base), factor=node.factor.reshape(-1)[order].reshape(base.shape))
    return whole(made).pick(index)


PASS = Pass("part_norms", {Normalise: find_parts, Scale: scale_as_they_lie})
