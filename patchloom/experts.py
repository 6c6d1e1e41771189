"""Where a frame's tokens went: the experts that each was sent to, and the pixels that each is made of.

No machine returns its queues. They are the interpreter's, which computes the same frame bit for bit alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Command, Kind, Queue, Residual, Space
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.program import Port, Program, Task
from patchloom.sim.interpret import State

Sets = NDArray[np.bool_]  # [tokens, experts], in the model's numbers
NOWHERE = np.iinfo(np.int64).max // 2  # beyond every pixel


class Routing:
    """The interpreter's observer; `sets` has an entry for each ROUTE since it was last taken."""

    def __init__(self) -> None:
        self._found: list[tuple[Command, list[Ints]]] = []

    def __call__(self, _: int, command: Command, state: State) -> None:
        if command.kind == Kind.ROUTE:
            self._found.append((command, [queue.token for queue in state.queues]))

    def taken(self, task: Task) -> list[Sets]:
        """Of the frame of `task` that was observed, mixture by mixture."""
        sets = [sets_of_queues(*found, order) for found, order in zip(self._found, task.experts, strict=True)]
        self._found.clear()
        return sets


def sets_of_queues(command: Command, tokens: Sequence[Ints], order: Sequence[int]) -> Sets:
    """After a ROUTE: `tokens` of each queue; `order` is the model's number of its expert."""
    sets = np.zeros((command.rows, command.columns), np.bool_)
    for expert, queue in zip(order, tokens, strict=True):
        sets[queue, expert] = True
    return sets


# --- Places ---


@dataclass
class _Places:
    """From which pixels of an input each chunk of the scratchpad was computed, row by row.

    A place is (top, left, -bottom, -right), all within, so that the least of several is what holds them; NOWHERE is
    none. What a row is multiplied with, keys and values too, has no part in it: that would be all pixels of a picture.
    """

    program: Program
    port: Port
    axes: tuple[int, int]  # of height and width
    chunks: Ints = field(init=False)
    tokens: Ints = field(init=False)  # of the last ROUTE

    def __post_init__(self) -> None:
        self.chunks = np.full((self.program.config.scratchpad_chunks, 4), NOWHERE)
        self.tokens = self.chunks[:0]

    def rows(self, c: Command, operand: str, count: int, columns: int) -> tuple[Ints, Ints]:
        """The chunks of each row of a command's operand, and the place of each row."""
        config, packed = self.program.config, getattr(c, f"{operand}_packed", 0)
        streamed = c.kind == Kind.MATMUL and operand == "a"
        pieces = c.pieces(config.inputs, config.lanes) if streamed else np.arange(-(-columns // config.lanes))
        where = c.places(operand, np.arange(count))[:, None] + (pieces >> packed)
        return where, self.chunks[where].min(axis=1)

    def after(self, c: Command) -> None:
        """Of one command."""
        if c.kind == Kind.LOAD:
            self.chunks[c.a_address :][: c.rows] = self._loaded(c) if c.dma_space == Space.INPUT else NOWHERE
        elif c.kind == Kind.ROUTE:
            _, self.tokens = self.rows(c, "a", c.rows, c.columns)
        elif c.kind == Kind.MATMUL:
            self._multiplied(c)

    def _loaded(self, c: Command) -> Ints:
        lanes = self.program.config.lanes << self.port.packed
        elements = (c.dma_address - self.port.offset) // self.port.element_bytes + np.arange(c.rows * lanes)
        inside = (elements >= 0) & (elements < self.port.elements)
        user = np.where(inside, self.port.index[np.where(inside, elements, 0)], -1)
        at = np.unravel_index(np.maximum(user, 0), self.port.shape)
        y, x = (at[axis] for axis in self.axes)
        places = np.where(user[:, None] < 0, NOWHERE, np.stack([y, x, -y, -x], axis=1))
        found: Ints = places.reshape(c.rows, lanes, 4).min(axis=1)
        return found

    def _multiplied(self, c: Command) -> None:
        count = len(self.tokens) if c.queue == Queue.SCATTER else c.rows
        where, _ = self.rows(c, "o", count, c.columns)
        if c.queue:  # rows of a queue are some of the tokens, which depends on the frame
            self.chunks[where] = self.tokens[:, None] if c.queue == Queue.SCATTER else NOWHERE
            return
        _, places = self.rows(c, "a", count, c.depth)
        if c.residual in (Residual.ADD, Residual.MAXIMUM):
            places = np.minimum(places, self.rows(c, "r", count, c.columns)[1])
        self.chunks[where] = places[:, None]


def token_places(program: Program, task: Task, port: Port, axes: tuple[int, int]) -> list[Ints]:
    """For each ROUTE, the pixels that its tokens are made of: [tokens, 4], (top, left, bottom, right).

    `axes` are those of height and width of the input `port`. A token that is of no pixel, as a class token is, has
    bottom <= top.
    """
    known, found = _Places(program, port, axes), []
    for command in task.commands:
        known.after(command)
        if command.kind == Kind.ROUTE:
            top, left, bottom, right = known.tokens.T
            found.append(np.stack([top, left, 1 - bottom, 1 - right], axis=1))
    return found


def apart(places: Ints) -> bool:
    """Whether there are places, and no pixel belongs to two: only then tokens can be drawn over a picture."""
    there = places[places[:, 2] > places[:, 0]]
    if not len(there):
        return False
    pixels = np.zeros(there[:, 2:].max(axis=0), np.int64)
    for top, left, bottom, right in there:
        pixels[top:bottom, left:right] += 1
    return int(pixels.max()) == 1
