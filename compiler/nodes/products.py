"""Products of two tensors that both depend on the inputs, and softmax, outside of attention."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import Kind, Prologue, RowScale, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import SUM_WIDTH, multiplier_of
from patchloom.compiler.node import Evaluation, Floats, Heads, Node, View
from patchloom.compiler.nodes.float32 import softmax
from patchloom.compiler.nodes.heads import ByHead
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format, log2_format, near_maximum
from patchloom.compiler.quantise.scores import SoftmaxNumbers
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.transfers import load_values

COARSEST = 1 / 16  # step of what exponentials are taken of
ONE = Format(8, 1 / 64)  # of the elements of an identity


@dataclass(frozen=True, eq=False, kw_only=True)
class Products(ByHead):
    """`scale * a[h] @ b[h]` of each head h; once settled, a's are blocks, and b's too, or blocks transposed."""

    is_layer: ClassVar[bool] = True

    a: View  # [heads, rows, depth]
    b: View  # [heads, depth, columns]
    scale: float = 1.0
    windows: int = 1

    def __post_init__(self) -> None:
        (count, _, depth), (others, inner, _) = self.a.shape, self.b.shape
        self.require(count == others, f"has {count} heads and {others}")
        self.require(depth == inner, f"has {depth} columns and {inner} rows")
        self.require(count % self.windows == 0, f"has {count} heads in {self.windows} windows")

    @property
    def rectangles(self) -> tuple[int, int, int]:
        return self.a.shape[0], self.a.shape[1], self.b.shape[2]

    @property
    def turned(self) -> View:
        """Each b transposed."""
        return View(self.b.terms, self.b.index.swapaxes(1, 2))

    @property
    def settled(self) -> bool:
        return self.a.blocks is not None and (self.b.blocks is not None or self.turned.blocks is not None)

    @property
    def flags(self) -> Iterator[str]:
        turned = "" if self.b.blocks is not None else ", transposed"
        yield f"{len(self.a.index)} heads, depth {self.a.shape[2]}{turned}, scale {self.scale:.6g}"

    @property
    def macs(self) -> int:
        return self.a.index.size * self.b.shape[2]

    def evaluate(self, at: Evaluation) -> Floats:
        return self.arranged(at.read(self.a) @ at.read(self.b) * np.float32(self.scale))

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((tensor, Demand(activations)) for tensor in self.inputs)

    def numbers(self, at: Quantising) -> tuple[int, int]:
        a, b, out = (at.formats[node] for node in (*self.inputs, self))
        return multiplier_of(self.scale * a.scale * b.scale / out.scale)

    @property
    def heads(self) -> Iterator[Heads]:
        for view in (self.a, self.b if self.b.blocks is not None else self.turned):
            yield view.node, tuple(column for _, column in view.blocks or ()), view.shape[2]

    def streams(self, x: Node, lanes: int) -> bool:
        return x is self.a.node and x is not self.b.node

    def draft(self, d: Drafting) -> None:
        out, depth, columns = d.tensor(self), self.a.shape[2], self.b.shape[2]
        straight = self.b.blocks is not None
        a, b, (multiplier, shift) = d.tensors[self.a.node], d.tensors[self.b.node], d.quantised.numbers[self]
        a_blocks, b_blocks = self.a.blocks, self.b.blocks or self.turned.blocks
        assert a_blocks, "settled heads are blocks"
        assert b_blocks, "settled heads are blocks"
        digits = bounds.digits(d.config, b.width)
        sums = bounds.sums_on_chip(bounds.streamed(a.width), depth, bounds.stationary_width(d.config, digits))
        narrower = "8-bit activations for this layer and all else that reads its operands"
        d.demand_accumulator(f"'{self.name}', every channel,", bounds.signed_bits(sums), narrower)
        for head, note, first, rows, place in self.places(d, out):
            row, column = a_blocks[head]
            d.draft(
                Kind.MATMUL, note,
                {"a_address": a.at(row + first, column), "b_address": b.at(*b_blocks[head]), "o_address": place},
                rows=rows, depth=depth, columns=columns, a_stride=a.stride, a_wide=a.wide, a_packed=int(a.packed),
                b_source=Stationary.ROWS if straight else Stationary.COLUMNS, b_stride=b.stride, b_digits=digits,
                multiplier=multiplier, shift=shift, o_stride=out.stride, o_wide=out.wide,
            )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Shares(ByHead):
    """The softmax of each row of each head; once settled, heads are blocks.

    By two products with the identity: one finds the largest element of each row, one takes the exponentials.
    """

    is_layer: ClassVar[bool] = True

    x: View  # [heads, rows, columns]
    scale: float = 1.0
    windows: int = 1

    @property
    def rectangles(self) -> tuple[int, int, int]:
        count, rows, columns = self.x.shape
        return count, rows, columns

    @property
    def settled(self) -> bool:
        return self.x.blocks is not None

    @property
    def flags(self) -> Iterator[str]:
        yield f"{len(self.x.index)} heads, scale {self.scale:.6g}"

    def evaluate(self, at: Evaluation) -> Floats:
        scores = at.read(self.x) * np.float32(self.scale)
        at.observe(self, "scores", scores)
        return self.arranged(softmax(scores))

    def relevant(self, quantity: str, array: Floats) -> Floats:
        return near_maximum(array) if quantity == "scores" else array

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        """An element may lie far from others, and yet be the largest of its row."""
        yield self.x.node, Demand(ELEMENT_WIDTH)

    def numbers(self, at: Quantising) -> SoftmaxNumbers:
        x, out = at.formats[self.x.node], at.formats[self]
        if self.scale * x.scale > COARSEST:
            raise ValueError(f"its operand lies in steps of {self.scale * x.scale:.3g}, too far apart for a softmax")
        scores, exp_shift = log2_format(at.observed(self, "scores"))
        step = self.scale * math.log2(math.e) * x.scale * ONE.scale
        return SoftmaxNumbers.of(scores, exp_shift, step, at.bits(self)[1], ONE, out)

    @property
    def heads(self) -> Iterator[Heads]:
        yield self.x.node, tuple(column for _, column in self.x.blocks or ()), self.x.shape[2]

    def draft(self, d: Drafting) -> None:
        out, columns, n = d.tensor(self), self.x.shape[2], d.quantised.numbers[self]
        x, x_blocks = d.tensors[self.x.node], self.x.blocks
        assert x_blocks, "settled heads are blocks"
        one = d.buffer(f"{self.name}: identity", columns, np.arange(columns), ONE.width)
        load_values(d, f"{self.name}: identity", one, np.eye(columns, dtype=np.int16) * round(1 / ONE.scale))
        self._prove(d, x.width, n.width)
        same: dict[str, Any] = {
            "b_source": Stationary.ROWS, "b_stride": one.stride, "b_digits": bounds.digits(d.config, ONE.width),
            "columns": columns, "depth": columns,
        }  # fmt: skip
        for head, note, first, rows, place in self.places(d, out):
            scores = d.buffer(f"{note} scores", rows, np.arange(columns), n.scores.width)
            row, column = x_blocks[head]
            d.draft(
                Kind.MATMUL, f"{note} scores",
                {"a_address": x.at(row + first, column), "b_address": one.at(), "o_address": scores.at()},
                rows=rows, a_stride=x.stride, a_wide=x.wide, multiplier=n.score_multiplier, shift=n.score_shift,
                o_stride=scores.stride, o_wide=scores.wide, row_maximum=1, **same,
            )  # fmt: skip
            d.draft(
                Kind.MATMUL, note, {"a_address": scores.at(), "b_address": one.at(), "o_address": place},
                rows=rows, a_stride=scores.stride, a_wide=int(n.width == ELEMENT_WIDTH), prologue=Prologue.EXP,
                exp_shift=n.exp_shift, multiplier=n.multiplier, shift=n.shift, row_scale=RowScale.SOFTMAX,
                post_shift=n.post_shift, o_stride=out.stride, o_wide=out.wide, **same,
            )  # fmt: skip

    def _prove(self, d: Drafting, operand: int, exponentials: int) -> None:
        """No operand can make a sum leave the accumulator, or a row's exponentials their sum."""
        narrower, depth = "8-bit activations for this layer", self.x.shape[2]
        width = bounds.stationary_width(d.config, bounds.digits(d.config, ONE.width))
        largest = max(bounds.streamed(operand), bounds.exponentials(exponentials))
        bits = bounds.signed_bits(bounds.sums_on_chip(largest, depth, width))
        d.demand_accumulator(f"'{self.name}', every channel,", bits, narrower)
        total = bounds.row_sum(bounds.exponentials(exponentials), depth).bit_length()
        d.demand(f"softmax sum of '{self.name}'", total, SUM_WIDTH, narrower)
