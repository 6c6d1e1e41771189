"""Goldens on a machine: that they pass, and where a machine goes wrong that does."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import patchloom
from patchloom.cli import app
from patchloom.compiler.machine.commands import Kind, Stationary
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import Golden
from patchloom.host.errors import StaleError
from patchloom.host.probe import most_commands
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute
from patchloom.validating import validate
from tests.machine import MACHINE
from tests.sim.models import Model


@pytest.fixture(scope="module")
def program():
    """Attention and a mixture, two tasks."""
    model = Model(3)
    bare = model.compiled(MACHINE, "w8a8")

    def golden(number):
        region = model.region(bare, number, 0)
        return Golden(region, *execute(bare, bare.tasks[number].name, region))

    tasks = (replace(task, golden=golden(number)) for number, task in enumerate(bare.tasks))
    return replace(bare, tasks=tuple(tasks))


@pytest.fixture
def session(program):
    with SimulatedDevice(program.config, latency=5) as device, patchloom.Session(device, program) as session:
        yield session


def test_goldens_pass(session, program):
    verdicts = list(validate(session))
    assert [verdict.task for verdict in verdicts] == [task.name for task in program.tasks]
    assert all(verdict.passed and verdict.difference is None for verdict in verdicts)
    assert [verdict.elements for verdict in verdicts] == [task.output_bytes // 2 for task in program.tasks]


def test_a_wrong_weight_is_found_where_it_is_used(session, program):
    """One bit of one weight of any command of the first task: the verdict names that command, or nothing is wrong."""
    task, located = program.tasks[0], 0
    for number, command in enumerate(task.commands):
        if command.kind != Kind.MATMUL or command.b_source != Stationary.MEMORY:
            continue
        at = command.dma_address + command.dma_beats * program.config.beat_bytes // 2
        session.device.put(session._image.address + at, bytes([program.image[at] ^ 0x40]))
        verdict = next(validate(session))
        session.device.put(session._image.address + at, program.image[at : at + 1])
        if verdict.passed:  # the bit is of padding, or the expert has no tokens
            continue
        assert verdict.difference.command == number
        assert verdict.difference.note == task.notes[number]
        assert verdict.difference.found != verdict.difference.expected
        assert f"wrong first after command {number} ({task.notes[number]}): element " in str(verdict)
        located += 1
    assert located > 5
    assert next(validate(session)).passed, "probes leave nothing behind"


def test_a_probe_is_the_interpreters_scratchpad(session, program):
    task = program.tasks[1]
    states = []
    execute(program, task.name, task.golden.input, lambda *told: states.append(told[2].scratchpad.copy()))
    for count in (2, len(task.commands) // 2, most_commands(program.config, task)):
        found = session.probe(task.golden.input, task.name, count).reshape(states[0].shape)
        written = np.flatnonzero(states[count - 1].any(axis=1))
        np.testing.assert_array_equal(found[written], states[count - 1][written])


def test_a_frame_after_a_probe_that_failed(session, program, monkeypatch):
    task = program.tasks[0]
    monkeypatch.setattr(session.device, "wait", lambda *told: (_ for _ in ()).throw(StaleError("cut")))
    with pytest.raises(StaleError, match="cut"):
        session.probe(task.golden.input, task.name, 3)
    monkeypatch.undo()
    output, *_ = session.frame(task.golden.input, task.name)
    np.testing.assert_array_equal(output, execute(program, task.name, task.golden.input)[0])


def test_counts_that_cannot_be_probed(session, program):
    task = program.tasks[0]
    for count in (0, len(task.commands)):
        with pytest.raises(InputError, match=f"a probe must be of 1 to {len(task.commands) - 1} commands, not {count}"):
            session.probe(task.golden.input, task.name, count)


def test_a_program_without_goldens(session, program):
    bare = replace(program, tasks=tuple(replace(task, golden=None) for task in program.tasks))
    with pytest.raises(InputError, match="task 'first' has no golden"):
        next(validate(patchloom.Session(session.device, bare)))


def test_from_a_shell(program, tmp_path):
    wrong = program.tasks[1].golden.output.copy()
    wrong[7] ^= 1
    tasks = program.tasks[0], replace(program.tasks[1], golden=replace(program.tasks[1].golden, output=wrong))
    for name, made, code in ("good", program, 0), ("bad", replace(program, tasks=tasks), 1):
        patchloom.save(made, tmp_path / name)
        told = CliRunner().invoke(app, ["validate", str(tmp_path / name)])
        assert told.exit_code == code
        assert told.stdout.count("pass") == 2 - code
        assert told.stdout.count("FAIL") == code
    elements = program.tasks[1].output_bytes // 2
    text = f"task 'second': 1 of {elements} elements are wrong"
    assert text in told.stderr
    assert "the scratchpad was right after every command, as far as it shows" in told.stderr
