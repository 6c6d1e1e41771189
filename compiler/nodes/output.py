"""What the user's forward returns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from patchloom.compiler.graph import Evaluation, Floats, Indices, Node
from patchloom.compiler.machine.commands import Kind, Space
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.program import Port
from patchloom.compiler.quantise.formats import Demand
from patchloom.compiler.schedule.buffers import aligned
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.image import ALIGNMENT
from patchloom.compiler.schedule.transfers import transfer


@dataclass(frozen=True, eq=False, kw_only=True)
class Output(Node):
    """The result `name`: element i of it, flattened, is element `index[i]` of x."""

    x: Node
    index: Indices = field(repr=False)  # of the result's shape, into x flattened

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape

    @property
    def flags(self) -> Iterator[str]:
        yield f"as {'x'.join(map(str, self.index.shape))}"

    def evaluate(self, at: Evaluation) -> Floats:
        return at.values[self.x].reshape(-1)[self.index]

    def demands(self, activations: int) -> Iterable[tuple[Node, Demand]]:
        return [(self.x, Demand(ELEMENT_WIDTH, power_of_two=True))]

    def draft(self, d: Drafting) -> None:
        """Stores the rows that it reads, unless another output of the same rows has."""
        tensor, features = d.tensors[self.x], self.x.shape[1]
        row, column = self.index // features, self.index % features
        first, last = int(row.min()), int(row.max())
        key = self.x, first, last
        if key not in d.stored:
            d.stored[key], note, rows = d.output_bytes, f"{self.name}: store", last - first + 1
            size = transfer(d, Kind.STORE, note, tensor, Space.OUTPUT, d.output_bytes, first=first, rows=rows)
            d.output_bytes = aligned(d.output_bytes + size, ALIGNMENT)
        index = (row - first) * tensor.stride * d.config.lanes + tensor.positions[column]
        elements = d.whole_beats((last - first + 1) * tensor.stride) * d.config.lanes
        form = d.quantised.formats[self.x]
        d.outputs.append(Port(self.name, self.index.shape, d.stored[key], elements, form.fraction, form.width, index))
