"""Softmax attention of several heads."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import Kind, Prologue, RowScale, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, SUM_WIDTH, multiplier_of
from patchloom.compiler.node import Evaluation, Floats, Heads, Indices, Node, View
from patchloom.compiler.nodes.float32 import softmax
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format, log2_format, near_maximum
from patchloom.compiler.schedule.drafting import Drafting, Part, Tensor, blocks

Columns = tuple[Tensor, int]  # of one head: their tensor and the first one

SOFTMAX_GUARD = 12  # fractional bits, at most, of a softmax-weighted sum beyond the output's


@dataclass(frozen=True)
class AttentionNumbers:
    scores: Format  # in units of log2
    exp_shift: int
    score_multiplier: int
    score_shift: int
    width: int  # bits of the exponentials
    multiplier: int
    shift: int
    post_shift: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Node):
    """Per head h: `softmax(scale * Q_h @ K_h.T) @ V_h`, heads side by side in the output's columns.

    q, k, v are heads x tokens x features. Once settled, head h is columns of its node, the same or another one for
    each of the three, from `q_columns[h]` on (likewise k, v).
    """

    is_layer: ClassVar[bool] = True

    q: View
    k: View
    v: View
    scale: float

    def __post_init__(self) -> None:
        q, k, v = (len(view.index) for view in self.views)
        self.require(q == k == v > 0, f"needs one q, k and v per head, not {q}, {k}, {v}")
        (_, keys, width), (_, values, _) = self.k.shape, self.v.shape
        self.require(keys == values, f"has {keys} keys, {values} values")
        self.require(width == self.head_dim, f"has queries of {self.head_dim}, keys of {width}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[1], len(self.v.index) * self.value_dim

    @property
    def settled(self) -> bool:
        return all(view.columns is not None for view in self.views)

    @property
    def head_dim(self) -> int:
        return self.q.shape[2]

    @property
    def value_dim(self) -> int:
        return self.v.shape[2]

    @property
    def q_columns(self) -> tuple[int, ...]:
        return _columns(self.q)

    @property
    def k_columns(self) -> tuple[int, ...]:
        return _columns(self.k)

    @property
    def v_columns(self) -> tuple[int, ...]:
        return _columns(self.v)

    @property
    def flags(self) -> Iterator[str]:
        starts = f"{list(self.q_columns)} {list(self.k_columns)} {list(self.v_columns)}"
        yield f"heads {starts} of {self.head_dim}, {self.value_dim}, scale {self.scale:.6g}"

    @property
    def macs(self) -> int:
        return len(self.q_columns) * self.shape[0] * self.k.shape[1] * (self.head_dim + self.value_dim)

    def evaluate(self, at: Evaluation) -> Floats:
        q, k, v = (at.read(view) for view in self.views)
        scores = q @ k.transpose(0, 2, 1) * np.float32(self.scale)
        at.observe(self, "scores", scores)
        probabilities = softmax(scores)
        at.observe(self, "probabilities", probabilities)
        result = probabilities @ v
        return result.transpose(1, 0, 2).reshape(self.shape)

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((tensor, Demand(activations)) for tensor in self.inputs)

    def relevant(self, quantity: str, array: Floats) -> Floats:
        return near_maximum(array) if quantity == "scores" else array

    def numbers(self, at: Quantising) -> AttentionNumbers:
        q, k, v, out = (at.formats[node] for node in (*self.inputs, self))
        scores, exp_shift = log2_format(at.observed(self, "scores"))
        ratio = v.scale / out.scale
        # The word is (sum / 2**exponent <= 2) times a mean of v.
        post_shift = min(max(EPILOGUE_WIDTH - 1 - v.width - math.ceil(math.log2(ratio)), 0), SOFTMAX_GUARD)
        return AttentionNumbers(
            scores, exp_shift, *multiplier_of(self.scale * math.log2(math.e) * q.scale * k.scale / scores.scale),
            at.bits(self)[1], *multiplier_of(ratio * 2**post_shift), post_shift,
        )  # fmt: skip

    @property
    def heads(self) -> Iterator[Heads]:
        yield self.q.node, self.q_columns, self.head_dim
        yield self.k.node, self.k_columns, self.head_dim
        yield self.v.node, self.v_columns, self.value_dim

    @property
    def starts(self) -> Iterable[int]:
        return range(0, self.shape[1], self.value_dim)

    def streams(self, x: Node) -> bool:
        return x is self.q.node and x is not self.k.node and x is not self.v.node

    def packs(self, lanes: int) -> bool:
        return -(-self.value_dim // lanes) % 2 == 0

    def draft(self, d: Drafting) -> None:
        out = d.tensor(self)
        self._prove(d)
        if self in d.separable - d.by_head:
            d.cuttable(self, *(d.tensors[x] for x in self.inputs))
        for head in range(len(self.q_columns)):
            operands = self._operands(d, head)
            for first, rows in blocks(out.rows, min(d.most_rows(self), d.config.max_rows)):
                note = f"{self.name}: head {head}" + (f" rows {first} to {first + rows - 1}" if rows < out.rows else "")
                self._head(d, operands, (out, head * self.value_dim), note, first, rows)

    def _prove(self, d: Drafting) -> None:
        """No operand can make a sum leave the accumulator, or a row's exponentials their sum."""
        q, k, v = (d.quantised.formats[x].width for x in self.inputs)
        one, keys = bounds.exponentials(d.quantised.numbers[self].width), self.k.shape[1]
        narrower = "8-bit activations for this layer"
        everywhere = f"{narrower} and all else that reads its operands"
        products = ("scores", bounds.streamed(q), self.head_dim, k), ("values", one, keys, v)
        for what, largest, depth, operand in products:
            width = bounds.stationary_width(d.config, bounds.digits(d.config, operand))
            bits = bounds.signed_bits(bounds.sums_on_chip(largest, depth, width))
            d.demand_accumulator(f"'{self.name}' {what}, every channel,", bits, everywhere)
        d.demand(f"softmax sum of '{self.name}'", bounds.row_sum(one, keys).bit_length(), SUM_WIDTH, narrower)

    def _operands(self, d: Drafting, head: int) -> list[Columns]:
        """q, k and v of a head: as they lie, or computed now."""
        parts = [(x, starts[head], width) for x, starts, width in self.heads]
        if self not in d.by_head:
            return [(d.tensors[x], first) for x, first, _ in parts]
        made: dict[Node, tuple[Tensor, Indices]] = {}
        for x in dict.fromkeys(self.inputs):
            columns = np.concatenate([np.arange(first, first + width) for y, first, width in parts if y is x])
            with d.drafting(x):
                made[x] = x.draft_columns(d, f"{x.name}: head {head}", columns), columns
            d.parts.append(Part(x, made[x][0], 0, columns))
        return [(made[x][0], int(np.flatnonzero(made[x][1] == first)[0])) for x, first, _ in parts]

    def _head(self, d: Drafting, operands: list[Columns], out: Columns, note: str, first: int, rows: int) -> None:
        """Some rows of a head: scores, then what they make of the values."""
        n: AttentionNumbers = d.quantised.numbers[self]
        (q, q_column), (k, k_column), (v, v_column), (o, o_column) = *operands, out
        q_at, k_at, v_at, o_at = q.at(first, q_column), k.at(0, k_column), v.at(0, v_column), o.at(first, o_column)
        scores = d.buffer(f"{note} scores", rows, np.arange(k.rows), n.scores.width)
        if rows > 1:
            d.cuttable(self, scores)
        d.draft(
            Kind.MATMUL, f"{note} scores",
            {"a_address": q_at, "b_address": k_at, "o_address": scores.at()},
            rows=rows, depth=self.head_dim, columns=k.rows, a_stride=q.stride, a_wide=q.wide, a_packed=int(q.packed),
            b_source=Stationary.COLUMNS, b_stride=k.stride, b_digits=bounds.digits(d.config, k.width),
            multiplier=n.score_multiplier, shift=n.score_shift, o_stride=scores.stride, o_wide=scores.wide,
            row_maximum=1,
        )  # fmt: skip
        d.draft(
            Kind.MATMUL, f"{note} values",
            {"a_address": scores.at(), "b_address": v_at, "o_address": o_at},
            rows=rows, depth=k.rows, columns=self.value_dim, a_stride=scores.stride,
            a_wide=int(n.width == ELEMENT_WIDTH), b_source=Stationary.ROWS, b_stride=v.stride,
            b_digits=bounds.digits(d.config, v.width), prologue=Prologue.EXP, exp_shift=n.exp_shift,
            multiplier=n.multiplier, shift=n.shift, row_scale=RowScale.SOFTMAX, post_shift=n.post_shift,
            o_stride=o.stride, o_wide=o.wide, o_packed=int(o.packed),
        )  # fmt: skip


def _columns(view: View) -> tuple[int, ...]:
    assert view.columns, "settled heads are columns"
    return view.columns
