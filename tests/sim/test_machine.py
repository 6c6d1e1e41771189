"""The whole machine against the interpreter: models, random Programs, and everything that can go wrong.

cocotb runs it behind AXI drivers of another make (bench_machine.py); the sweeps run in this process.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Kind, Space
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.host.errors import DeviceError
from patchloom.host.session import Session
from patchloom.hw.axi import Response
from patchloom.hw.top import Top
from patchloom.sim.cosim import simulate
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute
from tests.hw.pipelines import as_case
from tests.sim.models import TASKS, Model
from tests.sim.programs import random_program

BENCH = Path(__file__).with_name("bench_machine.py")
SIZES = {
    "scratchpad_chunks": 1024, "max_rows": 16, "statistics_rows": 128, "max_experts": 6, "max_top_k": 3,
    "command_depth": 128, "fifo_beats": 64,
}  # fmt: skip
SQUARE = Config(inputs=8, outputs=8, lanes=4, bus_width=64, **SIZES)
CONFIGS = {
    "8 x 8, bus of 64": SQUARE,
    "16 x 8, bus of 32, 1 copy": Config(inputs=16, outputs=8, lanes=8, bus_width=32, scratchpad_copies=1, **SIZES),
    "8 x 16 of 16 bits, 8 lanes, bus of 128": Config(
        inputs=8, outputs=16, lanes=8, bus_width=128, weight_width=16, activation_width=16, epilogue_lanes=8, **SIZES
    ),
    "8 x 4, 1 lane, bus of 64, 1 copy": Config(
        inputs=8, outputs=4, lanes=4, bus_width=64, scratchpad_copies=1, epilogue_lanes=1, **SIZES
    ),
}
# The first of their kinds.
PLACES = {
    "load": (Kind.LOAD, Space.INPUT), "store": (Kind.STORE, Space.OUTPUT), "last": (Kind.END, Space.PROGRAM),
}  # fmt: skip
PRECISIONS = ("w8a8", "w8a16", "w16a16")
Result = tuple[list[int], int]  # output region, saturations
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@dataclass
class Job:
    """One task of a Program on one input region."""

    program: Program
    number: int
    region: np.ndarray

    @property
    def task(self) -> str:
        return self.program.tasks[self.number].name


def reference(jobs: list[Job]) -> list[Result]:
    results = []
    for job in jobs:
        output, saturations = execute(job.program, job.task, job.region)
        results.append((output.tolist(), saturations))
    return results


# --- Behind cocotb's drivers ---


def models(config: Config, seeds: range) -> list[Job]:
    """Both tasks of models in all precisions, in turns."""
    jobs = []
    for seed in seeds:
        for precision in PRECISIONS:
            model = Model(seed)
            program = model.compiled(config, precision)
            jobs += [Job(program, task, model.region(program, task, 3 + task)) for task in range(len(TASKS))]
    return jobs[::2] + jobs[1::2]


def as_jobs(jobs: list[Job]) -> dict:
    case = {"jobs": len(jobs), "seed": 5}
    for i, (job, (output, saturations)) in enumerate(zip(jobs, reference(jobs), strict=True)):
        parts = {
            "image": np.frombuffer(job.program.image, np.uint8), "number": job.number, "region": job.region,
            "output": np.array(output, np.int16), "saturations": saturations,
        }  # fmt: skip
        case |= {f"{name}_{i}": part for name, part in parts.items()}
    return case


def rtl(config: Config, jobs: list[Job]) -> list[Result]:
    got = simulate(Top(config), BENCH, case=as_case(config) | as_jobs(jobs), tests="frames")
    return [(got[f"output_{i}"].tolist(), int(got[f"saturations_{i}"])) for i in range(len(jobs))]


@pytest.mark.parametrize("name", ["8 x 8, bus of 64", "8 x 4, 1 lane, bus of 64, 1 copy"])
def test_models(name):
    """Driven by cocotb; every Config is by the driver, below."""
    config = CONFIGS[name]
    jobs = models(config, range(2))
    assert rtl(config, jobs) == reference(jobs)


@pytest.mark.parametrize(
    "scenario",
    [
        "against_cocotbext_axi", "soft_reset_at_any_moment", "bus_errors", "refusals", "regions", "windows", "unread",
        "checksums", "queue", "watchdog", "watchdog_off",
    ],
)  # fmt: skip
def test_scenario(scenario):
    """What can go wrong on the way, and that a soft reset mends it: each is a test in bench_machine.py."""
    model = Model(3)
    program = model.compiled(SQUARE, "w8a8")
    jobs = [Job(program, task, model.region(program, task, task)) for task in range(len(TASKS))]
    commands = program.tasks[0].commands
    places = {name: [(c.kind, c.dma_space) for c in commands].index(what) for name, what in PLACES.items()}
    places["weights"] = max(place for place, c in enumerate(commands) if c.kind == Kind.MATMUL and c.dma_beats)
    beats = {f"{name}_beats": commands[place].dma_beats for name, place in places.items()}
    simulate(Top(SQUARE), BENCH, case=as_case(SQUARE) | as_jobs(jobs) | places | beats, tests=scenario)


# --- In this process ---

TEMPERS = {
    "at once": {"latency": 0},
    "far": {"latency": 150, "jitter": 60},
    "halting": {"latency": 10, "jitter": 30, "stalls": 0.6},
    "one at a time": {"latency": 25, "outstanding": 1, "cycles_per_beat": 3, "stalls": 0.2},
}


def programs(config: Config, seeds: range) -> list[Job]:
    """Random Programs of two tasks each."""
    jobs = []
    for seed in seeds:
        program, regions = random_program(config, seed, tasks=2)
        jobs += [Job(program, task, region) for task, region in enumerate(regions)]
    return jobs


Sessions = Callable[[Program], Session]


def sessions(device: SimulatedDevice) -> Sessions:
    """One a Program, all on one device."""
    return cache(lambda program: Session(device, program, watchdog=20_000))


def native(session: Sessions, jobs: list[Job]) -> Iterator[Result]:
    for job in jobs:
        output, _, saturations = session(job.program).frame(job.region, job.task)
        yield output.tolist(), saturations


@pytest.mark.parametrize("temper", TEMPERS.values(), ids=TEMPERS)
@every_config
def test_random_programs(config, temper):
    first = 100 * list(TEMPERS.values()).index(temper)
    jobs = programs(config, range(first, first + 3))
    with SimulatedDevice(config, seed=first, **temper) as device:
        for got, job in zip(native(sessions(device), jobs), jobs, strict=True):
            assert [got] == reference([job])


@every_config
def test_random_models(config):
    jobs = models(config, range(10, 12))
    with SimulatedDevice(config, stalls=0.1, jitter=20, seed=2) as device:
        for got, job in zip(native(sessions(device), jobs), jobs, strict=True):
            assert [got] == reference([job])


def test_models_in_little_memory():
    """Attentions head by head, queries in parts: none of these fits a scratchpad of this size otherwise."""
    config = replace(SQUARE, scratchpad_chunks=128)
    jobs = []
    for model in map(Model, (0, 4, 7, 10, 26)):
        program = model.compiled(config, "w8a8")
        assert "qkv: head 0" in program.tasks[0].notes
        jobs += [Job(program, task, model.region(program, task, 3)) for task in range(len(TASKS))]
    with SimulatedDevice(config, stalls=0.1, jitter=20, seed=7) as device:
        for got, job in zip(native(sessions(device), jobs), jobs, strict=True):
            assert [got] == reference([job])


def test_soft_reset_at_every_moment():
    """Every so many cycles of a task; what runs next is as if nothing had been."""
    jobs = programs(SQUARE, range(2))
    expected = reference(jobs)
    with SimulatedDevice(SQUARE, stalls=0.3, jitter=40, seed=3) as device:
        session = sessions(device)
        _, cycles, _ = session(jobs[0].program).frame(jobs[0].region, jobs[0].task)
        for number, moment in enumerate(range(1, cycles, max(cycles // 60, 1))):
            session(jobs[0].program).start(jobs[0].region, jobs[0].task)
            device.step(moment)
            device.reset()
            other = number % len(jobs)
            assert list(native(session, [jobs[other]])) == [expected[other]]


def attempt(session: Sessions, job: Job) -> Result | DeviceError:
    try:
        return next(native(session, [job]))
    except DeviceError as error:
        return error


@pytest.mark.parametrize("response", [Response.SLVERR, Response.DECERR], ids=lambda r: r.name)
def test_bus_errors_anywhere(response):
    """Errors all over the memory that a task uses: it stops with the right code, or never went there."""
    jobs = programs(SQUARE, range(4, 5))
    job, rng = jobs[0], np.random.default_rng(6)
    (expected,) = reference([job])
    read = ErrorCode.READ_SLVERR if response == Response.SLVERR else ErrorCode.READ_DECERR
    write = ErrorCode.WRITE_SLVERR if response == Response.SLVERR else ErrorCode.WRITE_DECERR
    codes = []
    with SimulatedDevice(SQUARE, stalls=0.3, jitter=40, seed=4) as device:
        session = sessions(device)
        target = session(job.program).start(job.region, job.task)
        device.reset()
        ends = (target.address, target.address + target.size)
        for number in range(60):
            low, high = ends if number % 2 else (device.base, ends[0])
            address = int(rng.integers(low, high))
            device.inject(address, 1, response)
            outcome = attempt(session, job)
            if isinstance(outcome, DeviceError):
                codes.append(outcome.code)
                assert outcome.code == (write if address >= ends[0] else read)
                assert outcome.detail == outcome.command_index <= len(job.program.tasks[0].commands)
            else:
                assert outcome == expected
            device.clear_faults()
            assert list(native(session, [job])) == [expected]
    assert {read, write} == set(codes)
