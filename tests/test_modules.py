"""A slice of `python -m tests.modules`, of another seed."""

from tests.modules import check


def test_modules_compute_what_they_do_in_torch():
    found = check(16, seed=3)
    assert not found.failures, found
    assert found.outcomes["compiled, equal"] > 8, found
