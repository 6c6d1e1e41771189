"""A product with learned weights, and what the epilogue makes of its sums."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.graph import Evaluation, Floats, Node
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.nodes.float32 import normalise
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, demand_of
from patchloom.compiler.quantise.linear import Epilogue, Linear, normalised


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
            yield self.x, normalised(self.x.shape[1], self.epsilon)
        if self.residual is not None:
            yield from ((tensor, Demand(ELEMENT_WIDTH)) for tensor in (self, self.residual))

    def numbers(self, at: Quantising) -> Linear:
        weights, activations = at.bits(self)
        operand = at.operand(self, self.x, self.epsilon, activations)
        return at.linear(operand, self.weight, self.bias, weights, Epilogue.of(self.activation, at.formats[self]))
