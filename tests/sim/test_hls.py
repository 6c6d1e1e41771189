"""The HLS kernels under g++ against the interpreter: random Programs and models, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchloom.compiler.machine.commands import Command, Kind, Space
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import command_table
from patchloom.sim.hls import HlsError, HlsMachine
from patchloom.sim.interpret import execute
from tests.sim.models import Model
from tests.sim.programs import random_program
from tests.sim.test_machine import CONFIGS, PRECISIONS, SIZES

# Beside the machines that the RTL is tested with: several chunks a slice, a channel's parameters in two words and in
# an eighth of one, sums of products that take more than 32 bits.
MACHINES = CONFIGS | {
    "64 x 32, bus of 512": Config(inputs=64, outputs=32, lanes=32, bus_width=512, **SIZES),
    "8 x 24, words of four beats of 32": Config(inputs=8, outputs=24, lanes=8, bus_width=32, word_beats=4, **SIZES),
    "16 x 4 of 16 x 8 bits, bus of 64": Config(
        inputs=16, outputs=4, lanes=4, bus_width=64, weight_width=16, activation_width=8, **SIZES
    ),
}
every_machine = pytest.mark.parametrize("config", MACHINES.values(), ids=MACHINES)


def assert_same(program, task, region):
    output, saturations = execute(program, task, region)
    ours, counted = HlsMachine(program).run(region, task)
    np.testing.assert_array_equal(ours, output)
    assert counted == saturations


@every_machine
def test_random_programs(config):
    for seed in range(3):
        program, regions = random_program(config, seed, tasks=2)
        for task, region in zip(program.tasks, regions, strict=True):
            assert_same(program, task.name, region)


@given(
    seed=st.integers(0, 2**32 - 1), precision=st.sampled_from(PRECISIONS),
    config=st.sampled_from(list(MACHINES.values())), sample=st.integers(0, 7),
)  # fmt: skip
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_models(seed, precision, config, sample):
    model = Model(seed)
    program = model.compiled(config, precision)
    for number, task in enumerate(program.tasks):
        assert_same(program, task.name, model.region(program, number, sample))


def test_threads_share_nothing():
    model = Model(3)
    program = model.compiled(CONFIGS["8 x 8, bus of 64"], "w8a8")
    frames = [(task, model.region(program, task, sample)) for sample in range(8) for task in (0, 1)]
    expected = [execute(program, program.tasks[task].name, region) for task, region in frames]
    machine = HlsMachine(program)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda frame: machine.run(frame[1], program.tasks[frame[0]].name), frames * 4))
    for (output, saturations), (ours, counted) in zip(expected * 4, results, strict=True):
        np.testing.assert_array_equal(ours, output)
        assert counted == saturations


def with_commands(program, commands):
    """The Program with another first task."""
    table = command_table(program.config, [commands, *(task.commands for task in program.tasks[1:])])
    tasks = replace(program.tasks[0], commands=commands), *program.tasks[1:]
    return replace(program, tasks=tasks, image=table + program.image[len(table) :])


def test_on_a_scratchpad_full_of_something():
    """Elements beyond a tensor's columns become zero, whatever was there before."""
    config = CONFIGS["8 x 8, bus of 64"]
    noise = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, config.scratchpad_chunks * config.lanes, np.int16)
    for seed in range(3):
        program, regions = random_program(config, seed)
        begin, *others = program.tasks[0].commands
        fill = Command(
            kind=Kind.LOAD, rows=config.scratchpad_chunks, dma_space=Space.INPUT, dma_address=regions[0].nbytes,
            dma_beats=noise.nbytes // config.beat_bytes,
        )  # fmt: skip
        region = np.concatenate([regions[0], noise])
        assert_same(with_commands(program, (begin, fill, *others)), None, region)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (replace(c[0], epsilon=c[0].epsilon ^ 1), *c[1:]), "WRONG_CONFIG"),
        (lambda c: c[:-1], "BAD_COMMAND"),
    ],
    ids=["another Config", "no end"],
)
def test_refused(change, message):
    program, regions = random_program(CONFIGS["8 x 8, bus of 64"], 1)
    commands = change(program.tasks[0].commands)
    if commands[-1].kind != Kind.END:  # as many commands as there can be, none of them the last
        commands = commands[:1] * program.config.command_depth
    with pytest.raises(HlsError, match=f"task 'task 0' stopped: {message}"):
        HlsMachine(with_commands(program, commands)).run(regions[0])


def test_unknown_kind_is_refused():
    program, regions = random_program(CONFIGS["8 x 8, bus of 64"], 1)
    image = bytearray(program.image)
    image[len(Command(kind=Kind.BEGIN).encode())] |= 0xF
    with pytest.raises(HlsError, match="BAD_COMMAND"):
        HlsMachine(replace(program, image=bytes(image))).run(regions[0])
