"""A Program on disk: what comes back, and every way it can be wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.commands import (
    COMMAND_BYTES,
    FIELDS,
    Command,
    Kind,
    Post,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.encoding import joined
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.program import (
    Golden,
    Program,
    ProgramError,
    Task,
    command_table,
    from_region,
    to_region,
)
from patchloom.compiler.machine.store import load, save
from patchloom.compiler.machine.tables import ENTRY, TABLE_BYTES
from patchloom.compiler.machine.verify import verify
from patchloom.sim.interpret import execute
from tests.compiler.graphs import compiled, run, samples, transformer

PREPROCESSING = Preprocessing(
    size=(20, 24), mean=(0.25,), std=(0.3,), divide=127, layout="HW", resize="crop", crop_pct=0.9, interpolation="box"
)


@pytest.fixture(scope="module")
def program() -> Program:
    made = compiled(transformer(layers=2, experts=3), "w8a8")
    [task] = made.tasks
    inputs = tuple(replace(port, preprocessing=PREPROCESSING) for port in task.inputs)
    region = np.random.default_rng(0).integers(-99, 99, task.input_bytes // 2).astype(np.int16)
    golden = Golden(region, *execute(made, task.name, region))
    return replace(made, tasks=(replace(task, inputs=inputs, golden=golden),), board="ulx3s_85f")


@pytest.fixture(scope="module")
def original(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "program"
    save(program, path)
    return path


def part(path: Path, name: str) -> Path:
    """The manifest, or a file that it names."""
    if name == "manifest":
        return path / "manifest.json"
    return path / json.loads((path / "manifest.json").read_text())["files"][name]


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "program"))


# --- Round trip ---


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """What a Program is made of: every field of every part of it."""
    if is_dataclass(value) and not isinstance(value, Command | Config):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple):
        yield f"len({path})", len(value)
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value.tolist() if isinstance(value, np.ndarray) else value


def defaults(value: object) -> Iterator[str]:
    """Fields whose loss nobody would notice: they hold their default."""
    if isinstance(value, tuple):
        for item in value:
            yield from defaults(item)
    elif is_dataclass(value) and not isinstance(value, Command | Config):
        for field in fields(value):
            if field.default is not MISSING and getattr(value, field.name) == field.default:
                yield f"{type(value).__name__}.{field.name}"
            yield from defaults(getattr(value, field.name))


def test_round_trip(program: Program, saved: Path):
    again = load(saved)
    for (name, loaded), (_, stored) in zip(leaves(again, "program"), leaves(program, "program"), strict=True):
        assert loaded == stored, name
    of_outputs, of_transfers = {"Port.preprocessing", "Port.packed"}, {"Layer.pieces"}
    assert set(defaults(program)) == of_outputs | of_transfers
    assert {port.packed for port in program.tasks[0].inputs} == {True}
    assert all(port.preprocessing == PREPROCESSING for task in again.tasks for port in task.inputs)
    inputs = {name: array[0] for name, array in samples(transformer(), 1).items()}
    assert np.array_equal(run(again, inputs)["y"], run(program, inputs)["y"])


def test_saving_twice_gives_the_same_bytes(program: Program, saved: Path):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    save(load(saved), saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_a_program_of_before_has_neither_preprocessing_nor_goldens_nor_layers(program: Program, saved: Path):
    edited(saved, lambda d: d["tasks"][0]["inputs"][0].pop("preprocessing"))
    edited(saved, lambda d: (d["tasks"][0].pop("golden"), d["files"].pop("golden"), d["tasks"][0].pop("layers")))
    again = load(saved)
    assert again.tasks[0].inputs[0].preprocessing is again.tasks[0].golden is None
    assert again.tasks[0].layers == ()
    assert (again.image, again.config.fingerprint) == (program.image, program.config.fingerprint)


def test_a_program_without_segments(program: Program, tmp_path: Path):
    save(replace(program, segments=()), tmp_path / "p")
    assert load(tmp_path / "p").image == program.image


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("mine"),
    lambda path: (path.mkdir(), (path / "thesis.tex").write_text("mine")),
    lambda path: (path.mkdir(), (path / "manifest.json").write_text('{"format": "something else"}')),
], ids=["file", "directory", "other manifest"])  # fmt: skip
def test_nothing_else_is_overwritten(make, program: Program, tmp_path: Path):
    make(tmp_path / "p")
    with pytest.raises(ProgramError, match="exists and is not a Program: remove it or choose another path"):
        save(program, tmp_path / "p")
    assert [entry.name for entry in tmp_path.iterdir()] == ["p"]


def test_files_beside_a_program_are_kept(program: Program, saved: Path):
    (saved / "notes.txt").write_text("mine")
    save(replace(program, precision="another"), saved)
    assert load(saved).precision == "another"
    assert (saved / "notes.txt").read_text() == "mine"
    assert len(list(saved.iterdir())) == 5


def test_what_a_killed_save_left_is_removed_by_the_next(program: Program, saved: Path):
    for name in ("image-0123456789abcdef.bin", ".patchloom-00ff.tmp"):
        (saved / name).write_text("half")
    load(saved)
    save(program, saved)
    assert len(list(saved.iterdir())) == 4


SAVE_UNTIL_KILLED = """
import sys
from dataclasses import replace
from patchloom.compiler.machine.store import load, save
program = load(sys.argv[1])
print("go", flush=True)
while True:
    for precision in ("old", "new"):
        save(replace(program, precision=precision), sys.argv[2])
"""


def test_killed_saves_beside_a_reader(program: Program, saved: Path, tmp_path: Path):
    """A reader always finds a whole Program; whatever a kill leaves is gone after the next save."""
    shutil.copytree(saved, tmp_path / "source")
    save(replace(program, precision="old"), saved)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(6):
        command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path / "source"), str(saved)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as saver:
            saver.stdout.readline()
            end = time.monotonic() + rng.uniform(0.05, 0.3)
            while time.monotonic() < end:
                seen.add(load(saved).precision)
            saver.kill()
        seen.add(load(saved).precision)
    assert seen == {"old", "new"}
    save(program, saved)
    assert len(list(saved.iterdir())) == 4


def test_only_regular_files_are_read(saved: Path):
    file = part(saved, "image")
    file.unlink()
    os.mkfifo(file)
    refused(saved, "must be a regular file")


def test_a_table_that_many_ports_claim_is_read_once(saved: Path):
    """Else a small directory could ask for any memory."""
    raw = part(saved, "index").read_bytes()

    def shifted(document):
        port = document["tasks"][0]["inputs"][0]
        index = {"offset": 4, "count": port["index"]["count"] - 1}
        index["crc32"] = zlib.crc32(raw[4 : 4 * index["count"] + 4])
        document["tasks"][0]["inputs"] += [port | {"index": index, "elements": index["count"]}]

    edited(saved, shifted)
    refused(saved, "overlaps another index")


def test_an_empty_directory_is_filled(program: Program, tmp_path: Path):
    (tmp_path / "p").mkdir()
    save(program, tmp_path / "p")
    load(tmp_path / "p")


def test_a_failed_save_leaves_the_old_one(saved: Path, program: Program, monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        save(program, saved)
    monkeypatch.undo()
    load(saved)
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


# --- Damage ---


def refused(path: Path, text: str) -> None:
    with pytest.raises(ProgramError, match=text):
        load(path)


@pytest.mark.parametrize("name", ["manifest", "image", "index", "golden"])
def test_missing_file(name: str, saved: Path):
    part(saved, name).unlink()
    refused(saved, rf"{name}\S+ cannot be read: No such file or directory; a Program has manifest.json and the files")


def test_no_directory(tmp_path: Path):
    refused(tmp_path / "nothing", r"manifest\.json cannot be read: No such file")


@pytest.mark.parametrize("name", ["image", "index", "golden"])
def test_truncated(name: str, saved: Path):
    part(saved, name).write_bytes(part(saved, name).read_bytes()[:-8])
    refused(saved, rf"{name}\S+ is truncated: .* ends at byte \d+, the file at \d+")


def test_longer_image(saved: Path):
    part(saved, "image").write_bytes(part(saved, "image").read_bytes() + bytes(64))
    refused(saved, r"image\S+ must have \d+ bytes, not \d+")


def test_flipped_byte_of_a_golden(saved: Path):
    raw = bytearray(part(saved, "golden").read_bytes())
    raw[len(raw) // 2] ^= 0x10
    part(saved, "golden").write_bytes(raw)
    refused(saved, r"golden-\w+\.bin: golden of task 'main' was changed: CRC [0-9a-f]{8} expected")


def test_flipped_byte_names_the_segment(program: Program, saved: Path):
    raw = bytearray(part(saved, "image").read_bytes())
    for segment in program.segments:
        for at in (segment.offset, segment.offset + segment.length - 1):
            raw[at] ^= 0x10
            part(saved, "image").write_bytes(raw)
            refused(saved, f"segment '{segment.name}' was changed: CRC [0-9a-f]{{8}} expected, [0-9a-f]{{8}} found")
            raw[at] ^= 0x10


def test_flipped_byte_of_an_index(saved: Path):
    raw = bytearray(part(saved, "index").read_bytes())
    raw[-1] ^= 1
    part(saved, "index").write_bytes(raw)
    refused(saved, "index of 'y' was changed: CRC [0-9a-f]{8} expected, [0-9a-f]{8} found")


def test_any_flipped_byte_of_the_manifest(saved: Path):
    raw = bytearray((saved / "manifest.json").read_bytes())
    for at in np.random.default_rng(0).integers(0, len(raw), 60):
        for bit in (1, 0x20):
            raw[at] ^= bit
            (saved / "manifest.json").write_bytes(raw)
            refused(saved, "manifest.json (was changed|is malformed|is not the manifest|was made by an? (newer|older))")
            raw[at] ^= bit


def edited(path: Path, edit) -> None:
    """A manifest that is consistent in itself."""
    document = json.loads((path / "manifest.json").read_text())
    del document["crc32"]
    edit(document)
    crc = zlib.crc32(json.dumps(document, indent=1).encode())
    (path / "manifest.json").write_text(json.dumps(document | {"crc32": crc}, indent=1) + "\n")


def test_newer_version(saved: Path):
    edited(saved, lambda d: d.update(version=7))
    refused(saved, r"manifest\.json was made by a newer version: 7, this one reads 5; compile it again")


def kept(document):
    return document["tasks"][0]["inputs"][0]["preprocessing"]


def layer(document, **fields):
    """The first that commands compute, with other fields; those of its first piece by number."""
    found = next(layer for layer in document["tasks"][0]["layers"] if layer["pieces"])
    for name, value in fields.items():
        if name.startswith("piece"):
            found["pieces"][0][int(name[5:])] = value
        else:
            found[name] = value


@pytest.mark.parametrize(("edit", "text"), [
    (lambda d: d.update(format="cake"), "is not the manifest of a Program: its format is 'cake'"),
    (lambda d: d.pop("tasks"), "is malformed: it has no 'tasks'"),
    (lambda d: d.pop("config"), "is malformed: it has no 'config'"),
    (lambda d: d.update(precision=8), "is malformed: 8 is not of type str"),
    (lambda d: d["config"].update(cores=4), "is malformed: .* unexpected keyword argument 'cores'"),
    (lambda d: d["config"].pop("inputs"), "is malformed: it has no 'inputs'"),
    (lambda d: d["config"].update(inputs=17), r"has a Config that breaks rules:\nConfig.inputs must be"),
    (lambda d: d["config"].update(max_rows=128), "made for another Config: fingerprint [0-9a-f]{8}, not [0-9a-f]{8}"),
    (lambda d: d["segments"][0].update(offset=-64), "is malformed: segment .* is at byte -64"),
    (lambda d: d["tasks"][0].update(macs=1.5), "is malformed: 1.5 is not of type int"),
    (lambda d: d["tasks"][0]["notes"].pop(), "must have a note per command"),
    (lambda d: d["tasks"][0]["inputs"][0].update(elements=64), "index of 'x' has .* entries, not 64"),
    (lambda d: d["tasks"][0]["inputs"][0].update(offset=1 << 20), "input 'x' ends at byte .* of a region of"),
    (lambda d: d["tasks"][0]["inputs"][0].update(offset=2), "input 'x' must start at a multiple of 8 bytes, not at 2"),
    (lambda d: d["tasks"][0]["outputs"][0].update(elements=16), "output 'y' must have an index of 0 to 15"),
    (lambda d: d["tasks"][0]["inputs"][0].update(width=16), "input 'x' is packed, which only inputs of 8 bits are"),
    (lambda d: d["tasks"][0]["outputs"][0].update(packed=True),
     "output 'y' is packed, which only inputs of 8 bits are"),
    (lambda d: d["tasks"][0]["inputs"][0].update(packed=1), "is malformed: 1 is not of type bool"),
    (lambda d: d["tasks"][0]["outputs"][0].update(width=12), "output 'y' must have 8 or 16 bits, not 12"),
    (lambda d: d["tasks"][0].update(output_bytes=64, golden=d["tasks"][0].pop("golden") | {"offset": 1 << 20}),
     "golden of task 'main' ends at byte"),
    (lambda d: (d["tasks"][0].update(output_bytes=64), d["tasks"][0].pop("golden")),
     "output 'y' ends at byte .* of a region of 64"),
    (lambda d: d["tasks"][0]["golden"].update(saturations="some"), "malformed: 'some' is not of type int"),
    (lambda d: d["files"].update(more="image-0123456789abcdef.bin"), "must be image, index and perhaps golden, not "),
    (lambda d: d.update(tasks=[]), "program: it has no task"),
    (lambda d: kept(d).pop("mean"), "has crop_pct, divide, .*, and 'mean' is missing or not one of them"),
    (lambda d: kept(d).update(gamma=2), "and 'gamma' is missing or not one of them"),
    (lambda d: kept(d).update(std=[0.5, 0.5]), "preprocessing.std must be one number for grey, or three"),
    (lambda d: kept(d).update(std=[0.5] * 3), "preprocessing.std must be as many numbers as mean has, 1"),
    (lambda d: kept(d).update(std=[0]), "preprocessing.std must be positive"),
    (lambda d: kept(d).update(mean=[float("nan")]), "preprocessing.mean must be one number"),
    (lambda d: kept(d).update(size=[24, 20]), r"must have the shape \[24, 20\] of its preprocessing, not \[20, 24\]"),
    (lambda d: d["tasks"][0]["inputs"][0].update(preprocessing=None), "is malformed: None is not of type dict"),
    (lambda d: d["tasks"][0]["outputs"][0].update(preprocessing=kept(d)), "output 'y' has a preprocessing, which only"),
    (lambda d: d["tasks"][0]["layers"][0].pop("scale"), "a layer has name, .*, and 'scale' is missing or not one of"),
    (lambda d: layer(d, zero=0), "and 'zero' is missing or not one of them"),
    (lambda d: layer(d, name="\x1b[2J"), "must be called something printable"),
    (lambda d: layer(d, width=12), "layer 'embed' must have 8 or 16 bits, not 12"),
    (lambda d: layer(d, scale=0.0), "layer 'embed' must have a positive scale, not 0.0"),
    (lambda d: layer(d, scale=1), "is malformed: 1 is not of type float"),
    (lambda d: layer(d, low=2.0, high=1.0), "layer 'embed' must have a finite range, not 2.0 to 1.0"),
    (lambda d: layer(d, macs=-1), "must have no fewer than 0 multiply-accumulates, not -1"),
    (lambda d: layer(d, shape=[0, 32]), "must have rows and columns, not 0 x 32"),
    (lambda d: layer(d, shape=[20]), "is malformed: not enough values to unpack"),
    (lambda d: layer(d, commands=[1 << 20]), "must have commands of 0 to"),
    (lambda d: layer(d, commands=[1]), "a command must be of one layer"),
    (lambda d: layer(d, piece0=-1), "must have commands of 0 to"),
    (lambda d: layer(d, piece1=1), "has no rows 1 to 21"),
    (lambda d: layer(d, piece3=16380), "has rows 0 to 20 outside of the scratchpad"),
    (lambda d: layer(d, piece4=-1), "has rows 0 to 20 outside of the scratchpad"),
    (lambda d: layer(d, piece5=0), "is malformed: 0 is not of type bool"),
    (lambda d: layer(d, piece6=[[1, 32, 0]]), "has columns that are not among its 32"),
])  # fmt: skip
def test_malformed_manifest(edit, text: str, saved: Path):
    edited(saved, edit)
    refused(saved, text)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"manifest"', "{}", "\xff"])
def test_not_json(text: str, saved: Path):
    (saved / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(saved, r"manifest\.json is malformed: ")


def patched(path: Path, offset: int, data: bytes) -> None:
    """Other commands, with the CRC they have."""
    raw = bytearray(part(path, "image").read_bytes())
    raw[offset : offset + len(data)] = data
    part(path, "image").write_bytes(raw)
    edited(path, lambda d: [s.update(crc32=zlib.crc32(raw[s["offset"] :][: s["length"]])) for s in d["segments"]])


def test_commands_that_do_not_decode(saved: Path):
    patched(saved, 3 * COMMAND_BYTES, b"\xff")
    refused(saved, r"image\S+: task 'main': command 3 does not decode: 15 is not a valid Kind")


def test_commands_that_do_not_begin(saved: Path):
    patched(saved, 0, Command(kind=Kind.ROUTE).encode())
    refused(saved, "task 'main': command 0 must be BEGIN, not ROUTE")


def test_more_commands_than_the_table_has(program: Program, saved: Path):
    patched(saved, 0, replace(program.tasks[0].commands[0], rows=5000).encode())
    refused(saved, "task 'main': states 5000 commands, its table has 256")


# --- Commands that must not run ---


def broken(program: Program, match, **fields) -> Program:
    """The first command that matches has other fields, in the image too."""
    task = program.tasks[0]
    position = next(i for i, c in enumerate(task.commands) if match(c))
    commands = list(task.commands)
    commands[position] = replace(commands[position], **fields)
    table = command_table(program.config, [tuple(commands)])
    image = table + program.image[len(table) :]
    return replace(program, tasks=(replace(task, commands=tuple(commands)),), image=image)


def is_matmul(c: Command) -> bool:
    return c.kind == Kind.MATMUL


def is_table(c: Command) -> bool:
    return c.kind == Kind.TABLE


RULES = {
    "a beyond the scratchpad": (is_matmul, {"a_address": 20000}, "a reaches chunk 200.. of a scratchpad of 16384"),
    "a unwritten": (is_matmul, {"a_address": 9000}, "a reads chunk 9000 that nothing has written"),
    "o beyond": (is_matmul, {"o_address": 16380}, "o reaches chunk .* of a scratchpad of 16384"),
    "o over a": (is_matmul, {"o_address": 0}, "writes chunk .* that it reads as a"),
    "o over itself": (is_matmul, {"o_stride": 1}, "its output's rows overlap: stride 1"),
    "half a line": (is_matmul, {"line": 7}, "must have whole lines of 7 rows, not 20"),
    "lines over one another": (
        is_matmul, {"line": 10, "o_outer": 4}, "its output's rows overlap: stride .*, 4 from line to line"
    ),
    "lines beyond": (is_matmul, {"line": 10, "a_outer": 16000}, "a reads chunk 160.. that nothing has written"),
    "lines of a queue": (lambda c: c.queue == Queue.GATHER, {"line": 10}, "takes rows of a queue in lines"),
    "runs of a queue": (lambda c: c.queue == Queue.SCATTER, {"a_run": 1},
        "takes runs of slices of rows that it prepares or of a queue"),
    "runs of what is normalised": (lambda c: c.prologue == 1, {"a_run": 1}, "takes runs of slices of rows that it pre"),
    "runs beyond": (
        lambda c: is_matmul(c) and not c.prologue, {"a_run": 1, "a_jump": 16000}, "a reads chunk 160.. that nothing has"
    ),
    "many slices": (
        lambda c: c.row_maximum == 1, {"a_run": 1, "depth": 65535, "a_stride": 0}, "must have at most 4095 slices"
    ),
    "no rows": (is_matmul, {"rows": 0}, "must have 1 to 256 rows, not 0"),
    "rows": (is_matmul, {"rows": 300}, "must have 1 to 256 rows, not 300"),
    "no depth": (is_matmul, {"depth": 0}, "must have 1 to 65535 depth, not 0"),
    "weights beyond": (is_matmul, {"dma_address": 1 << 30}, "weights end at byte .* of an image of"),
    "weights off beat": (is_matmul, {"dma_address": 16385}, "byte 16385 is not at a bus beat"),
    "weights short": (is_matmul, {"dma_beats": 1}, "its weights take .* beats, not 1"),
    "weights from input": (is_matmul, {"dma_space": Space.INPUT}, "weights must come from PROGRAM, not INPUT"),
    "no digits": (is_matmul, {"b_digits": 0}, "its stationary operand must have 1 to 2 digits, not 0"),
    "many digits": (is_matmul, {"b_digits": 3}, "its stationary operand must have 1 to 2 digits, not 3"),
    "r unwritten": (lambda c: c.residual == Residual.ADD, {"r_address": 9000}, "r reads chunk 9000"),
    "o over r, rows apart": (
        lambda c: c.residual == Residual.ADD and (c.r_address, c.r_stride) == (c.o_address, c.o_stride),
        {"o_stride": 3}, "writes chunk .* that it reads as r",
    ),
    "o over r, chained": (
        lambda c: c.residual == Residual.ADD and (c.r_address, c.r_stride) == (c.o_address, c.o_stride),
        {"residual": Residual.CHAIN, "queue": Queue.NONE}, "chains a residual without scattering",
    ),
    "packed twice": (is_matmul, {"a_packed": 1, "a_stride": 5}, "a reads chunk .* that nothing has written"),
    "o packed and wide": (is_matmul, {"o_packed": 1}, "packs an output of 16 bits"),
    "o packed and chained": (
        lambda c: c.queue == Queue.SCATTER, {"o_packed": 1, "o_wide": 0}, "chains a residual in a packed output",
    ),
    "o packed over r": (
        lambda c: c.residual == Residual.ADD and (c.r_address, c.r_stride) == (c.o_address, c.o_stride),
        {"o_packed": 1, "o_wide": 0}, "writes chunk .* that it reads as r",
    ),
    "packed logits": (lambda c: c.kind == Kind.ROUTE, {"a_packed": 1}, "must not read packed logits"),
    "r beside b": (
        lambda c: c.row_maximum == 1, {"residual": Residual.ADD, "r_address": 9000}, "r reads chunk 9000",
    ),
    "b unwritten": (lambda c: c.row_maximum == 1, {"b_address": 9000}, "b reads chunk 9000"),
    "queue early": (is_matmul, {"queue": Queue.GATHER}, "uses a queue before any ROUTE"),
    "expert": (lambda c: c.queue == Queue.GATHER, {"expert": 9}, "uses the queue of expert 9 of 3"),
    "queue length": (lambda c: c.queue == Queue.SCATTER, {"rows": 3}, "its queue can hold 20 tokens, it states 3"),
    "gate early": (is_matmul, {"row_scale": RowScale.GATE}, "scales by a gate without a queue"),
    "expected early": (is_matmul, {"expected": 1}, "expects tokens without a queue"),
    "expected on chip": (
        lambda c: c.queue == Queue.GATHER, {"b_source": Stationary.COLUMNS, "expected": 1},
        "expects weights that do not come from memory",
    ),
    "two factors": (
        lambda c: c.row_scale == RowScale.SOFTMAX, {"residual": Residual.MULTIPLY},
        "multiplies by a tensor and by a row scale",
    ),
    "chain early": (is_matmul, {"residual": Residual.CHAIN}, "chains a residual without scattering"),
    "exp early": (
        lambda c: is_matmul(c) and not c.a_packed, {"prologue": Prologue.EXP},
        "takes exponentials of 20 x 32 scores whose rows' maxima are not known"
    ),
    "softmax of none": (is_matmul, {"row_scale": RowScale.SOFTMAX}, "divides by the sum of no exponentials"),
    "statistics": (
        lambda c: c.prologue == 1, {"a_statistics": 400}, "statistics from 400 are not known to be of 32 columns"
    ),
    "statistics beyond": (lambda c: c.prologue == 1, {"a_statistics": 500}, "statistics reach row 519 of 512"),
    "gathered beyond": (lambda c: c.statistics == 1, {"o_statistics": 500}, "statistics reach row 519 of 512"),
    "gathered over": (
        lambda c: c.statistics == 1, {"prologue": Prologue.NONE, "o_statistics": 510}, "statistics reach row 529 of 512"
    ),
    "mean shift": (lambda c: c.prologue == 1, {"mean_shift": 63}, "mean_shift must be at most 62, not 63"),
    "mean": (
        lambda c: c.prologue == 1, {"mean_multiplier": 65535, "mean_shift": 9}, "a row's mean may reach .*, at most 65"
    ),
    "epsilon": (lambda c: c.prologue == 1, {"epsilon": 0}, "normalises with no epsilon"),
    "norm_shift": (lambda c: c.prologue == 1, {"norm_shift": -20}, "norm_shift -20 would shift left by"),
    "top_k": (lambda c: c.kind == Kind.ROUTE, {"top_k": 4}, "top_k must be 1 to 3, not 4"),
    "exp_shift": (lambda c: c.prologue == Prologue.EXP, {"exp_shift": 13}, "exp_shift must be at most 12, not 13"),
    "route exp_shift": (lambda c: c.kind == Kind.ROUTE, {"exp_shift": 13}, "exp_shift must be at most 12, not 13"),
    "experts": (lambda c: c.kind == Kind.ROUTE, {"columns": 17}, "must have 2 to 16 experts, not 17"),
    "load space": (lambda c: c.kind == Kind.LOAD, {"dma_space": Space.OUTPUT}, "must not address OUTPUT"),
    "load end": (lambda c: c.kind == Kind.LOAD, {"dma_address": 1 << 20}, "ends at byte .* of .* of INPUT"),
    "load beats": (lambda c: c.kind == Kind.LOAD, {"dma_beats": 1}, "1 beats are not .* bytes"),
    "load beyond": (lambda c: c.kind == Kind.LOAD, {"a_address": 16380}, "a reaches chunk .* of a scratchpad of 16384"),
    "store space": (lambda c: c.kind == Kind.STORE, {"dma_space": Space.PROGRAM}, "must not address PROGRAM"),
    "store unwritten": (lambda c: c.kind == Kind.STORE, {"a_address": 9000}, "a reads chunk 9000"),
    "table unloaded": (is_matmul, {"post": Post.EVEN}, "uses a table that nothing has loaded"),
    "table entries": (is_table, {"rows": 511}, "must have 512 entries, not 511"),
    "table space": (is_table, {"dma_space": Space.INPUT}, "must address PROGRAM, not INPUT"),
    "table off beat": (is_table, {"dma_address": 16385}, "byte 16385 is not at a bus beat"),
    "table beats": (is_table, {"dma_beats": 1}, "1 beats are not 2048 bytes"),
    "table end": (is_table, {"dma_address": 1 << 30}, "ends at byte .* of an image of"),
    "second begin": (is_matmul, {"kind": Kind.BEGIN}, "must begin with its only BEGIN"),
    "early end": (is_matmul, {"kind": Kind.END}, "must end with its only END"),
    "count": (lambda c: c.kind == Kind.BEGIN, {"rows": 2}, "BEGIN must state 30 commands, not 2"),
    "fingerprint": (lambda c: c.kind == Kind.BEGIN, {"epsilon": 1}, "made for another Config: fingerprint 00000001"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_verify(name: str, program: Program):
    match, fields, text = RULES[name]
    with pytest.raises(ProgramError, match=text):
        verify(broken(program, match, **fields))


def test_verify_accepts(program: Program):
    verify(broken(program, is_matmul, post=Post.RELU))


def test_verify_names_the_command(program: Program):
    with pytest.raises(ProgramError) as error:
        verify(broken(program, is_matmul, a_address=9000))
    assert str(error.value) == ("task 'main': command 3, MATMUL (embed): a reads chunk 9000 that nothing has written")


def test_verify_proves_accumulators(program: Program):
    """Weights that would overflow, whatever the scheduler thought of them."""
    config = Config(accumulator_width=24)
    task = program.tasks[0]
    commands = (replace(task.commands[0], epsilon=config.fingerprint), *task.commands[1:])
    table = command_table(config, [commands])
    narrow = replace(
        program, config=config, tasks=(replace(task, commands=commands),), image=table + program.image[len(table) :]
    )
    with pytest.raises(ProgramError, match=r"channel \d+ may need \d+ accumulator bits, not 24"):
        verify(narrow)


@pytest.mark.parametrize(
    ("base", "slope", "text"),
    [
        (-5, 0, "adds 5, its table's last value, to the largest words"),
        (ENTRY["base"].high, 1, "has an entry that leads beyond the 19 bits of a value"),
    ],
)
def test_verify_reads_tables(program: Program, base: int, slope: int, text: str):
    last = next(filter(is_table, program.tasks[0].commands)).dma_address + TABLE_BYTES - 4
    entry = joined(ENTRY, {"base": base, "slope": slope}).to_bytes(4, "little")
    with pytest.raises(ProgramError, match=text):
        verify(replace(program, image=program.image[:last] + entry + program.image[last + 4 :]))


def test_verify_compares_the_image(program: Program):
    task = program.tasks[0]
    other = replace(task.commands[3], post=Post.RELU)
    with pytest.raises(ProgramError, match="its commands are not those in the image"):
        verify(replace(program, tasks=(replace(task, commands=(*task.commands[:3], other, *task.commands[4:])),)))


def mutations(task: Task, rng: np.random.Generator, count: int):
    """(position, field, value): any field of any command but the first and last."""
    for _ in range(count):
        position, name = int(rng.integers(1, len(task.commands) - 1)), str(rng.choice(list(FIELDS)))
        bits, signed = FIELDS[name]
        old = getattr(task.commands[position], name)
        most = (1 << (bits - signed)) - 1
        values = [old + 1, max(old - 1, 0), 0, most, int(rng.integers(0, most, endpoint=True))]
        yield position, name, type(old)(min(values[rng.integers(len(values))], most)) if bits > 4 else old


def test_what_verify_accepts_runs(program: Program):
    """Whatever single field is changed: refused, or the interpreter finds all that it needs."""
    task, ran = program.tasks[0], 0
    for position, name, value in mutations(task, np.random.default_rng(0), 200):
        mutant = broken(program, lambda c, at=task.commands[position]: c is at, **{name: value})
        try:
            verify(mutant)
        except ProgramError:
            continue
        execute(mutant, None, np.zeros(task.input_bytes // 2, np.int16))
        ran += 1
    assert 50 < ran < 190


# --- Tasks and ports ---


def test_task_by_name(program: Program):
    assert program.task(None) is program.task("main") is program.tasks[0]
    with pytest.raises(KeyError, match="task must be one of main, not 'depth'"):
        program.task("depth")


def test_ports_quantise_and_saturate(program: Program):
    port = program.tasks[0].inputs[0]
    value = np.zeros(port.shape)
    value[0, :3] = 0.5, 1e9, -1e9
    region, saturated = to_region(port, value)
    assert saturated == 2
    assert region.shape == (port.elements,)
    back = np.zeros(value.size)
    back[port.index[port.index >= 0]] = region[port.index >= 0]
    assert back[:3].tolist() == [0.5 * 2**port.fraction, 127, -128]
    out = program.tasks[0].outputs[0]
    assert from_region(out, np.arange(out.end // 2, dtype=np.int16)).shape == (20, 10)
