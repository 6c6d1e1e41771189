"""What is computed head by head."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from patchloom.compiler.node import Floats, Node
from patchloom.compiler.schedule.drafting import Drafting, Place, Tensor, blocks


class ByHead(Node):
    """Makes a rectangle of each head: heads side by side, windows one above the other."""

    windows: int

    @property
    def rectangles(self) -> tuple[int, int, int]:
        """How many there are, rows and columns of each."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        count, rows, columns = self.rectangles
        return self.windows * rows, count // self.windows * columns

    @property
    def starts(self) -> Iterable[int]:
        return range(0, self.shape[1], self.rectangles[2])

    @property
    def unbroken(self) -> Iterable[tuple[int, int]]:
        return pairwise([*self.starts, self.shape[1]])

    def arranged(self, heads: Floats) -> Floats:
        count, rows, columns = self.rectangles
        parts = heads.reshape(self.windows, count // self.windows, rows, columns)
        return parts.transpose(0, 2, 1, 3).reshape(self.shape)

    def places(self, d: Drafting, out: Tensor) -> Iterator[tuple[int, str, int, int, Place]]:
        """Of each head: some rows from a first one on, and where they go."""
        count, height, columns = self.rectangles
        for head in range(count):
            window, column = divmod(head, count // self.windows)
            for first, rows in blocks(height, d.config.max_rows):
                note = f"{self.name}: head {head}" + (f" rows from {first}" if rows < height else "")
                yield head, note, first, rows, out.at(window * height + first, column * columns)
