"""Products with weights from memory."""

from dataclasses import asdict
from typing import Any

import numpy as np

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import Kind, Prologue, Residual
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import NORMALISED_FEATURES
from patchloom.compiler.machine.layout import stream_beats
from patchloom.compiler.node import Node
from patchloom.compiler.quantise.linear import Linear, identity
from patchloom.compiler.schedule.columns import extent
from patchloom.compiler.schedule.drafting import Drafting, Tensor, blocks


def products(
    d: Drafting, note: str, linear: Linear, a: Tensor, out: Tensor, *, first: int = 0, second: Tensor | None = None,
    residual: Residual = Residual.NONE,
) -> None:  # fmt: skip
    """Rows from `first` of a to all of out, by as many commands as it takes."""
    parts = list(blocks(out.rows, d.config.max_rows))
    for begin, rows in parts:
        part = note if len(parts) == 1 else f"{note}: rows {begin} to {begin + rows - 1}"
        product(
            d, part, linear, a, out, rows=rows, first=first + begin, o_first=begin, second=second, residual=residual
        )


def product(
    d: Drafting, note: str, linear: Linear, a: Tensor, out: Tensor, *,
    rows: int, first: int = 0, o_first: int = 0, second: Tensor | None = None, **fields: Any,
) -> None:  # fmt: skip
    """One MATMUL with weights from memory: rows from `first` of a to rows from `o_first` of out."""
    _prove(d, note, linear)
    places = {"a_address": a.at(first), "o_address": out.at(o_first)}
    if second is not None:
        places["r_address"] = second.at(o_first)
        fields["r_stride"] = second.stride
    if linear.operand.normalise is not None:
        assert a.statistics is not None
        places["a_statistics"] = a.statistics, first
        fields |= {"prologue": Prologue.NORMALISE, **asdict(linear.operand.normalise)}
    if out.statistics is not None:
        places["o_statistics"] = out.statistics, o_first
        fields |= {"statistics": 1}
    d.load_table(linear.table)
    depth, columns, count = extent(a.positions), extent(out.positions), bounds.digits(d.config, linear.bits)
    d.draft(
        Kind.MATMUL, note, places, weights=(linear, a.positions, out.positions),
        rows=rows, depth=depth, columns=columns, a_stride=a.stride,
        a_wide=int(linear.operand.format.width == ELEMENT_WIDTH), a_packed=int(a.packed),
        b_digits=count, dma_beats=stream_beats(d.config, depth, columns, count),
        post=linear.post, post_shift=linear.post_shift,
        o_stride=out.stride, o_wide=out.wide, o_packed=int(out.packed), **fields,
    )  # fmt: skip


def _prove(d: Drafting, note: str, linear: Linear) -> None:
    """No operand can make a channel's sum leave the accumulator."""
    sums = bounds.sums(bounds.streamed(linear.operand.format.width), linear.matrix, linear.bias)
    channel = int(sums.argmax())
    bits = bounds.signed_bits(int(sums[channel]))
    d.demand_accumulator(f"'{note}', channel {channel},", bits, "fewer bits for this layer")
    if linear.operand.normalise is not None:
        d.demand(f"'{note}': normalised features", len(linear.matrix), NORMALISED_FEATURES, "fewer features")


def make_normalisable(d: Drafting, node: Node) -> None:
    """Pass it through the array unchanged if its statistics are needed but not known, or its columns have gaps."""
    if node not in d.normalised or node in d.normalisable:
        return
    before, features = d.tensors[node], node.shape[1]
    after = d.buffer(f"{node.name} again", before.rows, np.arange(features), before.width)
    d.gather(node, after)
    products(d, f"{node.name}: statistics", identity(d.quantised.formats[node], features), before, after)
    if len(before.positions) == extent(before.positions):
        d.tensors[node] = after
