"""What the machine makes of each layer, as the interpreter shows it."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Command, Kind
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Samples, input_region
from patchloom.compiler.machine.program import Piece, Program, Task
from patchloom.compiler.node import Floats
from patchloom.sim.interpret import State, execute

Chosen = NDArray[np.bool_]  # [tokens, experts]


@dataclass(eq=False)
class Frame:
    """One frame on the machine, by the layers' numbers in the task."""

    values: dict[int, Floats] = field(default_factory=dict)  # results, of those that commands compute
    chosen: dict[int, Chosen] = field(default_factory=dict)  # of mixtures
    saturations: Counter[int] = field(default_factory=Counter)


def check_layers(graph: Graph, task: Task) -> None:
    """Raises `InputError` if the Program does not say what became of its layers, or has others."""
    if not task.layers:
        raise InputError(
            f"task '{task.name}' keeps no layers: the Program was made before there were any; compile again"
        )
    ours = [(node.kind, node.name, node.shape) for node in graph.nodes()]
    if ours != [(layer.kind, layer.name, layer.shape) for layer in task.layers]:
        raise InputError(f"task '{task.name}' must have the model's layers, and has others: compile it again")


def run(program: Program, task: Task, sample: Samples) -> Frame:
    """Of one sample of each of the task's inputs."""
    watch = _Watch(task)
    execute(program, task.name, input_region(task, sample)[0], watch)
    incomplete = [task.layers[number].name for number, value in watch.frame.values.items() if np.isnan(value).any()]
    assert not incomplete, f"no command has written all of {', '.join(incomplete)}"
    return watch.frame


class _Watch:
    """Reads each piece of a layer's result when it is whole: its place is another's soon."""

    def __init__(self, task: Task) -> None:
        self.frame = Frame()
        self.layers = task.layers
        self.owner = {command: number for number, layer in enumerate(task.layers) for command in layer.commands}
        self.due: dict[int, list[tuple[int, Piece]]] = defaultdict(list)
        for number, layer in enumerate(task.layers):
            for piece in layer.pieces:
                self.due[piece.command].append((number, piece))
        self.orders = iter(task.experts)
        self.saturations = 0

    def __call__(self, position: int, command: Command, state: State) -> None:
        if position in self.owner:
            self.frame.saturations[self.owner[position]] += state.saturations - self.saturations
        self.saturations = state.saturations
        if command.kind == Kind.ROUTE:
            self.frame.chosen[self.owner[position]] = self._chosen(command, state)
        for number, piece in self.due[position]:
            self._read(number, piece, state)

    def _chosen(self, command: Command, state: State) -> Chosen:
        """In the model's numbers of experts, not the queues'."""
        chosen = np.zeros((command.rows, command.columns), np.bool_)
        for expert, queue in zip(next(self.orders), state.queues, strict=True):
            chosen[queue.token, expert] = True
        return chosen

    def _read(self, number: int, piece: Piece, state: State) -> None:
        layer = self.layers[number]
        value = self.frame.values.setdefault(number, np.full(layer.shape, np.nan, np.float32))
        width = max(position + count for _, count, position in piece.columns)
        rows = state.read(piece.address + piece.stride * np.arange(piece.rows), width, piece.packed)
        for first, count, position in piece.columns:
            part = rows[:, position : position + count] * layer.scale
            value[piece.row : piece.row + piece.rows, first : first + count] = part
