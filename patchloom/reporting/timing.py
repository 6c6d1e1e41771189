"""Cycles, waits and bytes of each layer, from the cycle model."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from patchloom.compiler.machine.commands import Command, Kind, Stationary
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.frames import Samples, input_region
from patchloom.compiler.machine.program import Layer, Program, Task
from patchloom.reporting.report import CommandReport, Spans
from patchloom.sim.cycles import Prediction, predict, queue_lengths

ISSUER = "issuer."


@dataclass(frozen=True, eq=False)
class Timing:
    """Of one frame of a task."""

    config: Config
    task: Task
    prediction: Prediction

    @classmethod
    def of(cls, program: Program, task: Task, sample: Samples, memory: Mapping[str, int]) -> "Timing":
        queues = queue_lengths(program, task.name, input_region(task, sample)[0])
        return cls(program.config, task, predict(program, task.name, queues=queues, **memory))

    @property
    def cycles(self) -> int:
        return self.prediction.cycles

    @property
    def bytes(self) -> int:
        """Commands included."""
        return (self.prediction.beats_read + self.prediction.beats_written) * self.config.beat_bytes

    def utilisation(self, macs: int, cycles: int) -> float:
        """Of the array's multipliers, by the model's products: padding and digits count as idle."""
        return macs / (cycles * self.config.inputs * self.config.outputs) if cycles else 0.0

    def cycles_of(self, layer: Layer) -> int:
        """While the issuer is at its commands."""
        return sum(end - begin for begin, end in (self.prediction.per_command[i] for i in layer.commands))

    def waits_of(self, layer: Layer) -> dict[str, int]:
        """What the issuer waits for meanwhile, the longest first."""
        waits: Counter[str] = Counter()
        for position in layer.commands:
            waits.update(_of_issuer(self.prediction.waits_per_command[position]))
        return dict(waits.most_common())

    def bytes_of(self, layer: Layer) -> int:
        """That its commands move, if every expert has tokens."""
        return sum(_beats(self.task.commands[position]) * self.config.beat_bytes for position in layer.commands)

    def commands(self) -> Iterator[CommandReport]:
        owner = {position: layer.name for layer in self.task.layers for position in layer.commands}
        notes = self.task.notes or ("",) * len(self.task.commands)
        for position, (command, note) in enumerate(zip(self.task.commands, notes, strict=True)):
            waits = self.prediction.waits_per_command[position]
            yield CommandReport(note, command.kind.name, owner.get(position, ""), self._spans(position), waits)

    def _spans(self, position: int) -> Spans:
        spans: Spans = {"issuer": self.prediction.per_command[position]}
        for unit, ends in self.prediction.ahead.items():
            spans[unit] = ends[position - 1] if position else 0, ends[position]
        return spans


def _of_issuer(waits: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(ISSUER): cycles for name, cycles in waits.items() if name.startswith(ISSUER)}


def _beats(command: Command) -> int:
    moves = command.kind in (Kind.LOAD, Kind.TABLE, Kind.STORE)
    streams = command.kind == Kind.MATMUL and command.b_source == Stationary.MEMORY
    return command.dma_beats if moves or streams else 0
