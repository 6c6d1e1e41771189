"""A frame's deadline is beyond what any frame takes, and not for ever."""

import pytest

from patchloom.host.deadline import most_cycles
from patchloom.sim.cycles import predict
from tests.machine import MACHINE
from tests.sim.models import Model

SLOW = {"latency": 200, "cycles_per_beat": 8, "refresh_period": 400, "refresh_cycles": 40}


@pytest.mark.parametrize("seed", range(8))
def test_no_frame_takes_as_long(seed):
    """Whatever the router decides, with a slow memory."""
    model = Model(seed)
    for precision in ("w8a8", "w16a16"):
        program = model.compiled(MACHINE, precision)
        for task in program.tasks:
            everybody = [[command.rows] * command.columns for command in task.commands if command.kind.name == "ROUTE"]
            longest = predict(program, task.name, queues=everybody, **SLOW).cycles
            assert longest < most_cycles(MACHINE, task.commands) < 20 * longest
