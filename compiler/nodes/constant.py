"""A learned tensor."""

from dataclasses import dataclass, field

from patchloom.compiler.graph import Evaluation, Floats, Node


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    """E.g. position embeddings."""

    value: Floats = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape

    def evaluate(self, at: Evaluation) -> Floats:
        return self.value
