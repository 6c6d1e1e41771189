"""Products of constant matrices with tokens: gathered, joined, averaged, interpolated, transposed ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import FIELDS, Kind, Stationary
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import Ints, multiplier_of, operand_limits
from patchloom.compiler.node import Alignment, Evaluation, Floats, Heads, Node, View
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.schedule.bands import MOST_ROWS, Band, bands
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

    Their rows are `steps[i]` rows of the result apart, or one. Once settled, each x is a block of a node: consecutive
    columns of consecutive rows, or such a block transposed.
    """

    is_layer: ClassVar[bool] = True

    x: tuple[View, ...]  # [tokens, features]
    matrices: tuple[Floats, ...] = field(repr=False)  # [rows, tokens]
    places: tuple[tuple[int, int], ...]
    steps: tuple[int, ...] = ()

    @classmethod
    def of(cls, x: View, matrix: Floats, **options: object) -> "Mix":
        """All of it is one product."""
        return cls(x=(x,), matrices=(matrix,), places=((0, 0),), **options)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        self.require(len(self.x) == len(self.matrices) == len(self.places) > 0, "needs a matrix and a place for each x")
        for x, matrix in zip(self.x, self.matrices, strict=True):
            self.require(len(x.index) == matrix.shape[1], f"needs {matrix.shape[1]} tokens, x has {len(x.index)}")
        covered = np.zeros(self.shape, np.int64)
        for here in self.rectangles:
            covered[here] += 1
        self.require(bool((covered == 1).all()), "must make each element of its result once")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of each rectangle."""
        return [(len(matrix), x.shape[1]) for x, matrix in zip(self.x, self.matrices, strict=True)]

    @cached_property
    def rectangles(self) -> list[tuple[slice, slice]]:
        """Where each is in the result."""
        steps = self.steps or (1,) * len(self.places)
        return [
            (slice(row, row + (rows - 1) * step + 1, step), slice(column, column + columns))
            for (row, column), (rows, columns), step in zip(self.places, self.sizes, steps, strict=True)
        ]

    @property
    def shape(self) -> tuple[int, int]:
        return max(rows.stop for rows, _ in self.rectangles), max(columns.stop for _, columns in self.rectangles)

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
        for view, matrix, here in zip(self.x, self.matrices, self.rectangles, strict=True):
            result[here] = matrix @ at.read(view)
        return result

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
        for view, (_, column) in zip(self.x, self.places, strict=True):
            if view.block is not None:
                yield view.node, view.block[1], column, view.shape[1]

    @property
    def heads(self) -> Iterator[Heads]:
        """The first column of a block, also of one that is transposed."""
        for view in self.x:
            yield view.node, (_block(view)[1],), 1

    @property
    def starts(self) -> Iterator[int]:
        yield from (column for _, column in self.places)

    def draft(self, d: Drafting) -> None:
        # Statistics lie row by row, and are of rows written at once.
        gathers = all(rows.step == 1 and columns.start == 0 for rows, columns in self.rectangles)
        out = d.tensor(self, gathers=gathers)
        numbers: list[PartNumbers] = d.quantised.numbers[self]
        known: dict[tuple[bytes, int], Tensor] = {}
        for i, (view, here) in enumerate(zip(self.x, self.rectangles, strict=True)):
            self._part(d, f"{self.name}: part {i}", view, numbers[i], out, here, known)

    def _part(
        self, d: Drafting, note: str, view: View, n: PartNumbers, out: Tensor, where: tuple[slice, slice],
        known: dict[tuple[bytes, int], Tensor],
    ) -> None:  # fmt: skip
        """A block's rows are the stationary operand's, or its columns where it is transposed: from a chunk on."""
        x, (rows, columns) = d.tensors[view.node], where
        turned, (first, start) = view.block is None, _block(view)
        matrix = _spread(n.matrix, x.positions[start : start + n.matrix.shape[1]]) if turned else n.matrix
        here = out.positions[columns]
        o_stride = out.stride * rows.step
        most = MOST_ROWS if o_stride <= FIELDS["o_stride"].high else 1
        for band in bands(matrix, d.config, d.config.lanes if turned else 1, most):
            a = self._matrix(d, f"{note} matrix", band.of(matrix), n.width, known)
            self._prove(d, note, n.width, band, x)
            # A row of a block that is transposed is a column, which no gap may come before.
            for begin, end in runs(here) if turned else [(0, len(here))]:
                span, unit = x.at(first + (begin if turned else band.low), start)
                b_address = span, unit + (band.low // d.config.lanes if turned else 0)
                first_row = rows.start + band.first * rows.step
                o_address = out.at(first_row, columns.start + begin)
                places = {"a_address": a.at(), "b_address": b_address, "o_address": o_address}
                fields: dict[str, Any] = {}
                if out.statistics is not None:
                    places["o_statistics"] = out.statistics, first_row
                    fields["statistics"] = 1
                d.draft(
                    Kind.MATMUL, f"{note} rows {band.first} to {band.last - 1}", places,
                    rows=band.last - band.first, depth=band.high - band.low,
                    columns=int(here[end - 1] - here[begin]) + 1, a_stride=a.stride, a_wide=a.wide,
                    b_source=Stationary.COLUMNS if turned else Stationary.ROWS, b_stride=x.stride,
                    b_digits=bounds.digits(d.config, x.width), multiplier=n.multiplier, shift=n.shift,
                    o_stride=o_stride if most > 1 else 0, o_wide=out.wide, **fields,
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
