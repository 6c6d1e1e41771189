"""A slice of `make fuzz`, of another seed."""

from tests.fuzz import fuzz


def test_only_errors_come_out(tmp_path):
    found = fuzz(700, 1, tmp_path)
    assert not found.failures, "\n".join(found.failures)
    assert len(found.outcomes) > 10, "each kind both taken and refused"
