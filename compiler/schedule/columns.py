"""Where the columns of tensors lie in their rows, so that every attention head begins a chunk."""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import pairwise

import numpy as np

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.node import Node
from patchloom.compiler.quantise.formats import Format
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.errors import ScheduleError


def extent(positions: Ints) -> int:
    """Columns of a stored row, gaps included."""
    return int(positions.max()) + 1


def packed(graph: Graph, formats: Mapping[Node, Format], lanes: int) -> set[Node]:
    """Tensors of 8 bits that products write, gaps included, or that are inputs, and that products alone read, streamed.

    Of an input of the user's, all that is read or nothing: it is one port.
    """
    others = {x for node in graph.nodes() for x in node.inputs if not node.streams(x, lanes)}
    wide = {x for x in graph.tensors() if not x.packs(lanes) or formats[x].width == ELEMENT_WIDTH or x in others}
    ports = {x.name for x in wide if x.user_input is not None}
    return {x for x in graph.tensors() if x not in wide and (x.user_input is None or x.name not in ports)}


def layouts(graph: Graph, lanes: int, halved: AbstractSet[Node] = frozenset()) -> dict[Node, Ints]:
    """Position of every column of every tensor, such that each attention head starts a chunk; `halved` are packed."""
    nodes = graph.tensors()
    cuts = {node: {0, *node.starts} for node in nodes}
    for node in nodes:
        for tensor, columns, _ in node.heads:
            cuts[tensor].update(columns)
        for tensor, there, here, _ in node.alignments:
            cuts[tensor].add(there)
            cuts[node].add(here)
    while sum(_aligned(node, cuts) for node in nodes):
        continue
    out = {node: spread(node.shape[1], cuts[node], lanes << (node in halved)) for node in nodes}
    for node in nodes:
        _check_heads(node, out)
        _check_unbroken(node, out[node])
    return out


def _aligned(node: Node, cuts: Mapping[Node, set[int]]) -> bool:
    """Whether a node's cuts, or those of what it lies like, had to become more."""
    before = sum(map(len, cuts.values()))
    for tensor, there, here, width in node.alignments:
        cuts[node].update(cut - there + here for cut in list(cuts[tensor]) if there <= cut < there + width)
        cuts[tensor].update(cut - here + there for cut in list(cuts[node]) if here <= cut < here + width)
    return sum(map(len, cuts.values())) > before


def spread(features: int, cuts: AbstractSet[int], chunk: int) -> Ints:
    """Positions of columns; each of `cuts` begins a chunk."""
    positions, free = np.zeros(features, np.int64), 0
    edges = [*sorted(cuts), features]
    for first, last in pairwise(edges):
        positions[first:last] = free + np.arange(last - first)
        free = aligned(free + last - first, chunk)
    return positions


def runs(positions: Ints) -> list[tuple[int, int]]:
    """[first, last) of the columns that lie one behind the other."""
    return list(pairwise([0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]))


def _check_heads(node: Node, positions: Mapping[Node, Ints]) -> None:
    for tensor, columns, width in node.heads:
        for column in columns:
            here = positions[tensor][column : column + width]
            if len(here) < width or here[-1] - here[0] != width - 1:
                raise ScheduleError(f"{node.kind} '{node.name}' reads heads that overlap in '{tensor.name}'")


def _check_unbroken(node: Node, positions: Ints) -> None:
    for first, last in node.unbroken:
        if positions[last - 1] - positions[first] != last - 1 - first:
            raise ScheduleError(f"{node.kind} '{node.name}' cannot leave a gap in columns {first} to {last - 1}")


def separable(graph: Graph) -> set[Node]:
    """Nodes whose operands can be computed head by head: nothing else reads them, each column is one head's."""
    readers = Counter(x for node in graph.nodes() for x in node.inputs)

    def alone(node: Node, x: Node) -> bool:
        heads = [(tensor, first, width) for tensor, starts, width in node.heads for first in starts]
        columns = sorted(c for y, first, width in heads if y is x for c in range(first, first + width))
        unshared = readers[x] == node.inputs.count(x) and columns == list(range(x.shape[1]))
        return unshared and x.divides

    return {
        node
        for node in graph.nodes()
        if any(len(starts) > 1 for _, starts, _ in node.heads) and all(alone(node, x) for x in node.inputs)
    }
