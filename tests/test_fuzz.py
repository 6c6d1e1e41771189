"""A slice of `make fuzz`, of another seed."""

from tests.fuzz import fuzz


def test_only_errors_come_out():
    found = fuzz(1800, 1)
    assert not found.failures, found
    assert len(found.outcomes) > 10, "each kind both taken and refused"
