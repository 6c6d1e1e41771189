"""From a quantised graph to a Program."""

from collections.abc import Iterator, Sequence

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import COMMAND_BYTES, Command
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Buffer, Port, Program, Segment, Task, command_table, one_input
from patchloom.compiler.machine.verify import verify_once
from patchloom.compiler.quantise import Quantised
from patchloom.compiler.schedule.buffers import aligned, allocate
from patchloom.compiler.schedule.cuts import plan
from patchloom.compiler.schedule.drafting import Draft
from patchloom.compiler.schedule.errors import FitError
from patchloom.compiler.schedule.image import ALIGNMENT, Image
from patchloom.compiler.schedule.layers import layers


def schedule(quantised: Quantised, config: Config) -> Program:
    """Raises `FitError` with all that does not fit, `ScheduleError` for what no Config could run."""
    image = Image(config, len(quantised.graphs))
    problems: dict[str, dict[str, int]] = {}
    tasks = [_task(quantised, graph, config, image, problems) for graph in quantised.graphs]
    if problems:
        raise FitError(problems)
    data = command_table(config, [task.commands for task in tasks]).ljust(image.base, b"\0")
    pitch = config.command_depth * COMMAND_BYTES
    tables = [Segment(f"commands of {task.name}", i * pitch, pitch) for i, task in enumerate(tasks)]
    segments = (*tables, *image.segments)
    program = Program(config, str(quantised.precision), tuple(tasks), data + b"".join(image.parts), segments)
    verify_once(program)
    return program


def _task(
    quantised: Quantised, graph: Graph, config: Config, image: Image, problems: dict[str, dict[str, int]]
) -> Task:
    d, needed, count, enough = plan(quantised, graph, config, image)
    name, smaller = f"task '{graph.task}'", "a smaller model"
    sizes = [{"scratchpad_chunks": aligned(needed, config.banks)}, *([_depth(enough)] if enough else [])]
    d.demand(f"{name}: scratchpad (chunks)", needed, config.scratchpad_chunks, smaller, *sizes)
    rows = allocate(d.statistics)
    d.demand(f"{name}: row statistics (rows)", rows, config.statistics_rows, smaller, {"statistics_rows": rows})
    d.demand(f"{name}: commands", count, config.command_depth, smaller, _depth(count))
    problems |= d.problems
    commands = tuple(_encodable(draft, image, problems) for draft in d.drafts)
    return Task(
        graph.task, commands, tuple(_by_input(graph, d.inputs)), tuple(d.outputs), d.input_bytes, d.output_bytes,
        sum(node.macs for node in graph.nodes()), tuple(draft.note for draft in d.drafts),
        tuple(Buffer(s.name, s.address, s.size, s.first, s.last) for s in d.spans), tuple(d.experts),
        layers=tuple(layers(d)),
    )  # fmt: skip


def _by_input(graph: Graph, ports: Sequence[Port]) -> Iterator[Port]:
    """One port an input of the user's, whose layouts are loaded where each is read."""
    for name in graph.inputs():
        yield one_input([port for port in ports if port.name == name])


def _depth(commands: int) -> dict[str, int]:
    """That does for so many."""
    return {"command_depth": aligned(commands, ALIGNMENT)}


def _encodable(draft: Draft, image: Image, problems: dict[str, dict[str, int]]) -> Command:
    command = draft.command(image)
    try:
        command.encode()
    except ValueError as error:
        problems[f"does not fit: '{draft.note}': {error}; try a smaller layer"] = {}
    return command
