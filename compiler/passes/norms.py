"""Norms become part of the layers that read them: W(g * norm(x) + c) + b = (W g)norm(x) + (Wc + b).

Before the lone norms, which are what no layer reads.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.compiler.node import Floats, Node, float32
from patchloom.compiler.nodes import Expert, Matmul, Moe
from patchloom.compiler.nodes.captured import Normalise
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.selection import selection


def fold_norm(node: Matmul | Moe, _: Run) -> Node | None:
    """W(g * norm(x) + c) + b = (W g)norm(x) + (Wc + b)."""
    norm = node.x.base
    if not isinstance(norm, Normalise) or node.epsilon is not None:
        return None
    chosen = selection(node.x)
    if chosen is None or not chosen.all_columns:
        return None

    def fold(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        return weight * norm.gamma, float32(bias + weight.astype(np.float64) @ norm.beta)

    changes: dict[str, Any] = {"x": node.x.substitute({norm: norm.x}), "epsilon": norm.epsilon}
    if isinstance(node, Matmul):
        changes["weight"], changes["bias"] = fold(node.weight, node.bias)
    else:
        changes["gate_weight"], changes["gate_bias"] = fold(node.gate_weight, node.gate_bias)
        changes["experts"] = tuple(Expert(*fold(e.w1, e.b1), e.w2, e.b2) for e in node.experts)
    return replace(node, **changes)


PASS = Pass("norms", {Matmul: fold_norm, Moe: fold_norm})
