"""Where frames come from: files, a folder that is watched, a camera. All come in bursts.

A burst ends where no frame waits, so that the results of those before need not wait for the next one.
"""

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from patchloom import arrays, pictures
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Samples, input_frames
from patchloom.compiler.machine.preprocessing import Bytes, Preprocessing
from patchloom.compiler.machine.program import Task
from patchloom.extras import needed_by
from patchloom.pictures import inputs_with_pictures, is_picture, pictures_in

LOOK = 0.1  # seconds from one look into a folder to the next
SETTLED = 0.5  # seconds that a file must have stayed as it is
LONGEST_NAME = 240  # bytes: file systems have 255
Stop = Callable[[], bool]
Version = tuple[int, int, int, int]  # of a file: device, inode, size, time of its last change


@dataclass(frozen=True, eq=False)
class Shot:
    """A frame: its name, and its inputs as each task takes them."""

    name: str
    inputs: Mapping[str, Samples] = field(repr=False)


Bursts = Iterable[Iterable[Shot]]


# --- Files ---


def inputs_for(task: Task, paths: Sequence[Path]) -> dict[str, Any]:
    """The task's inputs: pictures, one or a batch, or all of a folder; or a file's arrays.

    Other arrays of the file are ignored, and a lone array needs no name.
    """
    names = [port.name for port in task.inputs]
    paths = listed(paths)
    path = paths[0]
    if any(map(is_picture, paths)):
        if not all(map(is_picture, paths)) or len(names) != 1:
            raise InputError(
                f"inputs must be pictures, and the task's only input, or one file of arrays, not {_named(paths)} for "
                f"{_named(names)}"
            )
        return {names[0]: path if len(paths) == 1 else paths}
    if len(paths) > 1:
        raise InputError(f"inputs must be pictures, or one file of arrays, not {_named(paths)}")
    if path.suffix not in arrays.SUFFIXES:
        raise InputError(f"{path} must be a file that ends in {', '.join((*arrays.SUFFIXES, *pictures.SUFFIXES))}")
    found = arrays.read_arrays(path)
    if len(names) == len(found) == 1:
        return dict(zip(names, found.values(), strict=True))
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path} must hold {_named(missing)}; it holds {_named(found)}")
    return {name: found[name] for name in names}


def listed(paths: Sequence[Path]) -> list[Path]:
    """Files, and the pictures of folders."""
    return [path for given in paths for path in (pictures_in(given) if given.is_dir() else [given])]


def _named(things: Iterable[Any]) -> str:
    return ", ".join(f"'{thing}'" for thing in things)


def files(tasks: Sequence[Task], paths: Sequence[Path]) -> Iterator[Iterable[Shot]]:
    """Frame by frame, in one burst; everything is read once before, so that what is wrong is told before the first."""
    found = listed(paths)
    if not any(map(is_picture, found)):
        yield _samples(tasks, found)
        return
    for task in tasks:
        inputs_for(task, found)
    if twice := [path.name for path in found if sum(other.name == path.name for other in found) > 1]:
        raise InputError(f"inputs must have different names, as their results have them, and '{twice[0]}' comes twice")
    for path in found:
        of_file(path, tasks)
    yield (of_file(path, tasks) for path in found)


def _samples(tasks: Sequence[Task], paths: Sequence[Path]) -> Iterator[Shot]:
    """Of a file of arrays."""
    samples = {task.name: input_frames(task, inputs_with_pictures(task, inputs_for(task, paths)))[0] for task in tasks}
    counts = {name: len(of_task) for name, of_task in samples.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs must have equally many samples for each task, not {counts}")
    for number, every in enumerate(zip(*samples.values(), strict=True)):
        yield Shot(f"{paths[0].stem}-{number:06}", dict(zip(samples, every, strict=True)))


Read = Callable[[str, Preprocessing | None], Any]  # a picture as a preprocessing makes it an input


def shot(name: str, tasks: Sequence[Task], read: Read) -> Shot:
    """Of a picture, the only input of every task; each preprocessing is applied once."""
    made: dict[Preprocessing | None, Any] = {}
    for task in tasks:
        [port] = task.inputs
        if port.preprocessing not in made:
            made[port.preprocessing] = read(f"input '{port.name}'", port.preprocessing)
    return Shot(name, {task.name: {task.inputs[0].name: made[task.inputs[0].preprocessing]} for task in tasks})


def of_file(path: Path, tasks: Sequence[Task]) -> Shot:
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{path} must have a name of at most {LONGEST_NAME} bytes: its results' are longer")
    return shot(path.name, tasks, lambda what, kept: pictures.read_pictures(what, path, kept))


def check_pictures(what: str, tasks: Sequence[Task]) -> None:
    """That each task takes one picture and nothing else."""
    for task in tasks:
        if len(task.inputs) != 1 or task.inputs[0].preprocessing is None:
            raise InputError(
                f"{what} needs tasks whose only input has a preprocessing, and '{task.name}' takes "
                f"{_named(port.name for port in task.inputs)}: patchloom.compile(..., preprocessing=...)"
            )


# --- A folder ---


@dataclass
class Folder:
    """Pictures that arrive in a folder; those that are there already are no news.

    A file is taken once, when it has stayed as it is for a while, and reads as a whole picture. One that does not is
    told, and looked at again when it has changed.
    """

    path: Path
    tasks: Sequence[Task]
    refused: Callable[[InputError], None]  # is told of a picture that cannot be read; what it raises ends the watch
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        check_pictures("--watch", self.tasks)
        if not self.path.is_dir():
            raise InputError(f"--watch must be a folder, not '{self.path}'")
        self._done = {version for version, _ in self._there()}
        self._since: dict[Version, float] = {}  # that this version of a file has been there

    def new(self) -> Iterator[Shot]:
        """What is whole now, the oldest first."""
        for version, path in self._settled():
            self._done.add(version)
            found, problem = self._read(path)
            if _version(path) != version:  # it was written to meanwhile
                continue
            if problem:
                self.refused(problem)
            if found:
                yield found

    def _read(self, path: Path) -> tuple[Shot | None, InputError | None]:
        try:
            return of_file(path, self.tasks), None
        except InputError as error:
            return None, error

    def _settled(self) -> list[tuple[Version, Path]]:
        there, now = dict(self._there()), self.now()
        self._done &= there.keys()
        self._since = {version: self._since.get(version, now) for version in there.keys() - self._done}
        settled = (version for version, since in self._since.items() if now - since >= SETTLED)
        return [(version, there[version]) for version in sorted(settled, key=lambda v: (v[3], there[v]))]

    def _there(self) -> Iterator[tuple[Version, Path]]:
        for entry in os.scandir(self.path):
            path = Path(entry.path)
            if is_picture(path) and (version := _version(path)):
                yield version, path


def _version(path: Path) -> Version | None:
    """Nothing of what is no file, or no more."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def watched(folder: Folder, stop: Stop, sleep: Callable[[float], None] = time.sleep) -> Iterator[Iterable[Shot]]:
    """Until it is stopped."""
    while not stop():
        waiting = _waiting(folder, stop)
        for first in waiting:
            yield itertools.chain([first], waiting)
        sleep(LOOK)


def _waiting(folder: Folder, stop: Stop) -> Iterator[Shot]:
    """Until there is no more."""
    more = True
    while more:
        more = False
        for found in folder.new():
            yield found
            more = not stop()
            if not more:
                return


# --- A camera ---


def camera(number: int, tasks: Sequence[Task], stop: Stop) -> Iterator[Iterable[Shot]]:
    """What OpenCV's camera of that number sees, in one burst, until it is stopped; the camera's end is an error."""
    check_pictures("--camera", tasks)
    with needed_by("--camera", "camera"):
        import cv2  # noqa: PLC0415 - an extra
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise InputError(f"--camera must be the number of a camera, and there is none of number {number}")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the next frame is of now
        yield _taken(capture, tasks, stop)
    finally:
        capture.release()
    if not stop():
        raise InputError(f"camera {number} gives no more pictures")


def _taken(capture: Any, tasks: Sequence[Task], stop: Stop) -> Iterator[Shot]:
    for number in itertools.count(1):
        if stop():
            return
        there, frame = capture.read()
        if not there:
            return
        read = partial(_of_camera, frame[..., ::-1])  # OpenCV's colours begin with blue
        yield shot(f"frame-{number:06}", tasks, read)


def _of_camera(frame: Bytes, what: str, preprocessing: Preprocessing | None) -> Any:
    assert preprocessing is not None
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a camera's frames must have three colours, not shape {list(frame.shape)}")
    return pictures.read_frame(what, frame, preprocessing)
