"""A product with learned weights, and what the epilogue makes of its sums."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.graph import Evaluation, Floats, Indices, Node
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.nodes.float32 import normalise
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, demand_of
from patchloom.compiler.quantise.linear import Epilogue, Linear, normalised_demand
from patchloom.compiler.schedule.columns import spread
from patchloom.compiler.schedule.drafting import Drafting, Tensor, blocks
from patchloom.compiler.schedule.products import product, products
from patchloom.compiler.schedule.transfers import load_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Matmul(Node):
    """`activation(norm(x[rows]) @ weight.T + bias) + residual`.

    `epsilon` given: norm is layer normalisation without scale and shift (they are folded into weight and bias).
    """

    is_layer: ClassVar[bool] = True

    x: Node
    weight: Floats = field(repr=False)  # [outputs, inputs]
    bias: Floats = field(repr=False)  # [outputs]
    epsilon: float | None = None
    activation: str = "none"  # of `ACTIVATIONS`
    residual: Node | None = None
    rows: tuple[int, int]  # [first, last) row of x

    def __post_init__(self) -> None:
        outputs, inputs = self.weight.shape
        self.require(self.x.shape[1] == inputs, f"needs {inputs} features, x has {self.x.shape[1]}")
        self.require(self.bias.shape == (outputs,), f"bias must have shape ({outputs},), not {self.bias.shape}")
        first, last = self.rows
        self.require(0 <= first < last <= self.x.shape[0], f"rows {self.rows} must lie in x's {self.x.shape[0]} rows")
        names = ", ".join(ACTIVATIONS)
        self.require(self.activation in ACTIVATIONS, f"activation must be one of {names}, not '{self.activation}'")
        if self.residual is not None:
            self.require(self.residual.shape == self.shape, f"residual is {self.residual.shape}, not {self.shape}")
            clips = ACTIVATIONS[self.activation].limit is not None
            self.require(not clips, f"must not add a residual to {self.activation}, which saturates")

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.weight.shape[0]

    @property
    def flags(self) -> Iterator[str]:
        if self.rows != (0, self.x.shape[0]):
            yield f"rows {self.rows[0]}:{self.rows[1]}"
        if self.epsilon is not None:
            yield f"norm({self.epsilon:g})"
        if ACTIVATIONS[self.activation].post:
            yield self.activation
        if self.residual is not None:
            yield "+ residual"

    @property
    def macs(self) -> int:
        return self.shape[0] * self.weight.size

    def evaluate(self, at: Evaluation) -> Floats:
        operand = normalise(at.values[self.x][slice(*self.rows)], self.epsilon)
        at.observe(self, "operand", operand)
        preactivation = operand @ self.weight.T + self.bias
        at.observe(self, "preactivation", preactivation)
        result = ACTIVATIONS[self.activation](preactivation)
        at.observe(self, "result", result)
        return result if self.residual is None else result + at.values[self.residual]

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield self, demand_of(self.activation)
        if self.epsilon is None:
            yield self.x, Demand(activations)
        else:
            yield self.x, normalised_demand(self.x.shape[1], self.epsilon)
        if self.residual is not None:
            yield from ((tensor, Demand(ELEMENT_WIDTH)) for tensor in (self, self.residual))

    def numbers(self, at: Quantising) -> Linear:
        weights, activations = at.bits(self)
        operand = at.operand(self, self.x, self.epsilon, activations)
        return at.linear(operand, self.weight, self.bias, weights, Epilogue.of(self.activation, at.formats[self]))

    @property
    def normalised(self) -> Node | None:
        return None if self.epsilon is None else self.x

    @property
    def divides(self) -> bool:
        return self.residual is None

    def streams(self, x: Node) -> bool:
        return self.epsilon is None and x is not self.residual

    def loads(self, x: Node) -> bool:
        return self.streams(x)

    def packs(self, lanes: int) -> bool:
        return self.residual is None

    def draft(self, d: Drafting) -> None:
        linear: Linear = d.quantised.numbers[self]
        x = None if self.x in d.waiting else d.operand(self, self.x)
        added = None if self.residual is None else d.tensors[self.residual]
        out = d.tensor(self, gathers=True, over=d.free(self.residual, x))
        if x is not None:
            products(d, self.name, linear, x, out, first=self.rows[0], added=added)
            return
        for first, rows in blocks(out.rows, min(d.most_rows(self.x), d.config.max_rows)):
            part = load_rows(d, self.x, self.rows[0] + first, rows)
            note = f"{self.name}: rows {first} to {first + rows - 1}"
            product(d, note, linear, part, out, rows=rows, o_first=first, added=added)

    def draft_columns(self, d: Drafting, note: str, columns: Indices) -> Tensor:
        linear: Linear = d.quantised.numbers[self]
        halved, cuts = self in d.packed, {0, *(np.flatnonzero(np.diff(columns) != 1) + 1).tolist()}
        positions = spread(len(columns), cuts, d.config.lanes << halved)
        out = d.buffer(note, self.shape[0], positions, d.quantised.formats[self].width, packed=halved)
        products(d, note, linear.columns(columns), d.operand(self, self.x), out, first=self.rows[0])
        return out
