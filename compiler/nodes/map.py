"""A map of tokens with an edge around it, in which the patches of a convolution lie."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchloom.compiler.machine.fixed import multiplier_of
from patchloom.compiler.node import Evaluation, Floats, Node, View, float32
from patchloom.compiler.nodes.rows import OfRows
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format
from patchloom.compiler.quantise.linear import Linear, Operand, identity
from patchloom.compiler.schedule.drafting import Drafting, Tensor, blocks, line_blocks
from patchloom.compiler.schedule.products import product


@dataclass(frozen=True, eq=False, kw_only=True)
class Map(OfRows):
    """Tokens line by line, `width` of them each."""

    x: View  # [tokens, features]
    width: int
    edges: tuple[int, int, int, int]  # rows above and below, columns left and right: of zeros
    lowest: bool = False  # or of what is less than all else

    def __post_init__(self) -> None:
        self.require(self.x.shape[0] % self.width == 0, f"has {self.x.shape[0]} tokens, not lines of {self.width}")

    @property
    def height(self) -> int:
        return self.x.shape[0] // self.width

    @property
    def pitch(self) -> int:
        """Tokens from line to line."""
        _, _, left, right = self.edges
        return left + self.width + right

    @property
    def shape(self) -> tuple[int, int]:
        top, bottom, _, _ = self.edges
        return (top + self.height + bottom) * self.pitch, self.x.shape[1]

    @property
    def begin(self) -> int:
        """Row of its first token."""
        top, _, left, _ = self.edges
        return top * self.pitch + left

    @property
    def flags(self) -> Iterator[str]:
        yield f"{self.height} x {self.width} in {self.shape[0] // self.pitch} x {self.pitch}"

    def evaluate(self, at: Evaluation) -> Floats:
        value = at.read(self.x).reshape(self.height, self.width, -1)
        top, bottom, left, right = self.edges
        edge = float(value.min()) if self.lowest else 0.0
        padded = np.pad(value, ((top, bottom), (left, right), (0, 0)), constant_values=edge)
        return float32(padded).reshape(self.shape)

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield self.x.node, Demand(activations)
        yield self, Demand(activations)

    def numbers(self, at: Quantising) -> Linear:
        before, after = at.formats[self.x.node], at.formats[self]
        return identity(before, self.shape[1], before.scale / after.scale)

    def draft(self, d: Drafting) -> None:
        out, x = d.tensor(self), d.tensors[self.x.node]
        linear: Linear = d.quantised.numbers[self]
        self._clear(d, x, out)
        for first, rows, line in line_blocks(self.width, self.height, d.config.max_rows):
            note = f"{self.name}: tokens {first} to {first + rows - 1}"
            begin = self.begin + first // self.width * self.pitch + first % self.width
            product(
                d, note, linear, x, out, rows=rows, first=self.rows[0] + first, o_first=begin,
                line=line, a_outer=line * x.stride, o_outer=self.pitch * out.stride if line else 0,
            )  # fmt: skip

    def _clear(self, d: Drafting, x: Tensor, out: Tensor) -> None:
        """Nothing of any token, and what an edge is of, to all around the map: above, left and right, below."""
        _, _, left, right = self.edges
        constant = edge_of(d.quantised.formats[self.x.node], d.quantised.formats[self], self.shape[1], self.lowest)
        end = self.begin + (self.height - 1) * self.pitch + self.width
        runs = [(0, self.begin), (end, self.shape[0] - end)]
        for first, rows in runs:
            for begin, count in blocks(rows, d.config.max_rows) if rows else ():
                self._fill(d, constant, x, out, first + begin, count, 0)
        if left + right and self.height > 1:
            begin = self.begin + self.width
            for first, rows, line in line_blocks(left + right, self.height - 1, d.config.max_rows):
                at = begin + first // (left + right) * self.pitch + first % (left + right)
                self._fill(d, constant, x, out, at, rows, line)

    def _fill(self, d: Drafting, constant: Linear, x: Tensor, out: Tensor, at: int, rows: int, line: int) -> None:
        outer = self.pitch * out.stride if line else 0
        product(
            d, f"{self.name}: edge from {at}", constant, x, out, rows=rows, first=self.rows[0], o_first=at,
            a_stride=0, line=line, o_outer=outer,
        )  # fmt: skip


def edge_of(stored: Format, out: Format, features: int, lowest: bool) -> Linear:
    """Zero times a feature of a token, and a bias: the lowest number of the format, or zero."""
    bias = -(1 << (out.width - 1)) if lowest else 0
    one, shift = multiplier_of(1.0)
    return Linear(
        Operand(stored), np.zeros((1, features), np.int16), 8, np.full(features, bias), np.full(features, one),
        np.full(features, shift),
    )  # fmt: skip
