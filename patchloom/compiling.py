"""From a trained module to a Program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from patchloom.boards.board import board as board_of
from patchloom.compiler.frontend.capture import capture, input_names
from patchloom.compiler.frontend.module import plain_module
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Samples, Tell, as_floats, by_name
from patchloom.compiler.machine.program import NAME_RULE, Program, is_name
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import schedule
from patchloom.extras import needed_by
from patchloom.presets import PRESETS

if TYPE_CHECKING:
    from patchloom.sizing import Budget


def preset_for(precision: Precision, name: str = "small") -> Config:
    """The preset with multipliers as wide as most of the model needs; wider layers take several passes."""
    return replace(
        PRESETS[name], weight_width=max(precision.weights, 8), activation_width=max(precision.activations, 8)
    )


def compile_module(
    module: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    calibration: Any,
    tasks: Sequence[str] | None = None,
    config: Config | None = None,
    board: str | None = None,
    precision: str = "w8a8",
    overrides: Mapping[str, str] | None = None,
    progress: Tell | None = None,
    budget: "Callable[[Budget], None] | None" = None,
) -> Program:
    """Compile a trained module to a Program.

    `example_inputs` are forward's arguments with a batch dimension; where forward takes a task number, an int
    stands for it and `tasks` names the tasks. `calibration` holds samples, [n, ...] per input: one tensor or
    array, a tuple in forward's order, or a dictionary by the names of forward's parameters. `overrides` gives
    layers, by pattern of their name, another precision than `precision`.

    `board` names one of `patchloom boards`: the machine is sized for it and the model, or `config` must suit it;
    `budget` is told what it takes of the board and what limits it, before the Program is returned.
    """
    if not isinstance(module, nn.Module | ExportedProgram):
        raise InputError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    module = plain_module(module)
    for name in tasks or ():
        if not isinstance(name, str) or not is_name(name):
            raise InputError(f"a task must have {NAME_RULE}, not {name!r}")
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    bits = Precision.parse(precision, overrides)
    if board and config:
        _sizing().check_config(config, board_of(board))
    elif board:
        board_of(board)  # before anything that takes long
    samples = calibration_samples(module, example, calibration)
    if progress:
        progress("capture", 0, 1)
    graphs = capture(module, example, tasks=tasks)
    if progress:
        progress("capture", 1, 1)
    read = {name for graph in graphs for name in graph.inputs()}
    quantised = quantise(graphs, {name: samples[name] for name in samples if name in read}, bits, progress)
    if board is None:
        return schedule(quantised, config or preset_for(bits))
    program, made = _sized(quantised, samples, board, config, progress)
    if budget:
        budget(made)
    return program


def _sized(
    quantised: Quantised, samples: Samples, name: str, config: Config | None, progress: Tell | None
) -> "tuple[Program, Budget]":
    """For a board."""
    sizing, found = _sizing(), board_of(name)
    if config is None:
        program, made = sizing.size(quantised, samples, found, progress)
    else:
        program = schedule(quantised, config)
        made = sizing.budget(quantised, samples, program, found)
    return replace(program, board=name), made


def _sizing() -> Any:
    with needed_by("a machine for a board", "sim"):
        from patchloom import sizing  # noqa: PLC0415 - an extra
    return sizing


def calibration_samples(module: nn.Module, example: tuple[Any, ...], calibration: Any) -> Samples:
    """Samples by input, finite; `quantise` checks their shapes and number."""
    given = by_name("calibration", calibration, input_names(module, example))
    return {name: as_floats(f"calibration of '{name}'", value) for name, value in given.items()}
