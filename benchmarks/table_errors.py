"""Largest errors of the function tables, over every input code: `python -m benchmarks.table_errors`.

Prints them, and writes them to docs/benchmarks.md.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from docs.page import DOCS, write
from patchloom.compiler.activations import ROWS, Activation
from patchloom.compiler.machine.fixed import (
    EPILOGUE_WIDTH,
    EXP_ONE,
    ROW_ONE,
    SCORE_FRACTION,
    SUM_WIDTH,
    VARIANCE_WIDTH,
    Ints,
    exp2_negative,
    reciprocal,
    rsqrt,
)
from patchloom.compiler.machine.tables import activate

Floats = NDArray[np.float64]


def activation_error(row: Activation) -> float:
    """Absolute, of every word that the epilogue can hold."""
    assert row.fraction is not None
    worst, one = 0.0, 1 << row.fraction
    for first in range(-(1 << (EPILOGUE_WIDTH - 1)), 1 << (EPILOGUE_WIDTH - 1), 1 << 20):
        code = np.arange(first, first + (1 << 20))
        exact = row.function(torch.from_numpy(code / one)).numpy()
        worst = max(worst, float(np.abs(activate(row.post, code, row.table) / one - exact).max()))
    return worst


def exp2_error(width: int) -> float:
    """Absolute, of 1 = exp of 0, for every score difference until all is zero."""
    code = np.arange(34 << SCORE_FRACTION)
    one = EXP_ONE >> (16 - width)
    return float(np.abs(exp2_negative(code, width) / one - 2.0 ** (-code / (1 << SCORE_FRACTION))).max())


def _interval_error(
    function: Callable[[Ints], tuple[Ints, Ints]], exact: Callable[[Floats], Floats], width: int, first: int
) -> float:
    """Relative, at both ends of all inputs that share the 18 bits which index a table."""
    shift = width - 18
    low = np.arange(first, 1 << 18) << shift
    worst = 0.0
    for value in (low, low + (1 << shift) - 1):
        mantissa, exponent = function(value)
        approximate = mantissa / ROW_ONE * 2.0**-exponent
        worst = max(worst, float(np.abs(approximate / exact(value.astype(np.float64)) - 1).max()))
    return worst


def reciprocal_error() -> float:
    return _interval_error(reciprocal, lambda x: 1 / x, SUM_WIDTH, 1 << 17)


def rsqrt_error() -> float:
    return _interval_error(rsqrt, lambda x: 1 / np.sqrt(x), VARIANCE_WIDTH, 1 << 16)


def table_errors() -> dict[str, float]:
    return {
        **{f"{row.title}, absolute": activation_error(row) for row in ROWS if row.table},
        "exp2 to 16 bits, absolute": exp2_error(16),
        "exp2 to 8 bits, absolute": exp2_error(8),
        "reciprocal, relative": reciprocal_error(),
        "reciprocal square root, relative": rsqrt_error(),
    }


def table(errors: dict[str, float]) -> str:
    rows = [f"| {name} | {error:.2e} |" for name, error in errors.items()]
    return "\n".join(["| table | largest error |", "|---|--:|", *rows, ""])


if __name__ == "__main__":
    made = table(table_errors())
    print(made, end="")
    write(DOCS / "benchmarks.md", "benchmarks.table_errors", made)
