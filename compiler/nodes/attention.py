"""Softmax attention of several heads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import Kind, Prologue, Residual, RowScale, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import SUM_WIDTH
from patchloom.compiler.node import Evaluation, Floats, Heads, Indices, Node, View
from patchloom.compiler.nodes.float32 import softmax
from patchloom.compiler.nodes.heads import ByHead
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, log2_format, near_maximum
from patchloom.compiler.quantise.scores import Bias, SoftmaxNumbers, quantise_bias
from patchloom.compiler.schedule.drafting import Drafting, Part, Tensor, blocks
from patchloom.compiler.schedule.products import product
from patchloom.compiler.schedule.transfers import load_values

Block = tuple[Tensor, int, int]  # of one head: its tensor, first row and first column


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(ByHead):
    """Per head h: `softmax(scale * Q_h @ K_h.T + bias_h) @ V_h`, heads side by side in the output's columns.

    q, k, v are heads x tokens x features. Once settled, head h is a block of its node, the same or another one for
    each of the three, that begins at `q.blocks[h]` (likewise k, v). Of several `windows`, which are one above the
    other in the output's rows, the heads of the first come first.
    """

    is_layer: ClassVar[bool] = True

    q: View
    k: View
    v: View
    scale: float
    bias: Floats | None = field(default=None, repr=False)  # [heads, queries, keys]; of each query the largest is 0
    windows: int = 1

    def __post_init__(self) -> None:
        q, k, v = (len(view.index) for view in self.views)
        self.require(q == k == v > 0, f"needs one q, k and v per head, not {q}, {k}, {v}")
        self.require(q % self.windows == 0, f"has {q} heads in {self.windows} windows")
        (_, keys, width), (_, values, _) = self.k.shape, self.v.shape
        self.require(keys == values, f"has {keys} keys, {values} values")
        self.require(width == self.head_dim, f"has queries of {self.head_dim}, keys of {width}")
        if self.bias is not None:
            scores = q, self.queries, keys
            self.require(self.bias.shape == scores, f"bias must have shape {scores}, not {self.bias.shape}")
            self.require(bool((self.bias.max(axis=2) == 0).all()), "bias must be 0 where it is largest for a query")

    @property
    def rectangles(self) -> tuple[int, int, int]:
        return len(self.q.index), self.queries, self.value_dim

    @property
    def settled(self) -> bool:
        return all(view.blocks is not None for view in self.views)

    @property
    def queries(self) -> int:
        """Of a head."""
        return self.q.shape[1]

    @property
    def across(self) -> int:
        """Heads of a window."""
        return len(self.q.index) // self.windows

    @property
    def head_dim(self) -> int:
        return self.q.shape[2]

    @property
    def value_dim(self) -> int:
        return self.v.shape[2]

    @property
    def flags(self) -> Iterator[str]:
        starts = " ".join(str(list(_columns(view))[: self.across]) for view in self.views)
        yield f"heads {starts} of {self.head_dim}, {self.value_dim}, scale {self.scale:.6g}"
        if self.bias is not None:
            yield "+ bias"
        if self.windows > 1:
            yield f"{self.windows} windows"

    @property
    def macs(self) -> int:
        return len(self.q.index) * self.queries * self.k.shape[1] * (self.head_dim + self.value_dim)

    def evaluate(self, at: Evaluation) -> Floats:
        q, k, v = (at.read(view) for view in self.views)
        scores = q @ k.transpose(0, 2, 1) * np.float32(self.scale)
        at.observe(self, "scores", scores)
        if self.bias is not None:
            scores = scores + self.bias
            at.observe(self, "biased", scores)
        probabilities = softmax(scores)
        at.observe(self, "probabilities", probabilities)
        return self.arranged(probabilities @ v)

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((tensor, Demand(activations)) for tensor in self.inputs)

    def relevant(self, quantity: str, array: Floats) -> Floats:
        """Of what the exponentials are of."""
        return near_maximum(array) if quantity == ("scores" if self.bias is None else "biased") else array

    def numbers(self, at: Quantising) -> SoftmaxNumbers:
        q, k, v, out = (at.formats[node] for node in (*self.inputs, self))
        bias, width = None, at.bits(self)[1]
        if self.bias is None:
            scores, exp_shift = log2_format(at.observed(self, "scores"))
        else:
            bias, exp_shift = quantise_bias(self.bias, at.observed(self, "scores"), at.observed(self, "biased"), width)
            scores = bias.by.operand.format
        step = self.scale * math.log2(math.e) * q.scale * k.scale
        return SoftmaxNumbers.of(scores, exp_shift, step, width, v, out, bias)

    @property
    def heads(self) -> Iterator[Heads]:
        yield self.q.node, _columns(self.q), self.head_dim
        yield self.k.node, _columns(self.k), self.head_dim
        yield self.v.node, _columns(self.v), self.value_dim

    def streams(self, x: Node, lanes: int) -> bool:
        return x is self.q.node and x is not self.k.node and x is not self.v.node

    def packs(self, lanes: int) -> bool:
        return -(-self.value_dim // lanes) % 2 == 0

    def draft(self, d: Drafting) -> None:
        out = d.tensor(self)
        self._prove(d)
        if self in d.separable - d.by_head:
            d.cuttable(self, *(d.tensors[x] for x in self.inputs))
        for head in range(len(self.q.index)):
            operands = self._operands(d, head)
            window, column = divmod(head, self.across)
            name = f"{self.name}:" + (f" window {window}" if self.windows > 1 else "") + f" head {column}"
            for first, rows in blocks(self.queries, min(d.most_rows(self), d.config.max_rows)):
                note = name + (f" rows {first} to {first + rows - 1}" if rows < self.queries else "")
                place = out, window * self.queries, column * self.value_dim
                self._head(d, head, operands, place, note, first, rows)

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

    def _operands(self, d: Drafting, head: int) -> list[Block]:
        """q, k and v of a head: as they lie, or computed now."""
        parts = [(view.node, *_blocks(view)[head], view.shape[2]) for view in self.views]
        if self not in d.by_head:
            return [(d.tensors[x], row, first) for x, row, first, _ in parts]
        made: dict[Node, tuple[Tensor, Indices]] = {}
        for x in dict.fromkeys(self.inputs):
            columns = np.concatenate([np.arange(first, first + width) for y, _, first, width in parts if y is x])
            with d.drafting(x):
                made[x] = x.draft_columns(d, f"{x.name}: head {head}", columns), columns
            d.parts.append(Part(x, made[x][0], 0, columns))
        return [(made[x][0], row, int(np.flatnonzero(made[x][1] == first)[0])) for x, row, first, _ in parts]

    def _head(
        self, d: Drafting, head: int, operands: list[Block], out: Block, note: str, first: int, rows: int
    ) -> None:  # fmt: skip
        """Some rows of a head: scores, what is added to them, then what they make of the values."""
        n: SoftmaxNumbers = d.quantised.numbers[self]
        (q, q_row, q_column), (k, k_row, k_column), (v, v_row, v_column), (o, o_row, o_column) = *operands, out
        keys = self.k.shape[1]
        scores = d.buffer(f"{note} scores", rows, np.arange(keys), n.scores.width)
        if rows > 1:
            d.cuttable(self, scores)
        d.draft(
            Kind.MATMUL, f"{note} scores",
            {"a_address": q.at(q_row + first, q_column), "b_address": k.at(k_row, k_column), "o_address": scores.at()},
            rows=rows, depth=self.head_dim, columns=keys, a_stride=q.stride, a_wide=q.wide, a_packed=int(q.packed),
            b_source=Stationary.COLUMNS, b_stride=k.stride, b_digits=bounds.digits(d.config, k.width),
            multiplier=n.score_multiplier, shift=n.score_shift, o_stride=scores.stride, o_wide=scores.wide,
            row_maximum=int(n.bias is None),
        )  # fmt: skip
        if n.bias is not None:
            scores = self._biased(d, n.bias, scores, f"{note} bias", n.bias.value[head, first : first + rows])
        d.draft(
            Kind.MATMUL, f"{note} values",
            {"a_address": scores.at(), "b_address": v.at(v_row, v_column), "o_address": o.at(o_row + first, o_column)},
            rows=rows, depth=keys, columns=self.value_dim, a_stride=scores.stride,
            a_wide=int(n.width == ELEMENT_WIDTH), b_source=Stationary.ROWS, b_stride=v.stride,
            b_digits=bounds.digits(d.config, v.width), prologue=Prologue.EXP, exp_shift=n.exp_shift,
            multiplier=n.multiplier, shift=n.shift, row_scale=RowScale.SOFTMAX, post_shift=n.post_shift,
            o_stride=o.stride, o_wide=o.wide, o_packed=int(o.packed),
        )  # fmt: skip

    def _biased(self, d: Drafting, bias: Bias, scores: Tensor, note: str, value: NDArray[np.int16]) -> Tensor:
        """The scores pass the array once more, and join what is added to them where that lies."""
        out = d.buffer(note, scores.rows, scores.positions, ELEMENT_WIDTH)
        if scores.rows > 1:
            d.cuttable(self, out)
        load_values(d, note, out, value)
        product(d, note, bias.by, scores, out, rows=scores.rows, second=out, residual=Residual.ADD, row_maximum=1)
        return out


def _blocks(view: View) -> tuple[tuple[int, int], ...]:
    assert view.blocks, "settled heads are blocks"
    return view.blocks


def _columns(view: View) -> tuple[int, ...]:
    return tuple(column for _, column in _blocks(view))
