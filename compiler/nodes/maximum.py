"""The largest of several tensors, element by element: pooling by the maximum."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from patchloom.compiler.machine.commands import Residual
from patchloom.compiler.node import Evaluation, Floats, Node, View
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.quantise.linear import Linear, identity
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.products import patches
from patchloom.compiler.walk import Walk


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximum(Node):
    """Once settled, each x is whole rows of a node, as far apart as a machine can walk.

    Elements that are nothing are zero, as in any view; if `pooled`, they are left out.
    """

    is_layer: ClassVar[bool] = True

    x: tuple[View, ...]  # [tokens, features]
    pooled: bool = False

    def __post_init__(self) -> None:
        self.require(len({view.shape for view in self.x}) == 1, "needs tensors of one shape")

    @property
    def shape(self) -> tuple[int, int]:
        return self.x[0].shape[0], self.x[0].shape[1]

    @property
    def settled(self) -> bool:
        return all(walk is not None for walk in self.walks)

    @cached_property
    def walks(self) -> list[Walk | None]:
        return [Walk.of(view) for view in self.x]

    @property
    def flags(self) -> Iterator[str]:
        yield f"of {len(self.x)}"

    def evaluate(self, at: Evaluation) -> Floats:
        return np.asarray(np.maximum.reduce([at.read(view) for view in self.x]))

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((node, Demand(activations)) for node in (*self.inputs, self))

    def numbers(self, at: Quantising) -> list[Linear]:
        out = at.formats[self]
        return [identity(at.formats[x], self.shape[1], at.formats[x].scale / out.scale) for x in self.inputs]

    def streams(self, x: Node, lanes: int) -> bool:
        return -(-x.shape[1] // lanes) % 2 == 0

    def draft(self, d: Drafting) -> None:
        """Each takes its place where it is larger than those before it."""
        out, numbers = d.tensor(self), d.quantised.numbers[self]
        for i, (view, walk) in enumerate(zip(self.x, self.walks, strict=True)):
            assert walk is not None, "a settled maximum is of walks"
            meets: dict[str, Any] = {"second": out, "residual": Residual.MAXIMUM} if i else {}
            patches(d, f"{self.name}: {i}", walk, numbers[i], d.tensors[view.node], out, **meets)
