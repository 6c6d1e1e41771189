"""Frames seen one by one: run on an engine or a machine, and a picture and a file of arrays of each in a folder."""

import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchloom import drawing, running, session
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import Result
from patchloom.compiler.machine.program import Program, Task
from patchloom.drawing import Sight
from patchloom.experts import Routing, Sets
from patchloom.sources import Bursts, Shot

Stream = Callable[[Iterable[tuple[Any, str]]], Iterator[Result]]  # results of samples, each with its task, in order


class DifferentError(Error, ValueError):
    """A machine and the interpreter made different things of a frame."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame and what each task sees of it."""

    name: str
    sights: Sequence[Sight]
    rate: float  # frames a second until here, without the time between bursts


class Eyes:
    """Some of a Program's tasks, wherever they run, that look at frames."""

    def __init__(
        self, program: Program, tasks: Sequence[Task], stream: Stream, *, beside: bool, routing: Routing | None
    ) -> None:
        """`routing` has watched the stream, or watches what the interpreter does `beside` it."""
        self.program, self.tasks = program, tasks
        self._stream, self._beside, self._routing = stream, beside, routing

    def seen(self, bursts: Bursts) -> Iterator[Seen]:
        """In the frames' order; a burst's last frame does not wait for the next burst."""
        count, busy = 0, 0.0
        for burst in bursts:
            begin = time.monotonic()
            for name, sights in self._seen(burst):
                count += 1
                yield Seen(name, sights, count / (busy + time.monotonic() - begin))
            busy += time.monotonic() - begin

    def _seen(self, shots: Iterable[Shot]) -> Iterator[tuple[str, Sequence[Sight]]]:
        waiting: deque[Shot] = deque()

        def samples() -> Iterator[tuple[Any, str]]:
            for shot in shots:
                waiting.append(shot)
                yield from ((shot.inputs[task.name], task.name) for task in self.tasks)

        sights: list[Sight] = []
        for result in self._stream(samples()):
            shot, task = waiting[0], self.tasks[len(sights)]
            sights.append(Sight(task, shot.inputs[task.name], result, self._sets(shot, task, result)))
            if len(sights) == len(self.tasks):
                yield waiting.popleft().name, sights
                sights = []

    def _sets(self, shot: Shot, task: Task, result: Result) -> list[Sets] | None:
        if self._routing is None:
            return None
        if self._beside:
            again = running.run(self.program, shot.inputs[task.name], task=task.name, observe=self._routing)
            if wrong := [name for name, raw in again.raw.items() if not np.array_equal(raw, result.raw[name])]:
                raise DifferentError(f"{shot.name}: output '{wrong[0]}' of task '{task.name}' is not the interpreter's")
        return self._routing.taken(task)


@contextmanager
def eyes(
    program: Program,
    tasks: Sequence[Task],
    *,
    engine: running.Engine,
    device: str | None,
    project: Path | None,
    experts: bool,
) -> Iterator[Eyes]:
    """On an engine, or on the named `device`, which is closed afterwards.

    Where the interpreter is not the engine, `experts` has it run every frame beside, to know where the tokens went; its
    results must be the same.
    """
    if device is None and engine == "rtl":
        device = "sim"
    free = device is None and engine == "interpreter"  # it routes anyway
    routing = Routing() if free or experts else None
    if device is None:

        def one_by_one(samples: Iterable[tuple[Any, str]]) -> Iterator[Result]:
            observe = routing if free else None
            for inputs, task in samples:
                yield running.run(program, inputs, task=task, engine=engine, observe=observe)

        yield Eyes(program, tasks, one_by_one, beside=not free, routing=routing)
    else:
        with session.Session(device, program, project=project) as opened:
            yield Eyes(program, tasks, opened.stream, beside=True, routing=routing)


# --- What is kept ---


def check_folder(output: Path, others: Iterable[Path]) -> None:
    """That results are not put where inputs come from, or the Program: they would be seen, too, or replace them."""
    if not output.is_dir() and (output.suffix or output.exists()):
        raise InputError(f"--output must be a folder, or end in .npz, not '{output}'")
    for path in others:
        folder = path if path.is_dir() else path.parent
        if output.resolve() == folder.resolve():
            raise InputError(
                f"--output must be another folder than those of the inputs and the Program, not '{output}'"
            )


def array_names(task: Task) -> list[tuple[str, str]]:
    """Of each output, as numbers in the model's units and as the machine's integers."""
    return [(f"{task.name}/{port.name}", f"raw/{task.name}/{port.name}") for port in task.outputs]


def check_names(tasks: Sequence[Task]) -> None:
    """Tasks and outputs are free text."""
    names = [name for task in tasks for pair in array_names(task) for name in pair]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"a file of results cannot hold {twice[0]!r} twice: choose one --task")


def keep(program: Program, seen: Seen, folder: Path, *, pictures: bool) -> list[Path]:
    """NAME.npz: every output by its task and name, and its integers under raw/; and NAME.png."""
    made: dict[str, Any] = {}
    for sight in seen.sights:
        for port, (name, raw) in zip(sight.task.outputs, array_names(sight.task), strict=True):
            made |= {name: sight.result.outputs[port.name], raw: sight.result.raw[port.name]}
    files = [folder / f"{seen.name}.npz"]
    write_arrays(files[0], made)
    if pictures:
        files.append(folder / f"{seen.name}.png")
        with replaced(files[1]) as temporary:
            temporary.write_bytes(drawing.drawn(program, seen.sights))
    return files


def write_arrays(path: Path, results: dict[str, Any]) -> None:
    """All of the file or nothing of it."""
    with replaced(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in results.items():  # as np.savez does, which takes no array named 'file'
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".patchloom-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
