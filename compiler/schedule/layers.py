"""What became of each layer of a task: its format, its commands, where its result lies and when."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.program import Layer, Piece
from patchloom.compiler.node import Node
from patchloom.compiler.schedule.buffers import Span
from patchloom.compiler.schedule.drafting import Drafting, Part

Runs = tuple[tuple[int, int, int], ...]


def layers(d: Drafting) -> Iterator[Layer]:
    """Every node of the task, once its buffers have addresses."""
    commands, written = _commands(d)
    pieces: dict[Node, list[Piece]] = defaultdict(list)
    for part in d.parts:
        if (key := (part.node, part.tensor.span)) in written:
            pieces[part.node].append(_piece(part, written[key]))
    tensors = set(d.graph.tensors())
    for node in d.graph.nodes():
        stored = node if node in tensors else node.inputs[0]  # an output names elements of what it reads
        form, seen = d.quantised.formats[stored], d.quantised.calibration.observed(stored, "output")
        yield Layer(
            node.name, node.kind, node.origin.where, (node.shape[0], node.shape[1]), form.width, form.scale, seen.low,
            seen.high, d.quantised.precision.name_of(node.name) if node.is_layer else "", node.macs,
            tuple(commands[node]), tuple(pieces[node]),
        )  # fmt: skip


def _commands(d: Drafting) -> tuple[dict[Node, list[int]], dict[tuple[Node, Span], int]]:
    """Of each node, and the last of them that writes into a buffer."""
    commands: dict[Node, list[int]] = defaultdict(list)
    written = {}
    for position, draft in enumerate(d.drafts):
        if draft.node is not None:
            commands[draft.node].append(position)
            if "o_address" in draft.places:
                written[draft.node, draft.places["o_address"][0]] = position
    return commands, written


def _piece(part: Part, command: int) -> Piece:
    tensor = part.tensor
    columns = _runs(part.columns, tensor.positions)
    return Piece(command, part.first, tensor.rows, tensor.span.address, tensor.stride, tensor.packed, columns)


def _runs(columns: Ints, positions: Ints) -> Runs:
    """(first column, how many, position of the first) of what is consecutive in both."""
    edges = np.flatnonzero((np.diff(columns) != 1) | (np.diff(positions) != 1)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(columns)]
    return tuple((int(columns[i]), j - i, int(positions[i])) for i, j in zip(starts, ends, strict=True))
