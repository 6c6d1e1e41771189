"""A tensor of the user's, gathered into rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from patchloom.compiler.graph import Evaluation, Floats, Indices, Node
from patchloom.compiler.quantise.formats import Demand


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """Element [t, f] is element `index[t, f]` of the flattened user input `name` of one sample; -1 reads zero."""

    index: Indices = field(repr=False)
    user_shape: tuple[int, ...]  # without the batch dimension

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.shape

    @property
    def user_input(self) -> tuple[int, ...]:
        return self.user_shape

    @property
    def flags(self) -> Iterator[str]:
        yield f"of {'x'.join(map(str, self.user_shape))}"

    def evaluate(self, at: Evaluation) -> Floats:
        value = np.asarray(at.inputs[self.name], np.float32)
        if value.shape != self.user_shape:
            raise ValueError(f"input '{self.name}' must have shape {self.user_shape}, not {value.shape}")
        return np.append(value.reshape(-1), np.float32(0))[self.index]

    def demands(self, activations: int) -> Iterable[tuple[Node, Demand]]:
        return [(self, Demand(power_of_two=True))]
