"""`patchloom.report`: a Program beside the model that it was made of, on data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from patchloom.boards.board import board
from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Samples, Tell, input_frames, warn_of_clipping
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.program import Layer, Program, Task
from patchloom.compiler.machine.verify import verify_once
from patchloom.compiler.quantise.driver import calibrate
from patchloom.compiling import Model, read_model
from patchloom.design import load_design, read_design
from patchloom.pictures import inputs_with_pictures
from patchloom.reporting.budget import Budget, Measured
from patchloom.reporting.machine import check_layers, run
from patchloom.reporting.overrides import Trials, candidates, distinct, merged
from patchloom.reporting.report import WORTH, LayerReport, Override, Report, TaskReport
from patchloom.reporting.timing import Timing

FRAMES, TRIES = 16, 3
MEMORY = {"latency": 40}  # where the Program is for no board: that of `patchloom.predict`


def report(
    program: Program,
    model: nn.Module | ExportedProgram | Path | str,
    data: Any,
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    frames: int = FRAMES,
    tries: int = TRIES,
    progress: Tell | None = None,
) -> Report:
    """Where the Program loses accuracy and time.

    `model` is the design file that the Program was compiled of; or the module, and then `example_inputs`, `calibration`
    and `preprocessing` are those of `patchloom.compile`. `data` is what `patchloom.run` takes, of which the first
    `frames` are looked at; cycles are those of the first. Of each task's `tries` largest losses, overrides of precision
    are tried. Raises `InputError` if the Program was made of another model, or of other samples; may warn of a
    `ClippedWarning`.
    """
    for name, number, least in (("frames", frames, 1), ("tries", tries, 0)):
        if number < least:
            raise InputError(f"{name} must be at least {least}, not {number}")
    verify_once(program)
    samples = {task.name: samples_of(task, data, frames) for task in program.tasks}
    if isinstance(model, str | Path):
        read = read_design(load_design(Path(model)), progress)
    else:
        several = isinstance(example_inputs, tuple) and any(isinstance(value, int) for value in example_inputs)
        read = read_model(
            model, example_inputs, calibration=calibration, preprocessing=preprocessing, progress=progress,
            tasks=[task.name for task in program.tasks] if several else None,
        )  # fmt: skip
    return _Making(program, read, samples, progress or _silent).report(tries)


def samples_of(task: Task, data: Any, frames: int) -> list[Samples]:
    """The first frames of a task; of data by name those that it reads."""
    if isinstance(data, dict):
        names = {port.name for port in task.inputs}
        data = {name: _few(value, frames) for name, value in data.items() if name in names}
    data = _few(data, frames)
    made = input_frames(task, inputs_with_pictures(task, data))[0][:frames]
    warn_of_clipping(task, made)
    return made


def _few(value: Any, frames: int) -> Any:
    """Of a list of pictures the first, so that no others are read."""
    return value[:frames] if isinstance(value, list) else value


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, eq=False)
class _Making:
    """A report under way."""

    program: Program
    model: Model
    samples: Mapping[str, list[Samples]]  # by task
    tell: Tell

    def report(self, tries: int) -> Report:
        graphs = {graph.task: graph for graph in self.model.graphs}
        names = [task.name for task in self.program.tasks]
        if list(graphs) != names:
            raise InputError(f"the Program must be of the model's tasks {', '.join(graphs)}, not of {', '.join(names)}")
        for task in self.program.tasks:
            check_layers(graphs[task.name], task)
        trials = Trials(
            self.program, calibrate(self.model.graphs, self.model.samples, self.tell), graphs, self.samples, self.memory
        )
        if trials.compiled({}).image != self.program.image:
            raise InputError("the Program must be made of this model and these samples, and is not: compile it again")
        budgets = {task.name: self._budget(graphs[task.name], task) for task in self.program.tasks}
        tasks = tuple(self._task(budgets[task.name], task) for task in self.program.tasks)
        overrides = sorted(self._overrides(trials, tasks, tries), key=lambda one: -one.gain)
        useful = merged(one for one in overrides if one.gain >= WORTH)
        config = self.program.config
        return Report(
            precision=self.program.precision,
            board=self.program.board,
            machine=f"{config.inputs} x {config.outputs} multipliers of {config.weight_width} x "
            f"{config.activation_width} bits, {config.bus_width}-bit bus",
            memory=dict(self.memory),
            tasks=tasks,
            overrides=tuple(overrides),
            together=trials.tried(useful, tasks) if useful else None,
        )

    @property
    def memory(self) -> Mapping[str, int]:
        return board(self.program.board).memory.timing if self.program.board else MEMORY

    def _budget(self, graph: Graph, task: Task) -> Budget:
        made, samples = Budget(graph, task), self.samples[task.name]
        for done, sample in enumerate(samples):
            self.tell(f"look at {task.name}", done, len(samples))
            made.add(sample, run(self.program, task, sample))
        self.tell(f"look at {task.name}", len(samples), len(samples))
        return made

    def _task(self, budget: Budget, task: Task) -> TaskReport:
        timing = Timing.of(self.program, task, self.samples[task.name][0], self.memory)
        measured = zip(task.layers, budget.layers, budget.shares(), strict=True)
        layers = tuple(_layer(layer, seen, share, timing) for layer, seen, share in measured)
        routes = [layer.routing for layer in layers if layer.routing]
        tokens, otherwise = sum(r.tokens for r in routes), sum(r.otherwise for r in routes)
        return TaskReport(
            name=task.name,
            frames=len(self.samples[task.name]),
            output=budget.output.quality,
            routed=1 - otherwise / tokens if tokens else None,
            saturations=sum(layer.saturations for layer in layers),
            cycles=timing.cycles,
            bytes=timing.bytes,
            macs=task.macs,
            utilisation=timing.utilisation(task.macs, timing.cycles),
            layers=layers,
            commands=tuple(timing.commands()),
        )

    def _overrides(self, trials: Trials, tasks: Sequence[TaskReport], tries: int) -> Iterator[Override]:
        """For the largest losses of each task."""
        wanted: list[dict[str, str]] = []
        for task, graph in zip(tasks, self.model.graphs, strict=True):
            lossy = [pair for pair in zip(task.layers, graph.nodes(), strict=True) if pair[0].share > 0]
            for _, node in sorted(lossy, key=lambda pair: -pair[0].share)[:tries]:
                wanted += candidates(graph, node, trials.precision)
        wanted = distinct(wanted)
        for done, layers in enumerate(wanted):
            self.tell("try overrides", done, len(wanted))
            if made := trials.tried(layers, tasks):
                yield made
        self.tell("try overrides", len(wanted), len(wanted))


def _layer(layer: Layer, seen: Measured, share: float, timing: Timing) -> LayerReport:
    cycles, reach = timing.cycles_of(layer), layer.scale * 2 ** (layer.width - 1)
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        where=layer.where,
        precision=layer.precision,
        bits=layer.width,
        step=layer.scale,
        reach=(-reach, reach - layer.scale),
        calibrated=(layer.low, layer.high),
        seen=(seen.low, seen.high),
        saturations=seen.saturations,
        alone=seen.alone.quality,
        accumulated=seen.accumulated.quality,
        at_output=seen.at_output.quality,
        share=share,
        routing=seen.routing,
        cycles=cycles,
        waits=timing.waits_of(layer),
        bytes=timing.bytes_of(layer),
        macs=layer.macs,
        utilisation=timing.utilisation(layer.macs, cycles),
    )
