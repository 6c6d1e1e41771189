"""A Program for machines that copy: what a task stores is what it was given."""

import numpy as np

from patchloom.compiler.machine.commands import Command, Kind, Space
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Port, Program, Task, command_table

SHAPE = 5, 16
ELEMENTS = SHAPE[0] * SHAPE[1]
FRACTION = 4


def copying(config: Config, *names: str) -> Program:
    """Tasks of one input and one output of the same shape and format."""
    index = np.arange(ELEMENTS)
    port = {"offset": 0, "elements": ELEMENTS, "fraction": FRACTION, "width": 8}
    begin = Command(kind=Kind.BEGIN, rows=3, epsilon=config.fingerprint)
    rows = ELEMENTS // config.lanes
    store = Command(kind=Kind.STORE, rows=rows, dma_space=Space.OUTPUT, dma_beats=2 * ELEMENTS // config.beat_bytes)
    commands = (begin, store, Command(kind=Kind.END))
    inputs = (Port("x", SHAPE, index=index, **port),)
    outputs = (Port("y", SHAPE, index=index.reshape(SHAPE), **port),)
    tasks = tuple(
        Task(name, commands, inputs, outputs, 2 * ELEMENTS, 2 * ELEMENTS, 0, ("begin", "first", "end"))
        for name in names
    )
    return Program(config, "w8a8", tasks, command_table(config, [commands] * len(names)) + bytes(range(200)))
