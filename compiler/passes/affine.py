"""A factor and a shift in front of a layer cost nothing: W(f * x + c) + b = (W f)x + (Wc + b), for all tokens alike.

After the scales and constants that the layers before have taken in; what is left stands behind the input, a sum or an
activation. An image that is padded once it is normalised has no shift where it is padded: what the shift adds then
differs between tokens.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.compiler.node import Floats, Indices, View, float32
from patchloom.compiler.nodes import Expert, Input, Matmul, Moe
from patchloom.compiler.nodes.captured import Add, Scale
from patchloom.compiler.passes.constants import Layer, plus
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import constant


def absorb(node: Layer, factor: Floats, shift: Floats, **changes: Any) -> Layer:
    """The layer whose operand was f * x + c, now that it is x."""

    def fold(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        return float32(weight * factor), float32(bias + weight.astype(np.float64) @ shift)

    if isinstance(node, Matmul):
        changes["weight"], changes["bias"] = fold(node.weight, node.bias)
    else:
        if node.gate_x is None:
            changes["gate_weight"], changes["gate_bias"] = fold(node.gate_weight, node.gate_bias)
        changes["experts"] = tuple(Expert(*fold(e.w1, e.b1), e.w2, e.b2) for e in node.experts)
    return replace(node, **changes)


def fold_affine(node: Layer, at: Run) -> Layer | None:
    """Innermost first: what is left of the operand may be a factor or a shift again."""
    base = node.x.base
    folded = None
    if node.epsilon is None and isinstance(base, Scale):
        folded = _without_factor(node, base)
    if node.epsilon is None and isinstance(base, Add):
        folded = _without_shift(node, base, base.a, base.b) or _without_shift(node, base, base.b, base.a)
    return folded and (fold_affine(folded, at) or folded)


def _without_factor(node: Layer, base: Scale) -> Layer | None:
    factor = _gathered(base.factor, node.x.index)
    read = node.x.index >= 0
    alike = factor.max(axis=0, where=read, initial=-np.inf)
    if (read & (factor != alike)).any():
        return None
    x = node.x.substitute({base: base.x})
    return absorb(node, np.where(read.any(axis=0), alike, 0), np.zeros_like(alike), x=x)


def _without_shift(node: Layer, base: Add, view: View, other: View) -> Layer | None:
    value = constant(other)
    if value is None or constant(view) is not None:
        return None
    x, shift = node.x.substitute({base: view}), _gathered(value, node.x.index)
    if (shift == shift[0]).all():
        return absorb(node, np.ones_like(shift[0]), shift[0], x=x)
    if isinstance(node, Matmul) and node.residual is None and isinstance(_source(view), Input):
        return plus(replace(node, x=x), float32(shift @ node.weight.T), base)
    return None


def _source(view: View) -> object:
    """What is in front of factors."""
    return _source(view.base.x) if isinstance(view.base, Scale) else view.base


def _gathered(value: Floats, index: Indices) -> Floats:
    return np.append(value.reshape(-1), np.float32(0))[index]


PASS = Pass("affine", {Matmul: fold_affine, Moe: fold_affine})
