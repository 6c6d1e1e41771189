"""The two things one does with Patchloom: compile a trained module, run the Program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.capture import capture, input_names
from compiler.config import Config
from compiler.ir import Input
from compiler.program import Port, Program, Task, from_region, to_region
from compiler.quantise import Precision, quantise
from compiler.schedule import schedule
from host.arrays import InputError, as_floats, by_name
from host.progress import Tell
from sim.device import SimulatedDevice
from sim.hls import HlsMachine
from sim.interpret import Observer, execute

Engine = Literal["interpreter", "hls", "rtl"]
Samples = dict[str, NDArray[np.floating[Any]]]
# Input region -> output region, cycles, saturations.
Frame = Callable[[NDArray[np.int16]], tuple[NDArray[np.int16], int | None, int]]

# Machines to begin with. `small` fits the smallest boards; `wide` multiplies four times as much a cycle.
PRESETS = {
    "small": Config(),
    "wide": Config(inputs=32, outputs=32, lanes=32, bus_width=256, scratchpad_chunks=8192),
}


def preset_for(precision: Precision, name: str = "small") -> Config:
    """The preset with multipliers as wide as most of the model needs; wider layers take several passes."""
    return replace(
        PRESETS[name], weight_width=max(precision.weights, 8), activation_width=max(precision.activations, 8)
    )


def compile_module(
    module: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    calibration: Any,
    tasks: Sequence[str] | None = None,
    config: Config | None = None,
    precision: str = "w8a8",
    overrides: Mapping[str, str] | None = None,
    progress: Tell | None = None,
) -> Program:
    """Compile a trained module to a Program.

    `example_inputs` are forward's arguments with a batch dimension; where forward takes a task number, an int
    stands for it and `tasks` names the tasks. `calibration` holds samples, [n, ...] per input: one tensor or
    array, a tuple in forward's order, or a dictionary by the names of forward's parameters. `overrides` gives
    layers, by pattern of their name, another precision than `precision`.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    bits = Precision.parse(precision, overrides)
    samples = calibration_samples(module, example, calibration)
    if progress:
        progress("capture", 0, 1)
    graphs = capture(module, example, tasks=tasks)
    if progress:
        progress("capture", 1, 1)
    read = {node.name for graph in graphs for node in graph.nodes() if isinstance(node, Input)}
    quantised = quantise(graphs, {name: samples[name] for name in samples if name in read}, bits, progress)
    return schedule(quantised, config or preset_for(bits))


def calibration_samples(module: nn.Module, example: tuple[Any, ...], calibration: Any) -> Samples:
    """Samples by input, finite; `quantise` checks their shapes and number."""
    given = by_name("calibration", calibration, input_names(module, example))
    return {name: as_floats(f"calibration of '{name}'", value) for name, value in given.items()}


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
        machine = HlsMachine(program)

        def run_native(region: NDArray[np.int16]) -> tuple[NDArray[np.int16], None, int]:
            output, saturations = machine.run(region, task.name)
            return output, None, saturations

        yield run_native
    elif engine == "rtl":
        with SimulatedDevice(program.config, **simulation) as device:
            yield lambda region: device.run(program, region, task.name)
    else:
        raise InputError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine!r}")


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
