"""Elements as sums of products: what a trace adds, scales and multiplies by scores, written out.

Sums, scalings, products of scores and results, and what is multiplied with scores, are transparent. All others, e.g.
layers, norms, activations, are solid: their elements are what is added and multiplied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.frontend.trace import Computed, Times, Total, Trace
from patchloom.compiler.node import Indices, Node, View
from patchloom.compiler.nodes import Constant, Matmul
from patchloom.compiler.nodes.captured import Activate, Add, Product, Scale, Softmax

NONE = -1  # no factor
DEEPEST = 256  # what a product of two tensors may run over to be written out,
LARGEST = 1 << 24  # and how many products


@dataclass(frozen=True, eq=False)
class Terms:
    """Element i is the sum over k of `factor[k, i]` times the elements `numbers[k, :, i]` of solid nodes."""

    factor: NDArray[np.float64]  # [terms, elements]
    numbers: Indices  # [terms, factors, elements]

    @classmethod
    def constant(cls, value: NDArray[np.float64]) -> "Terms":
        return cls(value[None], np.full((1, 1, value.size), NONE))

    def take(self, index: Indices) -> "Terms":
        """Element -1 is zero."""
        factor = np.where(index >= 0, self.factor[:, index], 0.0)
        return Terms(factor, self.numbers[:, :, index])

    def times(self, factor: NDArray[np.float64] | float) -> "Terms":
        return Terms(self.factor * factor, self.numbers)

    def of_depth(self, depth: int) -> Indices:
        k, have, n = self.numbers.shape
        return np.concatenate([self.numbers, np.full((k, depth - have, n), NONE)], axis=1)

    def multiplied(self, other: "Terms") -> "Terms":
        """Every term with every other."""
        k, n = len(self.factor) * len(other.factor), self.factor.shape[1]
        factor = (self.factor[:, None] * other.factor[None]).reshape(k, n)
        shape = len(self.factor), len(other.factor)
        one = np.broadcast_to(self.numbers[:, None], (*shape, *self.numbers.shape[1:]))
        two = np.broadcast_to(other.numbers[None], (*shape, *other.numbers.shape[1:]))
        return Terms(factor, np.concatenate([one, two], axis=2).reshape(k, -1, n)).compressed()

    def compressed(self) -> "Terms":
        """Without the terms that are zero of all elements, and factors that no term has."""
        order = np.argsort(self.factor == 0, axis=0, kind="stable")
        most = max(int((self.factor != 0).sum(axis=0).max(initial=0)), 1)
        order = order[:most]
        factor = np.take_along_axis(self.factor, order, axis=0)
        numbers = np.take_along_axis(self.numbers, order[:, None], axis=0)
        numbers = np.where((factor == 0)[:, None], NONE, numbers)
        numbers = -np.sort(-numbers, axis=1)
        depth = max(int((numbers >= 0).sum(axis=1).max(initial=0)), 1)
        return Terms(factor, numbers[:, :depth])


def sum_of(parts: list[Terms]) -> Terms:
    depth = max(part.numbers.shape[1] for part in parts)
    factor = np.concatenate([part.factor for part in parts])
    return Terms(factor, np.concatenate([part.of_depth(depth) for part in parts])).compressed()


class Algebra:
    """Of one trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.known: dict[Node, Terms] = {}

    def of(self, view: View) -> Terms:
        """Of its elements in turn."""
        parts = []
        for of, (base, factor) in enumerate(view.terms):
            index = view.part(of).reshape(-1)
            if (index >= 0).any():
                parts.append(self.of_node(base).take(index).times(factor))
        return sum_of(parts) if parts else Terms.constant(np.zeros(view.index.size))

    def of_node(self, node: Node) -> Terms:
        if node not in self.known:
            self.known[node] = self._written_out(node) or self._solid(node)
        return self.known[node]

    def _solid(self, node: Node) -> Terms:
        numbers = self.trace.number(node) + np.arange(node.size)
        return Terms(np.ones((1, node.size)), numbers[None, None])

    def _written_out(self, node: Node) -> Terms | None:
        meaning = MEANINGS.get(type(node))
        return meaning(self, node) if meaning else None

    def product(self, node: Product) -> Terms | None:
        (count, rows, depth), columns = node.a.shape, node.b.shape[2]
        if depth > DEEPEST or depth * node.size > LARGEST:
            return None
        parts = []
        for k in range(depth):
            one = np.broadcast_to(node.a.index[:, :, k, None], (count, rows, columns))
            two = np.broadcast_to(node.b.index[:, k, None, :], (count, rows, columns))
            parts.append(self.of(node.a.pick(one)).multiplied(self.of(node.b.pick(two))))
        return sum_of(parts)

    def of_scores(self, node: Matmul) -> Terms | None:
        """Learned vectors, each times a score: e.g. biases of experts."""
        if node.x.shape[1] > DEEPEST:
            return None
        numbers = self.of(node.x).numbers
        used = np.unique(numbers[numbers >= 0])
        places = np.unique(np.searchsorted(self.trace.first, used, side="right") - 1)
        if not len(used) or not all(is_score(self.trace.nodes[place]) for place in places):
            return None
        rows, outputs = node.shape
        parts = [Terms.constant(np.tile(node.bias.astype(np.float64), rows))]
        for k in range(node.x.shape[1]):
            column = self.of(node.x.pick(np.repeat(node.x.index[:, k], outputs)))
            parts.append(column.times(np.tile(node.weight[:, k].astype(np.float64), rows)))
        return sum_of(parts)


MEANINGS: Mapping[type[Node], Callable[[Algebra, Any], Terms | None]] = {
    Constant: lambda _, node: Terms.constant(node.value.reshape(-1).astype(np.float64)),
    Add: lambda at, node: sum_of([at.of(node.a), at.of(node.b)]),
    Scale: lambda at, node: at.of(node.x).times(node.factor.reshape(-1).astype(np.float64)),
    Times: lambda at, node: at.of(node.a).multiplied(at.of(node.b)),
    Total: lambda at, node: sum_of([at.of(node.x.pick(part)) for part in node.x.index]),
    Product: Algebra.product,
    Matmul: Algebra.of_scores,
}


def is_sigmoid(node: Node) -> bool:
    """A function of the machine's, which a row of the table of operations stands for."""
    return isinstance(node, Activate) and node.activation == "sigmoid"


def is_score(node: Node) -> bool:
    """A softmax, a sigmoid, or a share of such."""
    if isinstance(node, Softmax) or is_sigmoid(node):
        return True
    if isinstance(node, Computed):
        return node.origin.op == "aten.div" and all(is_score(base) for v in node.operands for base, _ in v.terms)
    return isinstance(node, Add | Scale | Total | Constant) and all(is_score(base) for base in node.inputs)
