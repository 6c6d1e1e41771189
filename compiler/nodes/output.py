"""What the user's forward returns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from patchloom.compiler.machine.commands import Kind, Space
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.program import Port
from patchloom.compiler.node import Evaluation, Floats, Node, View
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.image import ALIGNMENT
from patchloom.compiler.schedule.transfers import transfer


@dataclass(frozen=True, eq=False, kw_only=True)
class Output(Node):
    """The result `name`, in the shape that the user gets: any arrangement of one node's elements."""

    x: View

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the node that it is of."""
        return self.x.node.shape

    @property
    def settled(self) -> bool:
        return self.x.base is not None and self.x.terms[0][1] == 1.0 and bool((self.x.index >= 0).all())

    @property
    def flags(self) -> Iterator[str]:
        yield f"as {'x'.join(map(str, self.x.shape))}"

    def evaluate(self, at: Evaluation) -> Floats:
        return at.read(self.x)

    def demands(self, activations: int) -> Iterable[tuple[Node, Demand]]:
        return [(self.x.node, Demand(ELEMENT_WIDTH, power_of_two=True))]

    def draft(self, d: Drafting) -> None:
        """Stores the rows that it reads, unless another output of the same rows has."""
        x, tensor = self.x.node, d.tensors[self.x.node]
        row, column = np.divmod(self.x.index, x.shape[1])
        first, last = int(row.min()), int(row.max())
        key = x, first, last
        if key not in d.stored:
            d.stored[key], note, rows = d.output_bytes, f"{self.name}: store", last - first + 1
            size = transfer(d, Kind.STORE, note, tensor, Space.OUTPUT, d.output_bytes, first=first, rows=rows)
            d.output_bytes = aligned(d.output_bytes + size, ALIGNMENT)
            if x.leaves() and rows == x.shape[0] and self._alone(d) and tensor.stride == d.whole_beats(tensor.stride):
                d.cuttable(x, tensor)
        index = (row - first) * tensor.stride * d.config.lanes + tensor.positions[column]
        elements = d.whole_beats((last - first + 1) * tensor.stride) * d.config.lanes
        form = d.quantised.formats[x]
        d.outputs.append(Port(self.name, self.x.shape, d.stored[key], elements, form.fraction, form.width, index))

    def _alone(self, d: Drafting) -> bool:
        """Nothing else reads the node."""
        return sum(self.x.node in node.inputs for node in d.graph.nodes()) == 1
