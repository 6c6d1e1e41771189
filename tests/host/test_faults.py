"""A slice of `make fuzz` over bad links, of another seed; and the campaign notices what it looks for."""

from random import Random

import pytest

from tests.campaign import Found
from tests.faults import CARRIED, PROGRAM, Faults, Spoiler, faults


def test_no_result_is_wrong():
    found = faults(300, 1, period=30)
    assert not found.failures, found
    assert found.outcomes.pop(CARRIED) > 300 * 100
    outcomes = {outcome.rpartition(" ")[2] for outcome in found.outcomes}
    assert {"right", "LinkError", "NoAnswerError"} <= outcomes
    assert sum(found.outcomes.values()) == 300


def test_bytes_are_hit_as_often_as_they_should_be():
    spoiler, hits = Spoiler(Random(0), 1e-2), 0
    for _ in range(2000):
        hits += spoiler(bytes(range(100))) != bytes(range(100))
    assert abs(hits - 2000 * (1 - 0.99**100)) < 100
    assert Spoiler(Random(0), 0.0)(b"abc") == b"abc"


@pytest.mark.parametrize("packets", [False, True])
def test_a_result_of_a_damaged_program_is_noticed(packets):
    found = Found()
    link = Faults(Random(7), 0.0, found, packets=packets)
    link.frame()
    image = link.session._image.address - link.device.soc.memory.address
    link.machine.memory[image + len(PROGRAM.image) - 1] ^= 1
    for _ in range(20):
        link.once()
    assert "frame: " in str(found.failures)
