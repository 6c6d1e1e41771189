"""Images that forward normalises cost nothing: W(x * f + c) = (W f)x + Wc, with f and c alike for all tokens.

Before the scales, which would make a layer of such a factor, as no layer stands in front of the input.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.node import Floats, Indices, View
from patchloom.compiler.nodes import Input, Matmul
from patchloom.compiler.nodes.captured import Add, Scale
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import constant


def fold_affine_input(node: Matmul, at: Run) -> Matmul | None:
    """Innermost first: what is left of the operand may be a factor or a shift again."""
    if node.epsilon is not None:
        return None
    base = node.x.base
    folded = None
    if isinstance(base, Scale):
        folded = _without_factor(node, base)
    if isinstance(base, Add):
        folded = _without_shift(node, base, base.a, base.b) or _without_shift(node, base, base.b, base.a)
    return folded and (fold_affine_input(folded, at) or folded)


def _without_factor(node: Matmul, base: Scale) -> Matmul | None:
    factor = _per_column(base.factor, node.x.index)
    if factor is None:
        return None
    return replace(node, x=node.x.substitute({base: base.x}), weight=node.weight * factor)


def _without_shift(node: Matmul, base: Add, view: View, other: View) -> Matmul | None:
    value = constant(other)
    shift = None if value is None else _per_column(value, node.x.index)
    if shift is None or not isinstance(view.base, Input | Scale):
        return None
    return replace(node, x=node.x.substitute({base: view}), bias=node.bias + node.weight @ shift)


def _per_column(value: Floats, index: Indices) -> Floats | None:
    gathered = np.append(value.reshape(-1), np.float32(0))[index]
    return gathered[0] if (gathered == gathered[0]).all() else None


PASS = Pass("affine_input", {Matmul: fold_affine_input})
