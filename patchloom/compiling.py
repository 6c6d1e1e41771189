"""From a trained module to a Program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from patchloom.boards.board import board as board_of
from patchloom.compiler.frontend.capture import capture, input_names
from patchloom.compiler.frontend.module import plain_module
from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Samples, Tell, by_name, in_model_units, input_region
from patchloom.compiler.machine.preprocessing import Preprocessing, by_input
from patchloom.compiler.machine.program import NAME_RULE, Golden, Program, Task, is_name
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import schedule
from patchloom.extras import needed_by
from patchloom.pictures import read_pictures
from patchloom.presets import PRESETS
from patchloom.sim.interpret import execute

if TYPE_CHECKING:
    from patchloom.sizing import Budget


def preset_for(precision: Precision, name: str = "small") -> Config:
    """The preset with multipliers as wide as most of the model needs; wider layers take several passes."""
    return replace(
        PRESETS[name], weight_width=max(precision.weights, 8), activation_width=max(precision.activations, 8)
    )


def compile_module(  # noqa: PLR0913 - the front door: all that a user may choose, by name
    module: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    calibration: Any,
    tasks: Sequence[str] | None = None,
    config: Config | None = None,
    board: str | None = None,
    measure: bool = False,
    precision: str = "w8a8",
    overrides: Mapping[str, str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    progress: Tell | None = None,
    budget: "Callable[[Budget], None] | None" = None,
) -> Program:
    """Compile a trained module to a Program.

    `example_inputs` are forward's arguments with a batch dimension; where forward takes a task number, an int
    stands for it and `tasks` names the tasks. `calibration` holds samples, [n, ...] per input: one tensor or
    array, a tuple in forward's order, or a dictionary by the names of forward's parameters. `overrides` gives
    layers, by pattern of their name, another precision than `precision`.

    `board` names one of `patchloom boards`: the machine is sized for it and the model, or `config` must suit it;
    `budget` is told what it takes of the board and what limits it, before the Program is returned. With `measure` Yosys
    says what it takes, in minutes, and not the area model.

    `preprocessing`, which the Program keeps, makes the model's input of pictures: a `Preprocessing`, a dictionary of
    its fields, or timm's `resolve_data_config(model=model)`; by name where there are several inputs. It applies to
    paths of PNG and JPEG files and to arrays of type uint8, in `calibration` as well; floats are in the model's own
    units.
    """
    bits = Precision.parse(precision, overrides)
    if board and config:
        _sizing().check_config(config, board_of(board))
    elif board:
        board_of(board)  # before anything that takes long
    model = read_model(
        module, example_inputs, calibration=calibration, tasks=tasks, preprocessing=preprocessing, progress=progress
    )
    quantised = quantise(model.graphs, model.samples, bits, progress)
    if board is None:
        program = schedule(quantised, config or preset_for(bits))
    else:
        program, made = _sized(quantised, model.samples, board, config, progress, measured=measure)
        if budget:
            budget(made)
    return _keeping(program, model.preprocessing, model.samples)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained module as the compiler reads it, and the samples that its formats are chosen by."""

    graphs: list[Graph]
    samples: Samples  # of each input that a graph reads
    preprocessing: dict[str, Preprocessing]  # by input


def read_model(
    module: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    calibration: Any,
    tasks: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    progress: Tell | None = None,
) -> Model:
    """Arguments as of `compile_module`."""
    if not isinstance(module, nn.Module | ExportedProgram):
        raise InputError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    module = plain_module(module)
    for name in tasks or ():
        if not isinstance(name, str) or not is_name(name):
            raise InputError(f"a task must have {NAME_RULE}, not {name!r}")
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    names = input_names(module, example)
    tensors = [value for value in example if isinstance(value, Tensor)]
    kept = by_input(preprocessing, {name: tuple(x.shape[1:]) for name, x in zip(names, tensors, strict=True)})
    samples = calibration_samples(names, calibration, kept)
    if progress:
        progress("capture", 0, 1)
    graphs = capture(module, example, tasks=tasks)
    if progress:
        progress("capture", 1, 1)
    read = {name for graph in graphs for name in graph.inputs()}
    return Model(graphs, {name: samples[name] for name in samples if name in read}, dict(kept))


def _keeping(program: Program, preprocessing: Mapping[str, Preprocessing], samples: Samples) -> Program:
    """With the preprocessing of its inputs, by name, and a golden of each task: the first of the samples."""

    def kept(task: Task) -> Task:
        first = {port.name: samples[port.name][0] for port in task.inputs}
        region, _ = input_region(task, first)
        ports = tuple(replace(port, preprocessing=preprocessing.get(port.name)) for port in task.inputs)
        return replace(task, inputs=ports, golden=Golden(region, *execute(program, task.name, region)))

    return replace(program, tasks=tuple(map(kept, program.tasks)))


def _sized(
    quantised: Quantised, samples: Samples, name: str, config: Config | None, progress: Tell | None, *, measured: bool
) -> "tuple[Program, Budget]":
    """For a board."""
    sizing, found = _sizing(), board_of(name)
    if config is None:
        program, made = sizing.size(quantised, samples, found, progress, measured=measured)
    else:
        program = schedule(quantised, config)
        made = sizing.budget(quantised, samples, program, found)
    return replace(program, board=name), made


def _sizing() -> Any:
    with needed_by("a machine for a board", "sim"):
        from patchloom import sizing  # noqa: PLC0415 - an extra
    return sizing


def calibration_samples(names: list[str], calibration: Any, preprocessing: Mapping[str, Preprocessing]) -> Samples:
    """Samples by input, finite; `quantise` checks their shapes and number."""
    given = by_name("calibration", calibration, names)
    return {name: samples_of(f"calibration of '{name}'", given[name], preprocessing.get(name)) for name in names}


def samples_of(what: str, value: Any, preprocessing: Preprocessing | None) -> NDArray[np.floating[Any]]:
    """One input's samples, pictures made what the model takes."""
    return in_model_units(what, read_pictures(what, value, preprocessing), preprocessing)
