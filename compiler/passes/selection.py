"""Views as rows and columns of matrices."""

from dataclasses import dataclass

import numpy as np

from patchloom.compiler.node import Floats, Indices, Node, View
from patchloom.compiler.nodes import Input


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows and columns of a matrix; column -1 is zero."""

    base: Node
    rows: Indices
    columns: Indices

    @property
    def block(self) -> tuple[int, int] | None:
        """(first, last) when the rows are consecutive."""
        first = int(self.rows[0])
        consecutive = np.array_equal(self.rows, np.arange(first, first + len(self.rows)))
        return (first, first + len(self.rows)) if consecutive else None

    @property
    def all_columns(self) -> bool:
        return np.array_equal(self.columns, np.arange(self.base.shape[1]))

    @property
    def matrix(self) -> Floats:
        """[columns, base features]: what selects the columns as a matmul."""
        chosen = np.zeros((len(self.columns), self.base.shape[1]), np.float32)
        used = self.columns >= 0
        chosen[np.flatnonzero(used), self.columns[used]] = 1
        return chosen


def selection(view: View, of: int = 0) -> Selection | None:
    """How the view picks rows and columns of its term `of`, taking what is of other terms for zeros."""
    base = view.terms[of][0]
    if isinstance(base, Input) or len(base.shape) != 2 or view.terms[of][1] != 1.0:
        return None
    index = view.part(of)
    present = index >= 0
    row = int(present.any(axis=1).argmax())
    used = present[row]
    if not used.any() or not (present == used).all():
        return None
    features = base.shape[1]
    columns = np.where(used, index[row] % features, -1)
    rows = index[:, int(used.argmax())] // features
    if not np.array_equal(index[:, used], rows[:, None] * features + columns[used]):
        return None
    return Selection(base, rows, columns)
