"""Nodes whose parts do not fit together are refused when they are built, with the name and the rule."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.graph import Graph
from patchloom.compiler.node import GraphError, Node, View, heads_of, rows_of, whole
from patchloom.compiler.nodes import Output
from patchloom.compiler.nodes.captured import Softmax
from patchloom.compiler.origin import Origin
from tests.compiler.graphs import Builder

b = Builder()
X = b.input(6, 8)
PRODUCT = b.matmul("product", X, 12)
HEADS = b.attention("heads", b.matmul("qkv", X, 24), 2, 4)
MIXTURE = b.moe("mixture", X, 3, 16)


@pytest.mark.parametrize(("node", "changes", "text"), [
    (PRODUCT, {"x": whole(b.input(6, 9))}, "matmul 'product' needs 8 features, x has 9"),
    (PRODUCT, {"bias": np.zeros(3, np.float32)}, r"matmul 'product' bias must have shape \(12,\), not \(3,\)"),
    (PRODUCT, {"residual": whole(X)}, r"matmul 'product' residual is \(6, 8\), not \(6, 12\)"),
    (PRODUCT, {"activation": "selu"}, "matmul 'product' activation must be one of none, gelu, .*relu.*, not 'selu'"),
    (PRODUCT, {"origin": Origin(where="model.py:7"), "residual": whole(X)}, r"not \(6, 12\) \(model.py:7\)"),
    (HEADS, {"k": heads_of(X, [0], 4)}, "attention 'heads' needs one q, k and v per head, not 2, 1, 2"),
    (HEADS, {"v": heads_of(b.input(5, 8), [0, 4], 4)}, "attention 'heads' has 6 keys, 5 values"),
    (HEADS, {"q": heads_of(X, [0, 4], 3)}, "attention 'heads' has queries of 3, keys of 4"),
    (MIXTURE, {"top_k": 4}, "moe 'mixture' top_k must be 1 to 3, not 4"),
    (MIXTURE, {"x": whole(b.input(6, 9))}, r"moe 'mixture' gate must be \(3, 9\), not \(3, 8\)"),
    (MIXTURE, {"residual": whole(PRODUCT)}, r"moe 'mixture' residual is \(6, 12\), not \(6, 8\)"),
    (MIXTURE, {"activation": "selu"}, "moe 'mixture' activation must be one of none, gelu, .*relu.*, not 'selu'"),
])  # fmt: skip
def test_refused(node: Node, changes, text):
    with pytest.raises(GraphError, match=text):
        replace(node, **changes)


@pytest.mark.parametrize(("view", "text"), [
    (lambda: rows_of(X, 2, 7), "input 'x' has 6 rows, not 2 to 6"),
    (lambda: rows_of(X, 2, 2), "input 'x' has 6 rows, not 2 to 1"),
    (lambda: heads_of(X, [0, 5], 4), r"input 'x' has 8 columns, not heads of 4 at \[0, 5\]"),
])  # fmt: skip
def test_views_of_what_a_node_lacks(view, text: str):
    with pytest.raises(GraphError, match=text):
        view()


ROWS = whole(PRODUCT)
READ = b.matmul("read", PRODUCT, 12)


@pytest.mark.parametrize("node", [
    replace(READ, x=ROWS.pick(ROWS.index[::-1])),
    replace(READ, x=ROWS.pick(ROWS.index[:, ::-1])),
    replace(READ, x=ROWS.scaled(2.0)),
    replace(READ, x=View(((PRODUCT, 1.0), (X, 1.0)), ROWS.index)),
    replace(READ, residual=ROWS.pick(ROWS.index[::-1])),
    replace(MIXTURE, x=rows_of(b.input(7, 8), 1, 7)),
    replace(HEADS, q=heads_of(X, [0, 4], 4).pick(heads_of(X, [0, 4], 4).index[:, ::-1])),
    Output(name="y", x=ROWS.scaled(2.0)),
    Output(name="y", x=ROWS.pick(ROWS.index - 1)),
    Softmax(name="softmax", x=ROWS),
])  # fmt: skip
def test_not_canonical(node: Node):
    """What a pass must still settle has no place in a graph."""
    with pytest.raises(GraphError, match=f"{node.kind} '{node.name}' is not canonical"):
        Graph("main", (b.output("out", node) if not isinstance(node, Output) else node,))


def test_canonical():
    """The same, settled."""
    for node in (READ, replace(READ, x=rows_of(b.input(7, 12), 1, 7)), MIXTURE, HEADS):
        assert list(Graph("main", (b.output("out", node),)).nodes())[-2] is node
