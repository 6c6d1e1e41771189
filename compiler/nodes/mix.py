"""Products of constant matrices with tokens: gathered, joined, averaged, interpolated, transposed ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import Kind, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import Ints, multiplier_of, operand_limits
from patchloom.compiler.node import Alignment, Evaluation, Floats, Heads, Node, View
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.schedule.bands import Band, bands
from patchloom.compiler.schedule.columns import runs
from patchloom.compiler.schedule.drafting import Drafting, Tensor
from patchloom.compiler.schedule.transfers import load_values

ALIKE = 64  # stands for the only value of a matrix besides 0: a power of two multiplies without an error


@dataclass(frozen=True, eq=False)
class PartNumbers:
    matrix: NDArray[np.int16] = field(repr=False)
    width: int
    multiplier: int
    shift: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Mix(Node):
    """Rectangles `matrices[i] @ x[i]` beside and above one another, which begin at the rows and columns `places[i]`.

    Once settled, each x is a block of a node: consecutive columns of consecutive rows, or such a block transposed.
    """

    is_layer: ClassVar[bool] = True

    x: tuple[View, ...]  # [tokens, features]
    matrices: tuple[Floats, ...] = field(repr=False)  # [rows, tokens]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, x: View, matrix: Floats, **options: object) -> "Mix":
        """All of it is one product."""
        return cls(x=(x,), matrices=(matrix,), places=((0, 0),), **options)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        self.require(len(self.x) == len(self.matrices) == len(self.places) > 0, "needs a matrix and a place for each x")
        for x, matrix in zip(self.x, self.matrices, strict=True):
            self.require(len(x.index) == matrix.shape[1], f"needs {matrix.shape[1]} tokens, x has {len(x.index)}")
        covered = np.zeros(self.shape, np.int64)
        for (row, column), (rows, columns) in zip(self.places, self.sizes, strict=True):
            covered[row : row + rows, column : column + columns] += 1
        self.require(bool((covered == 1).all()), "must make each element of its result once")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of each rectangle."""
        return [(len(matrix), x.shape[1]) for x, matrix in zip(self.x, self.matrices, strict=True)]

    @property
    def shape(self) -> tuple[int, int]:
        ends = [
            (row + rows, column + columns)
            for (row, column), (rows, columns) in zip(self.places, self.sizes, strict=True)
        ]
        return max(row for row, _ in ends), max(column for _, column in ends)

    @property
    def settled(self) -> bool:
        return all(view.block is not None or view.transposed.block is not None for view in self.x)

    @property
    def flags(self) -> Iterator[str]:
        for (rows, columns), matrix, view in zip(self.sizes, self.matrices, self.x, strict=True):
            turned = "" if view.block is not None else " transposed"
            yield f"{rows}x{columns} of {matrix.shape[1]}{turned}"

    @property
    def macs(self) -> int:
        """Nothing is multiplied where elements are only moved."""
        alike = all(_moves(matrix) for matrix in self.matrices)
        counts = zip(self.matrices, self.sizes, strict=True)
        return 0 if alike else sum(int(np.count_nonzero(matrix)) * columns for matrix, (_, columns) in counts)

    def evaluate(self, at: Evaluation) -> Floats:
        result = np.empty(self.shape, np.float32)
        for view, matrix, (row, column), (rows, columns) in self._parts():
            result[row : row + rows, column : column + columns] = matrix @ at.read(view)
        return result

    def _parts(self) -> Iterator[tuple[View, Floats, tuple[int, int], tuple[int, int]]]:
        return zip(self.x, self.matrices, self.places, self.sizes, strict=True)

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((tensor, Demand(activations)) for tensor in self.inputs)

    def numbers(self, at: Quantising) -> list[PartNumbers]:
        weights, _ = at.bits(self)
        return [self._numbers(at, *part, weights) for part in zip(self.x, self.matrices, strict=True)]

    def _numbers(self, at: Quantising, view: View, matrix: Floats, bits: int) -> PartNumbers:
        """A matrix of one value besides 0 is exact in any width, and 8 bits stream faster."""
        values = np.unique(matrix[matrix != 0])
        if len(values) <= 1:
            width, scale = 8, abs(float(values.sum())) / ALIKE or 1.0
        else:
            width = ELEMENT_WIDTH if bits == ELEMENT_WIDTH else 8
            scale = float(np.abs(values).max()) / operand_limits(width)[1]
        integers = np.rint(matrix / scale).astype(np.int16)
        ratio = scale * at.formats[view.node].scale / at.formats[self].scale
        return PartNumbers(integers, width, *multiplier_of(ratio))

    @property
    def alignments(self) -> Iterator[Alignment]:
        for view, _, (_, column), (_, columns) in self._parts():
            if view.block is not None:
                yield view.node, view.block[1], column, columns

    @property
    def heads(self) -> Iterator[Heads]:
        """The first column of a block, also of one that is transposed."""
        for view in self.x:
            yield view.node, (_block(view)[1],), 1

    @property
    def starts(self) -> Iterator[int]:
        yield from (column for _, column in self.places)

    def draft(self, d: Drafting) -> None:
        out = d.tensor(self, gathers=len({column for _, column in self.places}) == 1)  # whole rows at once
        numbers: list[PartNumbers] = d.quantised.numbers[self]
        known: dict[tuple[bytes, int], Tensor] = {}
        for i, (view, _, place, (_, columns)) in enumerate(self._parts()):
            self._part(d, f"{self.name}: part {i}", view, numbers[i], out, place, columns, known)

    def _part(
        self, d: Drafting, note: str, view: View, n: PartNumbers, out: Tensor, place: tuple[int, int], columns: int,
        known: dict[tuple[bytes, int], Tensor],
    ) -> None:  # fmt: skip
        """A block's rows are the stationary operand's, or its columns where it is transposed: from a chunk on."""
        x, (row, column) = d.tensors[view.node], place
        turned, (first, start) = view.block is None, _block(view)
        matrix = _spread(n.matrix, x.positions[start : start + n.matrix.shape[1]]) if turned else n.matrix
        here = out.positions[column : column + columns]
        for band in bands(matrix, d.config, d.config.lanes if turned else 1):
            a = self._matrix(d, f"{note} matrix", band.of(matrix), n.width, known)
            self._prove(d, note, n.width, band, x)
            # A row of a block that is transposed is a column, which no gap may come before.
            for begin, end in runs(here) if turned else [(0, columns)]:
                span, unit = x.at(first + (begin if turned else band.low), start)
                b_address = span, unit + (band.low // d.config.lanes if turned else 0)
                o_address = out.at(row + band.first, column + begin)
                places = {"a_address": a.at(), "b_address": b_address, "o_address": o_address}
                fields: dict[str, Any] = {}
                if out.statistics is not None:
                    places["o_statistics"] = out.statistics, row + band.first
                    fields["statistics"] = 1
                d.draft(
                    Kind.MATMUL, f"{note} rows {band.first} to {band.last - 1}", places,
                    rows=band.last - band.first, depth=band.high - band.low,
                    columns=int(here[end - 1] - here[begin]) + 1, a_stride=a.stride, a_wide=a.wide,
                    b_source=Stationary.COLUMNS if turned else Stationary.ROWS, b_stride=x.stride,
                    b_digits=bounds.digits(d.config, x.width), multiplier=n.multiplier, shift=n.shift,
                    o_stride=out.stride, o_wide=out.wide, **fields,
                )  # fmt: skip

    def _matrix(
        self, d: Drafting, note: str, value: NDArray[np.int16], width: int, known: dict[tuple[bytes, int], Tensor]
    ) -> Tensor:  # fmt: skip
        """Loaded once, however many blocks it multiplies."""
        key = value.tobytes(), len(value)
        if key not in known:
            known[key] = d.buffer(note, len(value), np.arange(value.shape[1]), width)
            load_values(d, note, known[key], value)
        return known[key]

    def _prove(self, d: Drafting, note: str, width: int, band: Band, x: Tensor) -> None:
        """No operand can make a sum leave the accumulator."""
        stationary = bounds.stationary_width(d.config, bounds.digits(d.config, x.width))
        bits = bounds.signed_bits(bounds.sums_on_chip(bounds.streamed(width), band.high - band.low, stationary))
        d.demand_accumulator(f"'{note}', every channel,", bits, "8-bit activations for this layer")


def _block(view: View) -> tuple[int, int]:
    """First row and column, of the view or of the view transposed."""
    block = view.block or view.transposed.block
    assert block, "settled operands are blocks"
    return block


def _spread(matrix: NDArray[np.int16], positions: Ints) -> NDArray[np.int16]:
    """With zeros wherever a row of the transposed block has a gap."""
    out = np.zeros((len(matrix), int(positions[-1] - positions[0]) + 1), np.int16)
    out[:, positions - positions[0]] = matrix
    return out


def _moves(matrix: Floats) -> bool:
    """Each row is one of the tokens, or zero."""
    return bool(((matrix == 0) | (matrix == 1)).all() and (np.count_nonzero(matrix, axis=1) <= 1).all())
