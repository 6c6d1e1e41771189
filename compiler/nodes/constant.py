"""A learned tensor."""

from dataclasses import dataclass, field

import numpy as np

from patchloom.compiler.machine.commands import Space
from patchloom.compiler.node import Evaluation, Floats, Node
from patchloom.compiler.schedule.columns import extent
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.transfers import load


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
        form, positions = d.quantised.formats[self], d.layouts[self]
        stride = -(-extent(positions) // d.config.lanes)
        value = np.zeros((self.shape[0], stride * d.config.lanes), "<i2")
        value[:, positions] = form.round(self.value)
        size = d.whole_beats(self.shape[0] * stride) * d.chunk_bytes
        load(d, self, Space.PROGRAM, d.image.add(self.name, value.tobytes().ljust(size, b"\0")))
