"""A learned tensor."""

from dataclasses import dataclass, field

from patchloom.compiler.node import Evaluation, Floats, Node
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.transfers import load_values


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    """E.g. position embeddings."""

    value: Floats = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def evaluate(self, at: Evaluation) -> Floats:
        return self.value

    def draft(self, d: Drafting) -> None:
        load_values(d, self.name, d.tensor(self), d.quantised.formats[self].round(self.value))
