"""Nodes whose parts do not fit together are refused when they are built, with the name and the rule."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.graph import GraphError, Node
from tests.compiler.graphs import Builder

b = Builder()
X = b.input(6, 8)
PRODUCT = b.matmul("product", X, 12)
HEADS = b.attention("heads", b.matmul("qkv", X, 24), 2, 4)
MIXTURE = b.moe("mixture", X, 3, 16)


@pytest.mark.parametrize(("node", "changes", "text"), [
    (PRODUCT, {"x": b.input(6, 9)}, "matmul 'product' needs 8 features, x has 9"),
    (PRODUCT, {"bias": np.zeros(3, np.float32)}, r"matmul 'product' bias must have shape \(12,\), not \(3,\)"),
    (PRODUCT, {"rows": (2, 7)}, r"matmul 'product' rows \(2, 7\) must lie in x's 6 rows"),
    (PRODUCT, {"rows": (2, 2)}, r"matmul 'product' rows \(2, 2\) must lie in x's 6 rows"),
    (PRODUCT, {"residual": X}, r"matmul 'product' residual is \(6, 8\), not \(6, 12\)"),
    (PRODUCT, {"activation": "selu"}, "matmul 'product' activation must be one of none, gelu, relu.*, not 'selu'"),
    (PRODUCT, {"source": "model.py:7", "rows": (0, 9)}, r"must lie in x's 6 rows \(model.py:7\)"),
    (HEADS, {"k_columns": (8,)}, "attention 'heads' needs one q, k and v column per head, not 2, 1, 2"),
    (HEADS, {"v": b.matmul("v", X, 24, rows=(0, 5))}, "attention 'heads' has 6 keys, 5 values"),
    (MIXTURE, {"top_k": 4}, "moe 'mixture' top_k must be 1 to 3, not 4"),
    (MIXTURE, {"x": b.input(6, 9)}, r"moe 'mixture' gate must be \(3, 9\), not \(3, 8\)"),
    (MIXTURE, {"residual": PRODUCT}, r"moe 'mixture' residual is \(6, 12\), not \(6, 8\)"),
    (MIXTURE, {"activation": "selu"}, "moe 'mixture' activation must be one of none, gelu, relu.*, not 'selu'"),
])  # fmt: skip
def test_refused(node: Node, changes, text):
    with pytest.raises(GraphError, match=text):
        replace(node, **changes)
