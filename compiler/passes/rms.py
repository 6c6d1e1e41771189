"""A norm by the root mean square becomes one that takes away the mean, of tokens whose mean is zero.

For any d features there are d + 1 of the same length and of mean zero: they are turned by a matrix of orthonormal rows
that each sum to zero. Layers that the token comes from take the matrix into their weights, those that read the norm
take in its transpose, and sums are the sums of what was turned. Before the norms join layers.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from patchloom.compiler.node import Floats, Node, View, float32, whole
from patchloom.compiler.nodes import Constant, Expert, Matmul, Moe
from patchloom.compiler.nodes.captured import Add, Normalise, Opaque
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import is_opaque
from patchloom.compiler.problems import UnsupportedError


def turning(features: int) -> Floats:
    """[features, features + 1]: rows are orthonormal and sum to zero; near the identity, so features stay apart."""
    wide = features + 1
    mirror = np.eye(wide)[-1] - wide**-0.5
    return float32((np.eye(wide) - 2 * np.outer(mirror, mirror) / (mirror @ mirror))[:-1])


def find_rms(node: Normalise, at: Run) -> Normalise | None:
    if node.centred:
        return None
    features = node.x.shape[1]
    x = _turned_view(node.x, at)
    if x is None:
        raise UnsupportedError(
            "normalises parts of tokens by their root mean square", "normalise whole tokens, or use torch.nn.LayerNorm"
        )
    share = features / (features + 1)
    gamma = node.gamma[:, None] * turning(features) * np.float32(share**0.5)
    return replace(node, x=x, gamma=gamma, epsilon=node.epsilon * share, centred=True)


def _turned_view(view: View, at: Run) -> View | None:
    """Of whole tokens of any operations, zeros included."""
    features = view.shape[1]
    if any(base.shape[-1:] != (features,) or factor != 1.0 for base, factor in view.terms):
        return None
    tokens, columns = np.divmod(view.index, features)
    if ((view.index >= 0) & ((columns != np.arange(features)) | (tokens != tokens[:, :1]))).any():
        return None
    terms = tuple((at.once(("turned", base), partial(_turned, base, at)), 1.0) for base, _ in view.terms)
    index = tokens[:, :1] * (features + 1) + np.arange(features + 1)
    return View(terms, np.where(tokens[:, :1] >= 0, index, -1))


def _turned(node: Node, at: Run) -> Node:
    matrix = turning(node.shape[-1])
    if isinstance(node, Constant):
        return replace(node, value=node.value.reshape(-1, len(matrix)) @ matrix)
    if isinstance(node, Add):
        a, b = _turned_view(node.a, at), _turned_view(node.b, at)
        if a is not None and b is not None:
            return replace(node, a=a, b=b)
    if isinstance(node, Matmul) and node.activation == "none":
        residual = node.residual and _turned_view(node.residual, at)
        if node.residual is None or residual is not None:
            return replace(node, weight=matrix.T @ node.weight, bias=node.bias @ matrix, residual=residual)
    if isinstance(node, Moe) and node.residual is None:
        return replace(node, experts=tuple(Expert(e.w1, e.b1, matrix.T @ e.w2, e.b2 @ matrix) for e in node.experts))
    if is_opaque(whole(node)):
        return Opaque(origin=node.origin, out_shape=(node.shape[0], len(matrix) + 1))
    return Matmul(origin=node.origin, x=whole(node), weight=matrix.T, bias=np.zeros(len(matrix) + 1, np.float32))


PASS = Pass("rms", {Normalise: find_rms})
