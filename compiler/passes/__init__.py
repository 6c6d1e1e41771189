"""From operations as users write them to the canonical graph: one rewrite a file, in the order of `PIPELINE`."""

from collections.abc import Mapping, Sequence

from patchloom.compiler.node import View
from patchloom.compiler.passes import (
    activations,
    affine,
    columns,
    constants,
    gates,
    key_biases,
    leftovers,
    lone_norms,
    lone_scales,
    norms,
    operands,
    order,
    part_norms,
    parts,
    products,
    residuals,
    scales,
    tokens,
    written,
)
from patchloom.compiler.passes.engine import Pass
from patchloom.compiler.passes.results import settle_result
from patchloom.compiler.problems import Problem

# Operations are gone once a pass turned all of their kind into others.
PIPELINE: tuple[Pass, ...] = (
    written.PASS,  # first, while activations and norms that are written out stand as users wrote them
    products.PASS,  # early, so that what reads their heads finds rows
    order.PASS,  # tokens in another order are computed as they lie
    scales.PASS,  # constant factors and shifts vanish in the layers before them ...
    affine.PASS,  # ... or behind; before norms, so that nothing stands between norm and layer
    parts.PASS,  # layers over parts of tokens are layers over whole ones; before columns
    columns.PASS,  # layers that read some columns read all; before norms, which need the whole token
    part_norms.PASS,  # norms of parts of tokens become norms of whole ones
    norms.PASS,  # norms become part of the layers that read them ...
    lone_norms.PASS,  # ... and a layer of their own where anything else does
    lone_scales.PASS,  # as do factors
    activations.PASS,  # before residuals: a layer applies its activation first
    constants.PASS,  # positions added to patches, so that a class token can join what is one layer by now
    tokens.PASS,  # class tokens join the layer over the input, and positions added after them its residual
    gates.PASS,  # before residuals: a layer meets one other tensor, and fewer layers can take a factor
    residuals.PASS,  # the last operation that is not canonical
    key_biases.PASS,  # what softmax does not see takes no range; after all that adds to a bias
    leftovers.PASS,  # functions that no pass knew are read from tables
    operands.PASS,  # by rows and columns; last, because it inserts layers that select them
)


def rewrite(results: Mapping[str, View], lost: Sequence[View] = ()) -> tuple[dict[str, View], list[Problem]]:
    """All passes over the named results of one task; what is lost is only looked at for problems."""
    views = [*results.values(), *lost]
    problems: list[Problem] = []
    for each in PIPELINE:
        views = each(views, problems)
    settled = [settle_result(view, problems) for view in views[: len(results)]]
    return dict(zip(results, settled, strict=True)), problems
