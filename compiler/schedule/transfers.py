"""Rows of tensors from memory and to it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import FIELDS, Kind, Space
from patchloom.compiler.node import Node
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.drafting import Drafting, Tensor
from patchloom.compiler.schedule.image import ALIGNMENT

MOST_CHUNKS = 1 << (FIELDS["rows"][0] - 1)  # of one command


def load_values(d: Drafting, name: str, out: Tensor, value: NDArray[np.integer[Any]]) -> None:
    """Integers [rows, columns] that the image holds."""
    table = np.zeros((out.rows, out.stride * d.config.lanes), "<i2")
    table[:, out.positions] = value
    size = d.chunk_bytes * d.whole_beats(out.rows * out.stride)
    data = table.tobytes().ljust(size, b"\0")
    transfer(d, Kind.LOAD, f"{name}: load", out, Space.PROGRAM, 0, first=0, rows=out.rows, data=(name, data))


def transfer(
    d: Drafting, kind: Kind, note: str, tensor: Tensor, space: Space, address: int, *,
    first: int, rows: int, data: tuple[str, bytes] | None = None,
) -> int:  # fmt: skip
    """Rows of a tensor from or to memory, the address being one in `data` if that is given. Returns the bytes there."""
    begin, chunks = first * tensor.stride, d.whole_beats(rows * tensor.stride)
    tensor.span.size = max(tensor.span.size, begin + chunks)
    most = d.whole_beats(MOST_CHUNKS)
    for part in range(0, chunks, most):
        count = min(most, chunks - part)
        d.draft(
            kind, note, {"a_address": (tensor.span, begin + part)}, rows=count, data=data, dma_space=space,
            dma_address=address + part * d.chunk_bytes, dma_beats=count * d.chunk_bytes // d.config.beat_bytes,
        )  # fmt: skip
    return chunks * d.chunk_bytes


def load(d: Drafting, node: Node, space: Space, address: int) -> int:
    """All of it. Returns the bytes in memory."""
    out = d.tensor(node)
    return transfer(d, Kind.LOAD, f"{node.name}: load", out, space, address, first=0, rows=out.rows)


def load_rows(d: Drafting, node: Node, first: int, rows: int) -> Tensor:
    """Of an input that waits for this; each row begins at a bus beat."""
    note = f"{node.name}: rows {first} to {first + rows - 1}"
    part = d.buffer(note, rows, d.layouts[node], d.quantised.formats[node].width, packed=node in d.packed)
    address = d.waiting[node] + d.chunk_bytes * first * part.stride
    transfer(d, Kind.LOAD, f"{note}: load", part, Space.INPUT, address, first=0, rows=rows)
    if rows > 1:
        d.cuttable(node, part)
    return part


def leave(d: Drafting, node: Node, part: Tensor, first: int) -> None:
    """Rows of a result that nothing but one output reads go to memory, where all its rows have their place."""
    begin = d.stored.setdefault((node, 0, node.shape[0] - 1), d.output_bytes)
    address, note = begin + d.chunk_bytes * first * part.stride, f"{node.name}: rows from {first}: store"
    size = transfer(d, Kind.STORE, note, part, Space.OUTPUT, address, first=0, rows=part.rows)
    d.output_bytes = aligned(address + size, ALIGNMENT)
    if part.rows > 1:
        d.cuttable(node, part)
