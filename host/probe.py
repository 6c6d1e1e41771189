"""Looking into a machine in the middle of a frame: a task that is cut off, and stores the scratchpad."""

from dataclasses import replace

from patchloom.compiler.machine.commands import FIELDS, Command, Kind, Space
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import ELEMENT_BYTES, Task

STORED_CHUNKS = 1 << FIELDS["rows"][0] - 1  # of one command, whole beats of any bus


def most_commands(config: Config, task: Task) -> int:
    """All but the last, or as many as leave room in the command memory."""
    return min(len(task.commands) - 1, config.command_depth - len(_dump(config)) - 1)


def _dump(config: Config) -> tuple[Command, ...]:
    """The scratchpad to the output region, as far as it is whole beats."""
    size = config.lanes * ELEMENT_BYTES  # of a chunk
    whole = config.scratchpad_chunks - config.scratchpad_chunks % max(config.beat_bytes // size, 1)
    return tuple(
        Command(
            kind=Kind.STORE, a_address=first, rows=(chunks := min(STORED_CHUNKS, whole - first)),
            dma_space=Space.OUTPUT, dma_address=first * size, dma_beats=chunks * size // config.beat_bytes,
        )
        for first in range(0, whole, STORED_CHUNKS)
    )  # fmt: skip


def probing(config: Config, task: Task, count: int) -> Task:
    """The first commands of a task, and then the scratchpad to the output region. Raises `InputError`."""
    most = most_commands(config, task)
    if not 1 <= count <= most:
        raise InputError(f"a probe must be of 1 to {most} commands, not {count}")
    begin, *rest = task.commands[:count]
    dump = _dump(config)
    return replace(
        task,
        name=f"{task.name}, probed",
        commands=(replace(begin, rows=count + len(dump) + 1), *rest, *dump, Command(kind=Kind.END)),
        notes=task.notes[:count],
        output_bytes=sum(store.dma_beats for store in dump) * config.beat_bytes,
    )
