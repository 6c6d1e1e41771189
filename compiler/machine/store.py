"""A Program as a directory: a manifest, the memory image and index tables, with a CRC per part and no pickle.

The manifest states what the image does not: Config, tasks, ports, layers, segments. Commands are read from the image.
It also names the other files, whose names follow from their content: a save writes them beside those of the Program
that was there, and becomes the Program at the moment that its manifest takes the old one's name. So whoever reads
meanwhile finds one or the other, whole, and a save that is killed leaves the old one; the next save removes its rest.
"""

import fcntl
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from patchloom.compiler.machine.commands import COMMAND_BYTES, Command, Kind
from patchloom.compiler.machine.config import Config, ConfigError
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.program import Buffer, Golden, Layer, Piece, Port, Program, ProgramError, Segment, Task
from patchloom.compiler.machine.verify import verify_once

FORMAT, VERSION = "patchloom program", 5
MANIFEST = "manifest.json"
OURS = re.compile(r"(image|index|golden)-[0-9a-f]{16}\.bin|\.patchloom-\w+\.tmp")  # files that only a save makes
RETRIES = 1000  # of a reader whose Program is replaced under its eyes
Json = dict[str, Any]


# --- Writing ---


def save(program: Program, path: Path) -> None:
    """Whole or not at all; a Program at `path` is replaced, files beside it are kept, anything else is refused."""
    path = Path(path)
    new = not path.exists()
    if not new and not _replaceable(path):
        raise ProgramError(f"{path} exists and is not a Program: remove it or choose another path")
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        try:
            _write(program, path)
        finally:
            _clean(path)
            if new:
                with suppress(OSError):  # not empty: it holds the Program
                    path.rmdir()


def _replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    if (path / MANIFEST).exists():
        return bool(_stated(path).get("format") == FORMAT)
    return all(OURS.fullmatch(file.name) for file in path.iterdir())


def _stated(path: Path) -> Json:
    """The manifest as it stands, sound or not; empty if it cannot be read."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One save at a time; the lock is the directory's own and ends with the process."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
        os.fsync(directory)
    finally:
        os.close(directory)


def _clean(path: Path) -> None:
    """Remove what saves wrote and the manifest does not name."""
    files = _stated(path).get("files")
    named = files.values() if isinstance(files, dict) else ()
    for file in path.iterdir():
        if OURS.fullmatch(file.name) and file.name not in named:
            file.unlink()


def _write(program: Program, path: Path) -> None:
    indices, goldens = _Indices(), _Parts()
    document = {
        "format": FORMAT,
        "version": VERSION,
        "precision": program.precision,
        **({"board": program.board} if program.board else {}),
        "config": asdict(program.config),
        "tasks": [_task_document(task, indices, goldens) for task in program.tasks],
        "segments": [
            asdict(s) | {"crc32": zlib.crc32(program.image[s.offset : s.offset + s.length])} for s in _segments(program)
        ],
    }
    parts = {"image": program.image, "index": bytes(indices.data)}
    if goldens.data:
        parts["golden"] = bytes(goldens.data)
    names = {name: f"{name}-{blake2b(data, digest_size=8).hexdigest()}.bin" for name, data in parts.items()}
    for name, data in parts.items():
        _put(path / names[name], data)
    _put(path / MANIFEST, _render(document | {"files": names}).encode())


def _put(file: Path, data: bytes) -> None:
    """The whole file or none."""
    temporary = file.with_name(f".patchloom-{secrets.token_hex(8)}.tmp")
    with temporary.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _segments(program: Program) -> Iterator[Segment]:
    """The program's segments, and what lies between them, so that every byte has a CRC."""
    end = 0
    for segment in (*program.segments, Segment("", len(program.image), 0)):
        if segment.offset > end:
            yield Segment("unnamed", end, segment.offset - end)
        if segment.length:
            yield segment
        end = max(end, segment.offset + segment.length)


class _Parts:
    """Contents of a file, one part behind another."""

    def __init__(self) -> None:
        self.data = bytearray()

    def append(self, part: bytes) -> int:
        """Where it begins."""
        offset = len(self.data)
        self.data += part
        return offset


class _Indices(_Parts):
    """Of the index file; equal arrays are stored once."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[bytes, Json] = {}

    def add(self, index: Ints) -> Json:
        data = index.astype("<i4").tobytes()
        if data not in self.known:
            self.known[data] = {"offset": self.append(data), "count": index.size, "crc32": zlib.crc32(data)}
        return self.known[data]


def _golden_document(golden: Golden, goldens: _Parts) -> Json:
    data = golden.input.astype("<i2").tobytes() + golden.output.astype("<i2").tobytes()
    return {"offset": goldens.append(data), "crc32": zlib.crc32(data), "saturations": golden.saturations}


def _task_document(task: Task, indices: _Indices, goldens: _Parts) -> Json:
    def port(p: Port) -> Json:
        entry = {
            "name": p.name, "shape": list(p.shape), "offset": p.offset, "elements": p.elements,
            "fraction": p.fraction, "width": p.width, "packed": p.packed, "index": indices.add(p.index),
        }  # fmt: skip
        return entry if p.preprocessing is None else entry | {"preprocessing": asdict(p.preprocessing)}

    return {
        "name": task.name,
        "macs": task.macs,
        "input_bytes": task.input_bytes,
        "output_bytes": task.output_bytes,
        "inputs": [port(p) for p in task.inputs],
        "outputs": [port(p) for p in task.outputs],
        "notes": list(task.notes),
        "buffers": [list(asdict(buffer).values()) for buffer in task.buffers],
        "experts": [list(numbers) for numbers in task.experts],
        **({"golden": _golden_document(task.golden, goldens)} if task.golden else {}),
        **({"layers": [_layer_document(layer) for layer in task.layers]} if task.layers else {}),
    }


def _layer_document(layer: Layer) -> Json:
    pieces = [list(asdict(piece).values()) for piece in layer.pieces]
    return asdict(layer) | {"pieces": [[*numbers, [list(run) for run in runs]] for *numbers, runs in pieces]}


def _render(document: Json) -> str:
    """JSON whose last entry is the CRC of all before it."""
    body = json.dumps(document, indent=1)
    return json.dumps(document | {"crc32": zlib.crc32(body.encode())}, indent=1) + "\n"


# --- Reading ---


def load(path: Path) -> Program:
    """Raises `ProgramError` for whatever keeps the directory from being a sound Program."""
    path = Path(path)
    for _ in range(RETRIES):
        raw = _file(path / MANIFEST)
        document = _manifest(path / MANIFEST, raw)
        try:
            files = {name: _file(path / file) for name, file in document["files"].items()}
        except ProgramError:
            if _file(path / MANIFEST) == raw:
                raise
            continue  # a save has put another Program there since
        return _verified(_program(document, files, path), path)
    raise ProgramError(f"{path} is replaced again and again while it is read")


def _program(document: Json, files: dict[str, bytes], path: Path) -> Program:
    file, image = path / document["files"]["image"], files["image"]
    with _well_formed(path / MANIFEST):
        segments = [_segment(entry, image, file) for entry in document["segments"]]
        covered = max((s.offset + s.length for s in segments), default=0)
        if covered != len(image):
            raise ProgramError(f"{file} must have {covered} bytes, not {len(image)}")
        tables = _Tables(files["index"], path / document["files"]["index"])
        tasks = (_task(t, number, document, image, tables, file) for number, t in enumerate(document["tasks"]))
        return Program(
            _config(document["config"], path / MANIFEST),
            _typed(document["precision"], str),
            tuple(
                _with_golden(task, entry, files.get("golden", b""), path / document["files"].get("golden", "golden"))
                for task, entry in zip(tasks, document["tasks"], strict=True)
            ),
            image,
            tuple(segments),
            _typed(document.get("board", ""), str),
        )


def _verified(program: Program, path: Path) -> Program:
    try:
        verify_once(program)
    except ProgramError as error:
        raise ProgramError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error
    return program


def _file(path: Path) -> bytes:
    """The content of a regular file; nothing else is waited for or read."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ProgramError(f"{path} must be a regular file")
            return file.read()
    except OSError as error:
        raise ProgramError(
            f"{path} cannot be read: {error.strerror}; a Program has {MANIFEST} and the files that it names"
        ) from error


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """What a hand-written manifest may break."""
    try:
        yield
    except ProgramError:
        raise
    except KeyError as error:
        raise ProgramError(f"{path} is malformed: it has no {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ProgramError(f"{path} is malformed: {error}") from error


def _manifest(path: Path, raw: bytes) -> Json:
    with _well_formed(path):
        document = json.loads(raw)
        if document["format"] != FORMAT:
            raise ProgramError(f"{path} is not the manifest of a Program: its format is {document['format']!r}")
        if _typed(document["version"], int) != VERSION:
            newer = "a newer" if document["version"] > VERSION else "an older"
            raise ProgramError(
                f"{path} was made by {newer} version: {document['version']}, this one reads {VERSION}; compile it again"
            )
        stated = _typed(document.pop("crc32"), int)
        actual = zlib.crc32(json.dumps(document, indent=1).encode())
        if stated != actual or raw != _render(document).encode():
            raise ProgramError(f"{path} was changed: CRC {stated:08x} expected, {actual:08x} found")
        if not {"image", "index"} <= document["files"].keys() <= {"image", "index", "golden"}:
            raise ValueError(f"its files must be image, index and perhaps golden, not {', '.join(document['files'])}")
        for file in document["files"].values():
            if not OURS.fullmatch(_typed(file, str)):
                raise ValueError(f"{file!r} is no name of a file of it")
    return dict(document)


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _checked(raw: bytes, offset: Any, length: int, crc: Any, what: str, file: Path) -> bytes:
    """Part of a file, if it is there and unchanged."""
    end = _typed(offset, int) + length
    if offset < 0 or length < 0:
        raise ValueError(f"{what} is at byte {offset} with {length} bytes")
    if end > len(raw):
        raise ProgramError(f"{file} is truncated: {what} ends at byte {end}, the file at {len(raw)}")
    part = raw[offset:end]
    if zlib.crc32(part) != crc:
        raise ProgramError(
            f"{file}: {what} was changed: CRC {_typed(crc, int):08x} expected, {zlib.crc32(part):08x} found"
        )
    return part


def _segment(entry: Json, image: bytes, file: Path) -> Segment:
    segment = Segment(_typed(entry["name"], str), _typed(entry["offset"], int), _typed(entry["length"], int))
    _checked(image, segment.offset, segment.length, entry["crc32"], f"segment '{segment.name}'", file)
    return segment


def _config(entry: Json, file: Path) -> Config:
    try:
        return Config.stated(entry)
    except ConfigError as error:
        raise ProgramError(f"{file} has a Config that breaks rules:\n{error}") from error


class _Tables:
    """The index file's arrays; ports share those that are equal, and no byte belongs to two."""

    def __init__(self, raw: bytes, file: Path) -> None:
        self.raw, self.file = raw, file
        self.known: dict[tuple[int, int], Ints] = {}
        self.size = 0

    def get(self, entry: Json, what: str) -> Ints:
        place = _typed(entry["offset"], int), _typed(entry["count"], int)
        if place not in self.known:
            data = _checked(self.raw, place[0], 4 * place[1], entry["crc32"], what, self.file)
            self.size += len(data)
            if self.size > len(self.raw):
                raise ValueError(f"{what} overlaps another index")
            self.known[place] = np.frombuffer(data, "<i4").astype(np.int64)
        return self.known[place]


def _task(entry: Json, number: int, document: Json, image: bytes, tables: _Tables, file: Path) -> Task:
    name = _typed(entry["name"], str)

    def port(p: Json, of_user: bool) -> Port:
        shape = tuple(_typed(size, int) for size in p["shape"])
        elements = _typed(p["elements"], int)
        what = f"index of '{p['name']}'"
        array = tables.get(p["index"], what)
        wanted = shape if of_user else (elements,)
        if array.size != math.prod(wanted):
            raise ValueError(f"{what} has {array.size} entries, not {math.prod(wanted)}")
        numbers: Json = {key: _typed(p[key], int) for key in ("offset", "elements", "fraction", "width")}
        return Port(
            name=_typed(p["name"], str),
            shape=shape,
            index=array.reshape(wanted),
            preprocessing=_preprocessing(p["preprocessing"]) if "preprocessing" in p else None,
            packed=_typed(p["packed"], bool),
            **numbers,
        )

    numbers: Json = {key: _typed(entry[key], int) for key in ("input_bytes", "output_bytes", "macs")}
    return Task(
        name=name,
        commands=_commands(image, number, document["config"]["command_depth"], f"{file}: task '{name}'"),
        inputs=tuple(port(p, of_user=False) for p in entry["inputs"]),
        outputs=tuple(port(p, of_user=True) for p in entry["outputs"]),
        notes=tuple(_typed(note, str) for note in entry["notes"]),
        buffers=tuple(
            Buffer(_typed(label, str), *(_typed(number, int) for number in numbers))
            for label, *numbers in entry["buffers"]
        ),
        experts=tuple(tuple(_typed(number, int) for number in numbers) for numbers in entry["experts"]),
        layers=tuple(map(_layer, _typed(entry.get("layers", []), list))),
        **numbers,
    )


def _layer(entry: Json) -> Layer:
    """Every field and no other."""
    known = [field.name for field in fields(Layer)]
    if strange := sorted(set(known) ^ _typed(entry, dict).keys()):
        raise ValueError(f"a layer has {', '.join(known)}, and {strange[0]!r} is missing or not one of them")
    texts = {key: _typed(entry[key], str) for key in ("name", "kind", "where", "precision")}
    rows, columns = _integers(entry["shape"])
    return Layer(
        **texts,
        **{key: _typed(entry[key], int) for key in ("width", "macs")},
        **{key: _typed(entry[key], float) for key in ("scale", "low", "high")},
        shape=(rows, columns),
        commands=_integers(entry["commands"]),
        pieces=tuple(map(_piece, entry["pieces"])),
    )


def _piece(entry: list[Any]) -> Piece:
    command, row, rows, address, stride, packed, runs = _typed(entry, list)
    for number in (command, row, rows, address, stride):
        _typed(number, int)
    return Piece(command, row, rows, address, stride, _typed(packed, bool), tuple(map(_run, _typed(runs, list))))


def _run(entry: list[Any]) -> tuple[int, int, int]:
    first, count, position = _integers(entry)
    return first, count, position


def _integers(entry: Any) -> tuple[int, ...]:
    return tuple(_typed(number, int) for number in _typed(entry, list))


def _with_golden(task: Task, entry: Json, raw: bytes, file: Path) -> Task:
    if "golden" not in entry:
        return task
    stated, length = entry["golden"], task.input_bytes + task.output_bytes
    what = f"golden of task '{task.name}'"
    data = _checked(raw, stated["offset"], length, stated["crc32"], what, file)
    elements = np.frombuffer(data, "<i2").astype(np.int16)
    half = task.input_bytes // 2
    return replace(task, golden=Golden(elements[:half], elements[half:], _typed(stated["saturations"], int)))


def _preprocessing(entry: Json) -> Preprocessing:
    """Every field and no other; Programs of before have none."""
    known = {field.name for field in fields(Preprocessing)}
    if strange := sorted(known ^ set(_typed(entry, dict))):
        raise ValueError(
            f"a preprocessing has {', '.join(sorted(known))}, and {strange[0]!r} is missing or not one of them"
        )
    return Preprocessing(**entry)


def _commands(image: bytes, task: int, depth: int, what: str) -> tuple[Command, ...]:
    """As many as the first one, BEGIN, states."""
    commands: list[Command] = []
    for position in range(depth):
        at = (task * depth + position) * COMMAND_BYTES
        try:
            commands.append(Command.decode(image[at : at + COMMAND_BYTES]))
        except ValueError as error:
            raise ProgramError(f"{what}: command {position} does not decode: {error}") from error
        if commands[0].kind != Kind.BEGIN:
            raise ProgramError(f"{what}: command 0 must be BEGIN, not {commands[0].kind.name}")
        if position + 1 >= commands[0].rows:
            return tuple(commands)
    raise ProgramError(f"{what}: states {commands[0].rows} commands, its table has {depth}")
