"""A layer over parts of tokens, each a row of its operand, becomes one over whole tokens: its weights stand for each.

Heads that are mixed, or a projection that all heads share. What is zero between the parts is not multiplied.
"""

import numpy as np

from patchloom.compiler.node import Indices, View, rows_of
from patchloom.compiler.nodes import Constant, Input, Matmul
from patchloom.compiler.passes.engine import Pass, Run

MOST = 1 << 24  # weights


def over_whole_tokens(node: Matmul, _: Run) -> View | None:
    if node.x.base is None or node.epsilon is not None or node.second is not None:
        return None
    found = _parts(node.x)
    if found is None or len(found[1]) * len(node.weight) * node.x.base.shape[1] > MOST:
        return None
    (first, place), columns = found
    base, (parts, outputs) = node.x.base, (len(columns), len(node.weight))
    # Where parts alternate, as heads do whose scores are mixed, so do the results: those of one channel are together.
    alternate = bool((np.diff(columns, axis=1) != 1).any())
    weight = np.zeros((parts, outputs, base.shape[1]), np.float32)
    for part, read in enumerate(columns):
        weight[part][:, read] = node.weight
    weight = weight.swapaxes(0, 1) if alternate else weight
    bias = node.bias.repeat(parts) if alternate else np.tile(node.bias, parts)
    tokens = len(place) // parts
    made = Matmul(
        origin=node.origin, x=rows_of(base, first, first + tokens),
        weight=weight.reshape(-1, base.shape[1]), bias=bias, activation=node.activation,
    )  # fmt: skip
    token, number = np.divmod(place, parts)
    by_part, by_channel = (1, parts) if alternate else (outputs, 1)
    return View(((made, 1.0),), (token * made.shape[1] + number * by_part)[:, None] + np.arange(outputs) * by_channel)


def _parts(view: View) -> tuple[tuple[int, Indices], Indices] | None:
    """First token and, for each row of the view, which part it is, counted on; and the columns of each part."""
    base = view.base
    if base is None or isinstance(base, Input | Constant) or len(base.shape) != 2 or view.terms[0][1] != 1.0:
        return None
    row, column = np.divmod(view.index, base.shape[1])
    tokens, count = np.unique(row[:, 0], return_counts=True)
    parts = int(count[0])
    if row.min() < 0 or parts == 1 or not (row == row[:, :1]).all() or not (count == parts).all():
        return None
    order = np.lexsort((column[:, 0], row[:, 0]))
    columns = column[order].reshape(len(tokens), parts, -1)
    whole_run = tokens[-1] - tokens[0] == len(tokens) - 1
    if not whole_run or not (columns == columns[0]).all() or len(np.unique(columns[0, 0])) < columns.shape[2]:
        return None
    return (int(tokens[0]), np.argsort(order)), columns[0]


PASS = Pass("parts", {Matmul: over_whole_tokens})
