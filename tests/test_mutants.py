"""Each mutant's place and test exist: what `python -m tests.mutants` needs, which takes longer."""

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize(("file", "old", "new", "test"), MUTANTS)
def test_mutant_can_be_made(file, old, new, test):
    assert (ROOT / file).read_text().count(old) == 1
    assert new != old
    assert (ROOT / "tests" / test.partition("::")[0]).exists()
