"""Goldens that travel with a Program, on a machine: right, or where it goes wrong first."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Command
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import Golden, Program, Task
from patchloom.host.probe import most_commands
from patchloom.host.session import Session
from patchloom.sim.interpret import State, execute

FILLS = 0, -1  # of a scratchpad before a frame: what is not alike after them was never written


@dataclass(frozen=True)
class Difference:
    """The first command after which the scratchpad is not the interpreter's, and the first element of it."""

    command: int
    note: str  # what the command computes, in the model's names
    buffer: str  # what lies there
    element: int  # of the buffer
    found: int
    expected: int

    def __str__(self) -> str:
        return (
            f"wrong first after command {self.command} ({self.note}): element {self.element} of '{self.buffer}' is "
            f"{self.found}, not {self.expected}"
        )


@dataclass(frozen=True)
class Verdict:
    """Of one task's golden."""

    task: str
    elements: int  # of the output, all compared
    wrong: int  # of them
    saturations: tuple[int, int]  # found, expected
    cycles: int
    difference: Difference | None = None  # where it goes wrong first, if the scratchpad shows it

    @property
    def passed(self) -> bool:
        return not self.wrong and len(set(self.saturations)) == 1

    def __str__(self) -> str:
        """Of one that has not passed."""
        where = self.difference or "the scratchpad was right after every command, as far as it shows"
        found, expected = self.saturations
        return (
            f"task '{self.task}': {self.wrong} of {self.elements} elements are wrong, {found} values saturated and not "
            f"{expected}; {where}"
        )


def validate(session: Session) -> Iterator[Verdict]:
    """Run the golden of every task of the session's Program; raises `InputError` where it has none."""
    for task in session.program.tasks:
        if task.golden is None:
            raise InputError(f"task '{task.name}' has no golden: the Program was made before there were any")
        output, cycles, saturations = session.frame(task.golden.input, task.name)
        wrong = int(np.count_nonzero(output != task.golden.output))
        verdict = Verdict(task.name, output.size, wrong, (saturations, task.golden.saturations), cycles)
        yield verdict if verdict.passed else replace(verdict, difference=_first_difference(session, task, task.golden))


def _first_difference(session: Session, task: Task, golden: Golden) -> Difference | None:
    """By bisection: what is wrong once is taken to stay so, until the outputs are stored."""
    right, wrong = 1, most_commands(session.program.config, task) + 1
    found: Difference | None = None
    while wrong - right > 1:
        count = (right + wrong) // 2
        there = _difference(session, task, golden, count)
        found, right, wrong = (there, right, count) if there else (found, count, wrong)
    return found


def _difference(session: Session, task: Task, golden: Golden, count: int) -> Difference | None:
    """Between the machine's scratchpad and the interpreter's, after so many commands."""
    dumped = session.probe(golden.input, task.name, count)
    one, other = (_scratchpad(session.program, task, golden, count, fill)[: dumped.size] for fill in FILLS)
    places = np.flatnonzero((one == other) & (dumped != one))
    if not places.size:
        return None
    place = int(places[0])
    name, first = _buffer(task, session.program.config.lanes, place, count - 1)
    return Difference(count - 1, task.notes[count - 1], name, place - first, int(dumped[place]), int(one[place]))


class _Enough(Exception):
    """The interpreter need go no further."""


def _scratchpad(program: Program, task: Task, golden: Golden, count: int, fill: int) -> NDArray[np.int16]:
    found: list[NDArray[np.int16]] = []

    def observe(position: int, command: Command, state: State) -> None:
        if position == 0:
            state.scratchpad[:] = fill
        if position == count - 1:
            found.append(state.scratchpad.reshape(-1).copy())
            raise _Enough

    with suppress(_Enough):
        execute(program, task.name, golden.input, observe)
    return found[0]


def _buffer(task: Task, lanes: int, place: int, command: int) -> tuple[str, int]:
    """What lies at an element of the scratchpad, and its first element."""
    for buffer in task.buffers:
        first = buffer.address * lanes
        if buffer.first <= command <= buffer.last and first <= place < first + buffer.chunks * lanes:
            return buffer.name, first
    return "the scratchpad", 0
