"""Every operation that torch.export may show: what it means here, or what to do instead. One file a family.

A new operation is a row and, at most, a handler in its family's file.
"""

from collections.abc import Mapping

from patchloom.compiler.frontend import (
    attention,
    convolution,
    elementwise,
    linear,
    mixture,
    movement,
    normalisation,
    reduction,
    spectrum,
)
from patchloom.compiler.frontend.site import Row, refusal

FAMILIES = (movement, elementwise, linear, convolution, normalisation, attention, reduction, spectrum, mixture)
OPERATIONS: Mapping[str, Row] = {name: row for family in FAMILIES for name, row in family.ROWS.items()}


def meaning_of(operation: str, *, of_complex: bool = False) -> Row:
    if of_complex:
        return spectrum.COMPLEX.get(operation, refusal(spectrum.HINT))
    return OPERATIONS.get(operation, refusal("see the list of supported operations in compiler/frontend, ROWS"))
