"""Running a Program, frame by frame, on any engine."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, get_args

from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import (
    Elements,
    Frame,
    Result,
    Run,
    Tell,
    input_frames,
    input_region,
    run_frames,
    task_of,
)
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.verify import verify_once
from patchloom.extras import needed_by
from patchloom.host.session import Session
from patchloom.pictures import inputs_with_pictures
from patchloom.sim.interpret import Observer, execute

if TYPE_CHECKING:
    from patchloom.sim.cycles import Prediction

Engine = Literal["interpreter", "hls", "rtl"]


def run(
    program: Program,
    inputs: Any,
    *,
    task: str | None = None,
    engine: Engine = "interpreter",
    observe: Observer | None = None,
    progress: Tell | None = None,
    **simulation: Any,
) -> Result:
    """Run one sample or a batch, frame by frame.

    `inputs` is one tensor or array, a tuple in the order of the task's inputs, or a dictionary by name. Where the
    Program keeps a preprocessing, the path of a PNG or JPEG picture, a list of paths, and arrays of type uint8 go
    through it; floats are in the model's own units.
    `observe` sees the interpreter's state after each command; `simulation` goes to the RTL's `SimulatedDevice`.
    """
    verify_once(program)
    _check_options(engine, observe, simulation)
    chosen = task_of(program, task)
    frames = input_frames(chosen, inputs_with_pictures(chosen, inputs))
    with _engine(program, chosen, engine, observe, simulation) as run_regions:
        return run_frames(chosen, *frames, run_regions, progress)


def _check_options(engine: str, observe: Observer | None, simulation: dict[str, Any]) -> None:
    if engine not in get_args(Engine):
        raise InputError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine!r}")
    if observe and engine != "interpreter":
        raise InputError(f"observe must be left out with engine '{engine}': only the interpreter shows its state")
    if simulation and engine != "rtl":
        raise InputError(f"{', '.join(simulation)} must be left out with engine '{engine}': only 'rtl' has a memory")


def _check_settings(given: dict[str, Any], known: AbstractSet[str]) -> None:
    if unknown := sorted(given.keys() - known):
        raise InputError(f"{', '.join(unknown)} must be among the settings of engine 'rtl': {', '.join(sorted(known))}")


@contextmanager
def _engine(
    program: Program, task: Task, engine: str, observe: Observer | None, simulation: dict[str, Any]
) -> Iterator[Run]:
    """How to run frames."""

    def interpret(region: Elements) -> Frame:
        output, saturations = execute(program, task.name, region, observe)
        return output, None, saturations

    if engine == "interpreter":
        yield partial(map, interpret)
    elif engine == "hls":
        with needed_by("engine 'hls'", "hls4ml"):
            from patchloom.sim.hls import HlsMachine  # noqa: PLC0415 - an extra
        machine = HlsMachine(program)

        def run_native(region: Elements) -> Frame:
            output, saturations = machine.run(region, task.name)
            return output, None, saturations

        yield partial(map, run_native)
    else:
        with needed_by("engine 'rtl'", "sim"):
            from patchloom.sim.device import SimulatedDevice  # noqa: PLC0415 - an extra
        _check_settings(simulation, signature(SimulatedDevice).parameters.keys() - {"config"})
        with SimulatedDevice(program.config, **simulation) as device, Session(device, program) as session:
            yield lambda regions: session.frames(regions, task.name)


def predict(program: Program, inputs: Any, *, task: str | None = None, **memory: int) -> "Prediction":
    """Cycles of one frame of these inputs, one sample, exact and without simulating its data.

    `memory` are the settings of `patchloom.sim.cycles.predict`, as a board's `memory.timing` has them.
    """
    with needed_by("patchloom.predict", "sim"):
        from patchloom.sim import cycles  # noqa: PLC0415 - an extra
    chosen = task_of(program, task)
    frames, _ = input_frames(chosen, inputs_with_pictures(chosen, inputs))
    if len(frames) != 1:
        raise InputError(f"inputs must be one sample, not {len(frames)}")
    region, _ = input_region(chosen, frames[0])
    return cycles.predict(program, task, queues=cycles.queue_lengths(program, task, region), **memory)
