"""A tensor of the user's: while a model is captured one flat row, in the canonical graph gathered into rows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from patchloom.compiler.machine.commands import Space
from patchloom.compiler.machine.program import ELEMENT_BYTES, Port
from patchloom.compiler.node import Evaluation, Floats, Indices, Node
from patchloom.compiler.origin import NOWHERE, Origin
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.columns import extent
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.image import ALIGNMENT
from patchloom.compiler.schedule.transfers import load


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """Element [t, f] is element `index[t, f]` of the flattened user input `name` of one sample; -1 reads zero.

    Views of an input may be any arrangement of it: the last pass makes of each a node that is gathered so.
    """

    index: Indices = field(repr=False)
    user_shape: tuple[int, ...]  # without the batch dimension

    @classmethod
    def flat(cls, name: str, user_shape: tuple[int, ...], origin: Origin = NOWHERE) -> "Input":
        """The user's tensor as it is, in one row."""
        return cls(name=name, index=np.arange(math.prod(user_shape))[None], user_shape=user_shape, origin=origin)

    def gathered(self, index: Indices) -> "Input":
        """Another arrangement of what it holds."""
        return replace(self, index=np.append(self.index.reshape(-1), -1).take(index))

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

    def packs(self, lanes: int) -> bool:
        return True

    def draft(self, d: Drafting) -> None:
        """Loaded at once, or part by part for the only product that reads it."""
        positions, packed, form = d.layouts[self], self in d.packed, d.quantised.formats[self]
        stride = -(-extent(positions) // (d.config.lanes << packed))
        if self in d.cuts:
            d.waiting[self], size = d.input_bytes, d.chunk_bytes * d.whole_beats(self.shape[0] * stride)
        else:
            size = load(d, self, Space.INPUT, d.input_bytes)
            if self._alone(d) and stride == d.whole_beats(stride):
                d.cuttable(self, d.tensors[self])
        index = np.full((self.shape[0], stride * (d.config.lanes << packed)), -1, np.int64)
        index[:, positions] = self.index
        flat = np.full(size // ELEMENT_BYTES << packed, -1, np.int64)
        flat[: index.size] = index.reshape(-1)
        where = d.input_bytes, len(flat)
        d.inputs.append(Port(self.name, self.user_shape, *where, form.fraction, form.width, flat, packed=packed))
        d.input_bytes = aligned(d.input_bytes + size, ALIGNMENT)

    def _alone(self, d: Drafting) -> bool:
        """One node reads it, at once, and can load it part by part."""
        readers = {node for node in d.graph.nodes() if self in node.inputs}
        heads = {x for node in d.separable for x in node.inputs}
        return len(readers) == 1 and readers.isdisjoint(heads) and all(node.loads(self) for node in readers)
