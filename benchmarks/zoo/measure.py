"""What becomes of a row: compiled or refused, what its integers lose, what it multiplies, how many cycles it takes."""

import copy
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import patchloom
from benchmarks.zoo.row import CALIBRATION, TRIED, Row, outputs
from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Kind, Queue
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.frames import input_region
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import schedule
from patchloom.compiling import read_model
from patchloom.reporting.budget import Budget
from patchloom.reporting.machine import run
from patchloom.sim import cycles

# A small array, as rows have few features, and memory enough that none is refused for its size.
CONFIG = Config(
    inputs=8, outputs=8, lanes=4, max_rows=1024, scratchpad_chunks=1 << 18, statistics_rows=2048, command_depth=4096,
    max_experts=32,
)  # fmt: skip
FLOORS = {"w8a8": 25.0, "w16a16": 50.0}  # dB
SECONDS = 120  # of one row
SHOWN = 8  # reasons


@dataclass
class Result:
    """`verdict`: compiles, refused, crash, slow, or broken where the module itself does not run."""

    verdict: str
    reasons: list[str] = field(default_factory=list)  # the compiler's
    decibels: dict[str, float] = field(default_factory=dict)  # by precision: the worst output of the worst task
    rerouted: dict[str, str] = field(default_factory=dict)  # decisions unlike the float model's, where there are any
    macs: int = 0  # the module's own
    compiled_macs: int = 0
    cycles: int = 0
    rtl: str = ""
    seconds: float = 0


class Slow(Exception):
    """Takes longer than a row may."""


def measure(row: Row, *, rtl: bool = False, config: Config = CONFIG) -> Result:
    begin = time.process_time()
    try:
        with at_most(SECONDS):
            found = _measure(row, config, rtl=rtl)
    except Slow:
        found = Result("slow", [f"takes more than {SECONDS} s"])
    found.seconds = round(time.process_time() - begin, 1)
    return found


def _measure(row: Row, config: Config, *, rtl: bool) -> Result:
    try:
        module = row.module()
        outputs(module, row.inputs(1, seed=2), 0 if row.tasks else None)
    except Slow:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a package raises
        return Result("broken", [told(error)])
    found = Result("compiles")
    try:
        _compile(row, module, config, found, rtl=rtl)
    except Slow:
        raise
    except Error as error:
        return Result("refused", reasons(error))
    except Exception as error:  # noqa: BLE001 - a crash is a finding
        return Result("crash", [told(error)])
    return found


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"


def reasons(error: Error) -> list[str]:
    """The compiler's words without its hints; of a package's files the path inside it."""
    problems = getattr(error, "problems", None) or [str(error)]
    return [re.sub(r"/\S*/site-packages/", "", str(problem).splitlines()[0]) for problem in problems[:SHOWN]]


def _compile(row: Row, module: Any, config: Config, found: Result, *, rtl: bool) -> None:
    """Adds what is seen at each precision; cycles and multiplications at the first."""
    calibration = row.inputs(CALIBRATION, seed=1)
    example = tuple(x[:1] for x in calibration) + ((0,) if row.tasks else ())
    model = read_model(module, example, calibration=calibration, tasks=row.tasks or None)
    given = dict(zip(model.graphs[0].arguments, row.inputs(TRIED, seed=2), strict=True))
    for precision in FLOORS:
        try:
            program = schedule(quantise(model.graphs, model.samples, Precision.parse(precision)), config)
        except Error as error:
            if not found.decibels:
                raise
            found.reasons = [f"{precision}: {reason}" for reason in reasons(error)]
            break
        found.decibels[precision] = decibels(row, module, program, given)
        if any(command.kind == Kind.ROUTE for command in program.tasks[0].commands):
            found.rerouted[precision] = rerouted(model.graphs[0], program, given)
        if not found.cycles:
            _cost(program, given, found)
            found.macs = module_macs(row, module)
            found.rtl = ("identical" if same_on_rtl(program, given) else "differs") if rtl else ""


def decibels(row: Row, module: Any, program: Program, given: dict[str, Any]) -> float:
    """Of the worst output of the worst task."""
    seen = []
    for number, task in enumerate(program.tasks):
        expected = outputs(module, tuple(given.values()), number if row.tasks else None)
        made = patchloom.run(program, read_by(task, given), task=task.name).outputs.values()
        seen += [sqnr(*pair) for pair in zip(expected, made, strict=True)]
    return round(min(seen), 1)


def rerouted(graph: Graph, program: Program, given: dict[str, Any]) -> str:
    """Of the first task's tokens those that go to other experts than in float."""
    task = program.tasks[0]
    budget = Budget(graph, task)
    for number in range(TRIED):
        sample = {name: x[number].numpy() for name, x in read_by(task, given).items()}
        budget.add(sample, run(program, task, sample))
    routes = [layer.routing for layer in budget.layers if layer.routing]
    return f"{sum(route.otherwise for route in routes)} of {sum(route.tokens for route in routes)}"


def read_by(task: Task, given: dict[str, Any]) -> dict[str, Any]:
    return {port.name: given[port.name] for port in task.inputs}


def _cost(program: Program, given: dict[str, Any], found: Result) -> None:
    """Of the first sample on the first task."""
    task = program.tasks[0]
    region, _ = input_region(task, {name: x[0].numpy() for name, x in read_by(task, given).items()})
    queues = cycles.queue_lengths(program, task.name, region)
    found.cycles = cycles.predict(program, task.name, queues=queues).cycles
    found.compiled_macs = program_macs(task, queues)


def same_on_rtl(program: Program, given: dict[str, Any]) -> bool:
    task = program.tasks[0]
    first = {name: x[:1] for name, x in read_by(task, given).items()}
    one, other = (patchloom.run(program, first, task=task.name, engine=engine).raw for engine in ("interpreter", "rtl"))
    return all(np.array_equal(one[name], other[name]) for name in one)


def sqnr(expected: Any, actual: Any) -> float:
    """Signal to quantisation noise in dB."""
    wanted, got = (np.asarray(x, np.float64).reshape(-1) for x in (expected, actual))
    noise = float(np.square(wanted - got).sum())
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else 200.0


def module_macs(row: Row, module: Any) -> int:
    """Products of matrices and convolutions of one sample, as torch counts them; attention written out."""
    counter = FlopCounterMode(display=False)
    frozen = copy.deepcopy(module).requires_grad_(requires_grad=False)  # its hooks want no gradients
    with sdpa_kernel(SDPBackend.MATH), _without_fast_path(), counter:
        try:
            outputs(frozen, row.inputs(1, seed=2), 0 if row.tasks else None)
        except TypeError:  # flex_attention does not run where products are counted
            return 0
    return int(counter.get_total_flops()) // 2


@contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=before)


def program_macs(task: Task, queues: list[cycles.Routed]) -> int:
    """Of the commands, an expert's as often as its queue is long."""
    total, routes = 0, iter(queues)
    lengths: tuple[int, ...] = ()
    for command in task.commands:
        if command.kind == Kind.ROUTE:
            lengths = next(routes).lengths
        elif command.kind == Kind.MATMUL:
            rows = command.rows if command.queue == Queue.NONE else lengths[command.expert]
            total += rows * command.depth * command.columns
    return total


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises `Slow` after so many of this process's processor time: other processes may be busy."""

    def stop(*_: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
