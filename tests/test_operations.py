"""A slice of `python -m tests.operations`: a few random calls of every operation against torch."""

from collections import defaultdict

import torch

from patchloom.compiler.frontend.operations import OPERATIONS
from patchloom.compiler.frontend.site import ALL, Refusal
from tests.operations import check, overloads, supported


def test_captured_calls_compute_what_torch_computes():
    found = check(supported(), 1, seed=7)
    assert not found.failures, found
    equal = [outcome for outcome in found.outcomes.elements() if outcome.endswith("equal")]
    assert len(equal) > len(supported()) / 3


def test_every_tensor_of_an_operation_has_its_part():
    """It carries data, or lends its shape or type: no row leaves out a tensor of a schema it can meet."""
    for name in supported():
        row = OPERATIONS[name]
        assert not isinstance(row, Refusal)
        for target in overloads(name):
            tensors = {part.name for part in target._schema.arguments if "Tensor" in str(part.type)}
            assert tensors <= {*row.data, *row.lends}, target


def test_every_attribute_that_is_read_is_one():
    """Of some operation of its rows: another name is a mistake, and would leave an attribute unread."""
    known = defaultdict(set)
    for name in supported():
        packet = getattr(torch.ops.aten, name.removeprefix("aten."), None)
        for overload in packet.overloads() if packet else ():
            known[OPERATIONS[name]] |= {part.name for part in getattr(packet, overload)._schema.arguments}
    for row, names in known.items():
        assert row.reads == ALL or set(row.reads) - {"mode"} <= names, row
