"""A layer over parts of tokens, each a row of its operand, becomes one over whole tokens: its weights stand for each.

Heads that are mixed, or a projection that all heads share. What is zero between the parts is not multiplied.
"""

import numpy as np

from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Constant, Input, Matmul
from patchloom.compiler.passes.engine import Pass, Run

MOST = 1 << 24  # weights


def over_whole_tokens(node: Matmul, _: Run) -> View | None:
    base = node.x.base
    if base is None or isinstance(base, Input | Constant) or len(base.shape) != 2 or node.x.terms[0][1] != 1.0:
        return None
    if node.x.index.min() < 0 or node.epsilon is not None or node.second is not None:
        return None
    row, column = np.divmod(node.x.index, base.shape[1])
    tokens, count = np.unique(row[:, 0], return_counts=True)
    parts = int(count[0])
    if parts == 1 or not (row == row[:, :1]).all() or not (count == parts).all():
        return None
    order = np.lexsort((column[:, 0], row[:, 0]))
    columns = column[order].reshape(len(tokens), parts, -1)
    apart = len(np.unique(columns[0, 0])) == columns.shape[2]
    consecutive = apart and np.array_equal(tokens, np.arange(tokens[0], tokens[0] + len(tokens)))
    outputs = len(node.weight)
    if not consecutive or not (columns == columns[0]).all() or parts * outputs * base.shape[1] > MOST:
        return None
    weight = np.zeros((parts, outputs, base.shape[1]), np.float32)
    for part, read in enumerate(columns[0]):
        weight[part][:, read] = node.weight
    made = Matmul(
        origin=node.origin, x=whole(base).pick(whole(base).index[tokens[0] : tokens[0] + len(tokens)]),
        weight=weight.reshape(-1, base.shape[1]), bias=np.tile(node.bias, parts), activation=node.activation,
    )  # fmt: skip
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return View(((made, 1.0),), place[:, None] * outputs + np.arange(outputs))


PASS = Pass("parts", {Matmul: over_whole_tokens})
