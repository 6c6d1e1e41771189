"""Running a Program, frame by frame, on any engine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from patchloom.arrays import InputError, Samples, as_floats, by_name
from patchloom.compiler.machine.program import Port, Program, Task, from_region, to_region
from patchloom.extras import needed_by
from patchloom.progress import Tell
from patchloom.sim.interpret import Observer, execute

if TYPE_CHECKING:
    from patchloom.sim.cycles import Prediction

Engine = Literal["interpreter", "hls", "rtl"]
# Input region -> output region, cycles, saturations.
Frame = Callable[[NDArray[np.int16]], tuple[NDArray[np.int16], int | None, int]]


@dataclass(frozen=True)
class Result:
    """What a Program computed, by output. Given a batch, every array has its dimension."""

    outputs: Samples
    raw: dict[str, NDArray[np.int16]] = field(repr=False)  # outputs as the machine's integers
    cycles: tuple[int, ...] | None  # per frame; only the RTL counts them
    saturations: int  # values that did not fit their format, over all frames
    clipped: int  # input values that did not fit theirs


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

    `inputs` is one tensor or array, a tuple in the order of the task's inputs, or a dictionary by name.
    `observe` sees the interpreter's state after each command; `simulation` goes to the RTL's `SimulatedDevice`.
    """
    chosen = task_of(program, task)
    frames, batched = input_frames(chosen, inputs)
    outputs, cycles, saturations, clipped = [], [], 0, 0
    with _engine(program, chosen, engine, observe, simulation) as run_frame:
        for position, frame in enumerate(frames):
            region, lost = input_region(chosen, frame)
            output, count, saturated = run_frame(region)
            outputs.append({port.name: _raw(port, output) for port in chosen.outputs})
            cycles.append(count)
            saturations, clipped = saturations + saturated, clipped + lost
            if progress:
                progress(f"run {chosen.name}", position + 1, len(frames))
    raw = {name: np.stack([o[name] for o in outputs]) if batched else outputs[0][name] for name in outputs[0]}
    values = {port.name: raw[port.name] * 2.0**-port.fraction for port in chosen.outputs}
    return Result(values, raw, None if None in cycles else cast(tuple[int, ...], tuple(cycles)), saturations, clipped)


@contextmanager
def _engine(
    program: Program, task: Task, engine: str, observe: Observer | None, simulation: dict[str, Any]
) -> Iterator[Frame]:
    """How to run one frame."""

    def interpret(region: NDArray[np.int16]) -> tuple[NDArray[np.int16], None, int]:
        output, saturations = execute(program, task.name, region, observe)
        return output, None, saturations

    if engine == "interpreter":
        yield interpret
    elif engine == "hls":
        with needed_by("engine 'hls'"):
            from patchloom.sim.hls import HlsMachine  # noqa: PLC0415 - an extra
        machine = HlsMachine(program)

        def run_native(region: NDArray[np.int16]) -> tuple[NDArray[np.int16], None, int]:
            output, saturations = machine.run(region, task.name)
            return output, None, saturations

        yield run_native
    elif engine == "rtl":
        with needed_by("engine 'rtl'"):
            from patchloom.sim.device import SimulatedDevice  # noqa: PLC0415 - an extra
        with SimulatedDevice(program.config, **simulation) as device:
            yield lambda region: device.run(program, region, task.name)
    else:
        raise InputError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine!r}")


def predict(program: Program, inputs: Any, *, task: str | None = None, **memory: int) -> "Prediction":
    """Cycles of one frame of these inputs, one sample, exact and without simulating its data.

    `memory` are `latency`, `cycles_per_beat` and `outstanding` of `patchloom.sim.cycles.predict`.
    """
    with needed_by("patchloom.predict"):
        from patchloom.sim import cycles  # noqa: PLC0415 - an extra
    chosen = task_of(program, task)
    frames, _ = input_frames(chosen, inputs)
    if len(frames) != 1:
        raise InputError(f"inputs must be one sample, not {len(frames)}")
    region, _ = input_region(chosen, frames[0])
    return cycles.predict(program, task, queues=cycles.queue_lengths(program, task, region), **memory)


def task_of(program: Program, name: str | None) -> Task:
    try:
        return program.task(name)
    except KeyError as error:
        raise InputError(str(error.args[0])) from None


def input_frames(task: Task, inputs: Any) -> tuple[list[Samples], bool]:
    """The samples, each by input, and whether they came as a batch."""
    given = by_name("inputs", inputs, [port.name for port in task.inputs])
    batches, counts = {}, {}
    for port in task.inputs:
        value = as_floats(f"input '{port.name}'", given[port.name])
        if value.shape not in (port.shape, (len(value) if value.ndim else 0, *port.shape)) or not value.size:
            rule = f"have shape {list(port.shape)}, or that behind a batch dimension"
            raise InputError(f"input '{port.name}' must {rule}, not {list(value.shape)}")
        counts[port.name] = len(value) if value.ndim > len(port.shape) else None
        batches[port.name] = value if value.ndim > len(port.shape) else value[None]
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs must be one sample or equally many each, not {counts}")
    samples = len(next(iter(batches.values())))
    return [{name: value[i] for name, value in batches.items()} for i in range(samples)], None not in counts.values()


def input_region(task: Task, frame: Samples) -> tuple[NDArray[np.int16], int]:
    """One sample as the machine reads it, and how many of its values did not fit."""
    region, clipped = np.zeros(task.input_bytes // 2, np.int16), 0
    for port in task.inputs:
        elements, lost = to_region(port, frame[port.name])
        region[port.offset // 2 :][: elements.size] = elements
        clipped += lost
    return region, clipped


def _raw(port: Port, region: NDArray[np.int16]) -> NDArray[np.int16]:
    return from_region(port, region[port.offset // 2 :][: port.elements])
