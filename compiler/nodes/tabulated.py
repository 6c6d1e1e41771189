"""A function of single elements that no activation is: read from a table over the values that calibration has seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from patchloom.compiler.activations import tried
from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import multiplier_of
from patchloom.compiler.machine.tables import CODE_BITS, ENTRIES, ENTRY, FRACTION_BITS, LAST, MIDDLE, Table
from patchloom.compiler.node import Evaluation, Floats, Node, View, float32
from patchloom.compiler.nodes.rows import OfRows
from patchloom.compiler.quantise.calibration import Observed
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format
from patchloom.compiler.quantise.linear import Linear, Operand
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.products import products

MARGIN = 0.25  # of the values seen, by which others may lie beside them
WORST = 0.02  # of the largest result: an error of more is refused


@dataclass(frozen=True, eq=False, kw_only=True)
class Tabulated(OfRows):
    """The function of each element of x."""

    x: View  # [tokens, features]
    apply: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.x.shape[1]

    def evaluate(self, at: Evaluation) -> Floats:
        x = at.read(self.x)
        at.observe(self, "operand", x)
        return float32(tried(self.apply, x.astype(np.float64)))

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield self.x.node, Demand(ELEMENT_WIDTH)
        yield self, Demand(activations)

    def numbers(self, at: Quantising) -> Linear:
        stored, out, seen = at.formats[self.x.node], at.formats[self], at.observed(self, "operand")
        for low, high in self._ranges(stored, seen):
            found = self._through(stored, out, low, high)
            if found is not None and self._error(found, stored, out, seen) <= WORST:
                return found
        raise ValueError(
            f"changes too much between {seen.least:.4g} and {seen.most:.4g} for a table of {ENTRIES} entries: "
            "multiply, add or normalise, so that it need not"
        )

    def _ranges(self, stored: Format, seen: Observed) -> Iterator[tuple[float, float]]:
        """All that x can be, where the function is finite; else what was seen, with a margin that keeps the sign."""
        reach = stored.scale * 2 ** (stored.width - 1)
        yield -reach, reach
        margin = MARGIN * ((seen.most - seen.least) or abs(seen.most) or 1.0)
        low, high = seen.least - margin, seen.most + margin
        yield (
            (max(low, seen.least / 2) if seen.least > 0 else low),
            (min(high, seen.most / 2) if seen.most < 0 else high),
        )
        yield seen.least, seen.most

    def _through(self, stored: Format, out: Format, low: float, high: float) -> Linear | None:
        """Words are the distance from the middle; the table's values as fine as its entries can hold."""
        step, middle = max(high - low, stored.scale) / 2**CODE_BITS, round((low + high) / 2 / stored.scale)
        words = np.arange(ENTRIES + 1) * (1 << FRACTION_BITS) - MIDDLE
        with np.errstate(all="ignore"):
            value = tried(self.apply, middle * stored.scale + words * step)
        if not np.isfinite(value).all():
            return None
        most = out.scale * 2 ** (out.width - 1)
        for finer in range(ENTRY["base"].width - 1 - out.width, -1, -1):
            unit = out.scale / 2**finer
            try:
                table = Table.through(self.name, np.clip(value, -2 * most, 2 * most) / -unit)
            except ValueError:
                continue
            multiplier, shift = multiplier_of(stored.scale / step)
            features = self.shape[1]
            return Linear(
                Operand(stored), np.eye(features, dtype=np.int16), 8, np.full(features, -middle),
                np.full(features, multiplier), np.full(features, shift), Post.ALONE, finer, table,
            )  # fmt: skip
        return None

    def _error(self, linear: Linear, stored: Format, out: Format, seen: Observed) -> float:
        """The largest on what was seen, as a share of the largest result."""
        x = np.linspace(seen.least, seen.most, 4 * ENTRIES)
        assert linear.table is not None
        step = stored.scale / (linear.multiplier[0] / 2.0 ** linear.shift[0])
        code = np.rint((x + linear.bias[0] * stored.scale) / step).astype(np.int64) + MIDDLE
        found = -linear.table(np.clip(code, 0, LAST)) * out.scale / 2**linear.post_shift
        expected = tried(self.apply, x)
        return float(np.abs(found - expected).max() / max(np.abs(expected).max(), out.scale))

    def draft(self, d: Drafting) -> None:
        linear: Linear = d.quantised.numbers[self]
        products(d, self.name, linear, d.tensors[self.x.node], d.tensor(self, gathers=True), first=self.rows[0])
