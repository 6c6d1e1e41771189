"""What the user's forward returns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from patchloom.compiler.graph import Evaluation, Floats, Indices, Node
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.quantise.formats import Demand


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
