"""A report's first frame over time, for Perfetto (ui.perfetto.dev) and Chrome: a microsecond stands for a cycle."""

import json
from collections.abc import Iterator
from typing import Any

from patchloom.reporting.report import CommandReport, Report, TaskReport

Event = dict[str, Any]
UNITS = {
    "issuer": "issuer: multiplies, routes, stores",
    "stager": "stager: fills the array",
    "fetcher": "fetcher: memory",
}


def trace(report: Report) -> str:
    """JSON; a process a task, a thread a unit."""
    events = [event for number, task in enumerate(report.tasks, 1) for event in _events(number, task)]
    return json.dumps({"traceEvents": events, "otherData": {"precision": report.precision, "machine": report.machine}})


def _events(process: int, task: TaskReport) -> Iterator[Event]:
    yield _name("process_name", process, 0, f"task {task.name}")
    for thread, (unit, title) in enumerate(UNITS.items(), 1):
        yield _name("thread_name", process, thread, title)
        for command in task.commands:
            begin, end = command.units[unit]
            if end > begin:
                shared = {"pid": process, "tid": thread, "ts": begin, "dur": end - begin}
                yield {"ph": "X", "name": command.note or command.kind, "cat": command.kind, **shared,
                       "args": {"layer": command.layer, "waits": _waits(command, unit)}}  # fmt: skip


def _name(what: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _waits(command: CommandReport, unit: str) -> dict[str, int]:
    return {name: cycles for name, cycles in command.waits.items() if name.startswith(f"{unit}.")}
