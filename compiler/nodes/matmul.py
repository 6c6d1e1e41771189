"""A product with learned weights, and what the epilogue makes of its sums."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.machine.commands import Residual
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.node import Evaluation, Floats, Indices, Node, View
from patchloom.compiler.nodes.float32 import normalise
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, demand_of
from patchloom.compiler.quantise.linear import Epilogue, Linear, normalised_demand
from patchloom.compiler.schedule.columns import spread
from patchloom.compiler.schedule.drafting import Drafting, Tensor, blocks
from patchloom.compiler.schedule.products import patches, product, products
from patchloom.compiler.schedule.transfers import leave, load_rows
from patchloom.compiler.walk import Walk


@dataclass(frozen=True, eq=False, kw_only=True)
class Matmul(Node):
    """`activation(norm(x) @ weight.T + bias)`, plus a residual or times a factor; x is rows of a node once settled.

    `epsilon` given: norm is layer normalisation without scale and shift (they are folded into weight and bias), or that
    by the root mean square if it is not `centred`.
    """

    is_layer: ClassVar[bool] = True

    x: View  # [tokens, inputs]
    weight: Floats = field(repr=False)  # [outputs, inputs]
    bias: Floats = field(repr=False)  # [outputs]
    epsilon: float | None = None
    centred: bool = True
    activation: str = "none"  # of `ACTIVATIONS`
    residual: View | None = None  # of the result's shape
    factor: View | None = None  # likewise, instead of a residual

    def __post_init__(self) -> None:
        outputs, inputs = self.weight.shape
        self.require(self.x.shape[1] == inputs, f"needs {inputs} features, x has {self.x.shape[1]}")
        self.require(self.bias.shape == (outputs,), f"bias must have shape ({outputs},), not {self.bias.shape}")
        names = ", ".join(ACTIVATIONS)
        self.require(self.activation in ACTIVATIONS, f"activation must be one of {names}, not '{self.activation}'")
        for name, view in (("residual", self.residual), ("factor", self.factor)):
            self.require(view is None or view.shape == self.shape, f"{name} is {view and view.shape}, not {self.shape}")
        row = ACTIVATIONS[self.activation]
        clips = self.residual is not None and row.limit is not None
        self.require(not clips, f"must not add a residual to {self.activation}, which saturates")
        scaled = self.factor is not None and not row.any_scale
        self.require(not scaled, f"must not multiply {self.activation}, which sets its word's scale")
        self.require(self.residual is None or self.factor is None, "must not have both a residual and a factor")

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.weight.shape[0]

    @property
    def settled(self) -> bool:
        reads = self.x.rows is not None or (self.walk is not None and self.epsilon is None)
        return reads and (self.second is None or self.second.is_whole())

    @property
    def second(self) -> View | None:
        return self.residual if self.factor is None else self.factor

    @property
    def meets(self) -> Residual:
        """How its result does so with `second`."""
        if self.factor is not None:
            return Residual.MULTIPLY
        return Residual.NONE if self.residual is None else Residual.ADD

    @cached_property
    def walk(self) -> Walk | None:
        """How it finds patches, where x is no rows of a node."""
        return None if self.x.rows else Walk.of(self.x)

    @property
    def rows(self) -> tuple[int, int]:
        """[first, last) of the node that it reads."""
        if self.walk is not None:
            return self.walk.first, self.walk.first + self.walk.reach + 1
        assert self.x.rows, "a settled product reads rows"
        return self.x.rows

    @property
    def flags(self) -> Iterator[str]:
        if self.walk is not None:
            taps, rows = self.walk.taps, self.walk.rows
            yield f"{taps.lines} x {taps.line} taps at {rows.lines} x {rows.line} places from {self.walk.first} on"
        elif self.rows != (0, self.x.node.shape[0]):
            yield f"rows {self.rows[0]}:{self.rows[1]}"
        if self.epsilon is not None:
            yield f"{'norm' if self.centred else 'rms'}({self.epsilon:g})"
        if ACTIVATIONS[self.activation].post:
            yield self.activation
        if self.residual is not None:
            yield "+ residual"
        if self.factor is not None:
            yield "* factor"

    @property
    def macs(self) -> int:
        return self.shape[0] * int(np.count_nonzero(self.weight))

    def evaluate(self, at: Evaluation) -> Floats:
        operand = normalise(at.read(self.x), self.epsilon, centred=self.centred)
        at.observe(self, "operand", operand)
        preactivation = operand @ self.weight.T + self.bias
        at.observe(self, "preactivation", preactivation)
        result = ACTIVATIONS[self.activation](preactivation)
        at.observe(self, "result", result)
        if self.factor is not None:
            return result * at.read(self.factor)
        return result if self.residual is None else result + at.read(self.residual)

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield self, demand_of(self.activation)
        if self.epsilon is None:
            yield self.x.node, Demand(activations)
        else:
            yield self.x.node, normalised_demand(self.x.shape[1], self.epsilon)
        if self.residual is not None:
            yield from ((tensor, Demand(ELEMENT_WIDTH)) for tensor in (self, self.residual.node))
        if self.factor is not None:
            yield self.factor.node, Demand(ELEMENT_WIDTH)

    def numbers(self, at: Quantising) -> Linear:
        weights, activations = at.bits(self)
        operand = at.operand(self, self.x.node, self.epsilon, activations, centred=self.centred)
        out = at.formats[self]
        if self.factor is None:
            epilogue = Epilogue.of(self.activation, out)
        else:
            largest = at.observed(self, "result").absmax
            epilogue = Epilogue.times(self.activation, out, at.formats[self.factor.node], largest)
        return at.linear(operand, self.weight, self.bias, weights, epilogue)

    @property
    def normalised(self) -> Node | None:
        return None if self.epsilon is None else self.x.node

    @property
    def divides(self) -> bool:
        return self.second is None and self.walk is None

    def streams(self, x: Node, lanes: int) -> bool:
        """Of patches no half of a chunk may be left out, which nothing would have written."""
        halves = -(-x.shape[1] // lanes)
        return self.loads(x) or (self._only_streams(x) and halves % 2 == 0)

    def loads(self, x: Node) -> bool:
        return self._only_streams(x) and self.walk is None

    def _only_streams(self, x: Node) -> bool:
        return self.epsilon is None and (self.second is None or x is not self.second.node)

    def leaves(self) -> bool:
        return self.second is None and self.walk is None

    def packs(self, lanes: int) -> bool:
        return self.second is None

    def draft(self, d: Drafting) -> None:
        linear: Linear = d.quantised.numbers[self]
        residual = None if self.residual is None else self.residual.node
        x = None if self.x.node in d.waiting else d.operand(self, self.x.node)
        out = None if self in d.cuts else d.tensor(self, gathers=True, over=d.free(residual, x))
        second: Any = {"second": None if self.second is None else d.tensors[self.second.node], "residual": self.meets}
        if self.walk is not None:
            patches(d, self.name, self.walk, linear, d.tensors[self.x.node], d.tensors[self], **second)
            return
        if x is not None and out is not None:
            products(d, self.name, linear, x, out, first=self.rows[0], **second)
            return
        cut = [node for node in (self, self.x.node) if node in d.cuts]
        for first, rows in blocks(self.shape[0], min(d.config.max_rows, *map(d.most_rows, cut))):
            note, begin = f"{self.name}: rows {first} to {first + rows - 1}", self.rows[0] + first
            operand, a_first = (load_rows(d, self.x.node, begin, rows), 0) if x is None else (x, begin)
            result, o_first = (d.rows(self, note, rows), 0) if out is None else (out, first)
            product(d, note, linear, operand, result, rows=rows, first=a_first, o_first=o_first, **second)
            if out is None:
                leave(d, self, result, first)

    def draft_columns(self, d: Drafting, note: str, columns: Indices) -> Tensor:
        linear: Linear = d.quantised.numbers[self]
        halved, cuts = self in d.packed, {0, *(np.flatnonzero(np.diff(columns) != 1) + 1).tolist()}
        positions = spread(len(columns), cuts, d.config.lanes << halved)
        out = d.buffer(note, self.shape[0], positions, d.quantised.formats[self].width, packed=halved)
        products(d, note, linear.columns(columns), d.operand(self, self.x.node), out, first=self.rows[0])
        return out
