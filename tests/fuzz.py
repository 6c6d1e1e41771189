"""Damaged files and strange commands: whatever comes in, only an `Error` comes out, in bounded memory and folder.

    python -m tests.fuzz --count 5000 --seed 0

Program directories, design files, checkpoints, inputs and command lines are mutated, some as bytes, some as what they
mean, with checksums made right again so that the mutation reaches what lies behind them.
"""

import io
import json
import resource
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import patchloom
from patchloom import cli
from patchloom.arrays import read_arrays
from patchloom.compiler.machine.commands import COMMAND_BYTES
from patchloom.compiler.machine.frames import input_frames
from patchloom.design import load_design, load_module
from patchloom.inspect import describe
from patchloom.pictures import read_pictures
from tests.campaign import Found, command_line, shown
from tests.patchloom.models import Mlp

MEMORY = 1 << 30  # bytes that a mutation may need beyond what the process has when it begins
DESIGN = """module: models.py:Mlp
arguments: {hidden: 32}
checkpoint: {file: weights.safetensors, prefix: ""}
calibration: {file: samples.npy, shape: [5, 16]}
precision: w8a8
overrides: {fc2: w8a16, "fc*": w4a8}
preprocessing: {size: [5, 16], mean: [0], std: [0.5], layout: HW}
config: {preset: small, inputs: 32}
"""
PREPROCESSING = {"size": (5, 16), "mean": (0.5,), "std": (0.25,), "layout": "HW", "resize": "crop", "crop_pct": 0.9,
                 "interpolation": "bicubic"}  # fmt: skip
ORIENTATION = 0x0112  # EXIF's
WORDS = ["0", "-1", "1e99", ".nan", "null", "true", "[]", "{}", "''", "&a", "*a", "!!set", "? ", "<<", "\x00", "\ud7ff",
         "9" * 400, "2001-99-99", "../..", "[[[[", "a: b", "- ", "|", ">", "%", "\t", "=", "~"]  # fmt: skip
JUNK: list[Any] = [0, -1, 1 << 31, 1 << 70, 1.5, float("nan"), "", "x", "../x", None, True, [], {}, [0] * 9, {"a": 0}]


@dataclass
class Fuzz:
    """A folder with one of everything, and what was found."""

    seed: int
    folder: Path
    found: Found = field(default_factory=Found)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        torch.manual_seed(0)
        samples = np.random.default_rng(0).normal(size=(4, 5, 16)).astype(np.float32)
        model = Mlp().eval()
        self.program = patchloom.compile(
            model, torch.from_numpy(samples[:1]), calibration=samples, preprocessing=PREPROCESSING
        )
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        for name in ("picture.png", "picture.jpg"):
            picture.save(self.folder / name, exif=exif)
        shutil.copy(Path(__file__).parent / "patchloom" / "models.py", self.folder)
        (self.folder / "design.yaml").write_text(DESIGN)
        save_file(model.state_dict(), self.folder / "weights.safetensors")
        save_file({"x": torch.from_numpy(samples)}, self.folder / "samples.safetensors")
        np.save(self.folder / "samples.npy", samples)
        np.savez(self.folder / "samples.npz", x=samples)
        patchloom.save(self.program, self.folder / "program")

    def pick(self, options: list[Any]) -> Any:
        return options[self.rng.integers(len(options))]

    # --- One mutation ---

    def once(self, number: int) -> None:
        kinds: list[Callable[[], None]] = [self.program_bytes, self.program_meaning, self.commands, self.design,
                                           self.checkpoint, self.inputs, self.picture, self.command_line]  # fmt: skip
        kind = kinds[number % len(kinds)]
        before = contents(self.folder)
        try:
            with quiet():
                kind()
            outcome = "taken"
        except (patchloom.Error, OSError) as error:
            outcome = "refused" if str(error).strip() else "refused without a word"
        except SystemExit as error:
            outcome = f"exit {error.code}"
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            outcome = f"{type(error).__name__}"
            self.found.failures.append(f"{kind.__name__} {number}: {type(error).__name__}: {str(error)[:300]}")
        self.found.outcomes[f"{kind.__name__}: {outcome}"] += 1
        after = contents(self.folder)
        if after != before:
            changed = sorted({path for path, _ in before.items() ^ after.items()})
            self.found.failures.append(f"{kind.__name__} {number}: changed {', '.join(changed)}")

    @contextmanager
    def changed(self, file: Path, content: bytes) -> Iterator[None]:
        """The file with other content, for a while."""
        original = file.read_bytes()
        file.write_bytes(content)
        try:
            yield
        finally:
            file.write_bytes(original)

    def bytes_of(self, raw: bytes) -> bytes:
        """A few bytes flipped, cut, doubled or made up."""
        data = bytearray(raw)
        for _ in range(int(self.rng.integers(1, 4))):
            at, end = sorted(self.rng.integers(0, len(data) + 1, 2)) if data else (0, 0)
            end = min(end, at + 64)
            how = self.rng.integers(5)
            if how == 0 and at < len(data):
                data[at] ^= 1 << int(self.rng.integers(8))
            elif how == 1:
                del data[at:end]
            elif how == 2:
                data[at:at] = data[at:end]
            elif how == 3:
                data[at:end] = self.rng.bytes(end - at)
            else:
                del data[at:]
        return bytes(data)

    def part(self, name: str) -> Path:
        """A file of the Program."""
        path = self.folder / "program"
        return path / "manifest.json" if name == "manifest" else next(path.glob(f"{name}-*.bin"))

    # --- Kinds ---

    def look(self) -> None:
        """All that reads a Program."""
        program = patchloom.load(self.folder / "program")
        describe(program)

    def program_bytes(self) -> None:
        file = self.part(self.pick(["manifest", "image", "index", "golden"]))
        with self.changed(file, self.bytes_of(file.read_bytes())):
            self.look()

    def program_meaning(self) -> None:
        """A value of the manifest is another one; its checksum is right."""
        document = json.loads(self.part("manifest").read_text())
        del document["crc32"]
        for _ in range(int(self.rng.integers(1, 3))):
            holder = self.place_in(document)
            key = self.pick(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
            old = holder[key]
            near = [old + 1, old - 1, old * 2, -old] if type(old) is int else []
            holder[key] = self.pick([*JUNK, *near])
        with self.changed(self.part("manifest"), sealed(document)):
            self.look()

    def place_in(self, document: Any) -> Any:
        """A dictionary or list somewhere in a document."""
        found = []

        def walk(value: Any) -> None:
            if isinstance(value, dict | list) and value:
                found.append(value)
                for inner in value.values() if isinstance(value, dict) else value[:20]:
                    walk(inner)

        walk(document)
        return self.pick(found)

    def commands(self) -> None:
        """Bits of the commands are others; checksums are right. What verify admits is run."""
        raw = bytearray(self.part("image").read_bytes())
        document = json.loads(self.part("manifest").read_text())
        del document["crc32"]
        count = len(self.program.tasks[0].commands) * COMMAND_BYTES
        for _ in range(int(self.rng.integers(1, 4))):
            raw[self.rng.integers(count)] ^= 1 << int(self.rng.integers(8))
        for segment in document["segments"]:
            segment["crc32"] = zlib.crc32(raw[segment["offset"] :][: segment["length"]])
        with self.changed(self.part("image"), bytes(raw)), self.changed(self.part("manifest"), sealed(document)):
            self.look()
            program = patchloom.load(self.folder / "program")
            patchloom.run(program, np.zeros((5, 16), np.float32))

    def design(self) -> None:
        lines = DESIGN.splitlines()
        for _ in range(int(self.rng.integers(1, 3))):
            at = int(self.rng.integers(len(lines)))
            cut = int(self.rng.integers(len(lines[at]) + 1))
            rest = lines[at][cut + int(self.rng.integers(0, 8)) :]
            lines[at] = lines[at][:cut] + self.pick(WORDS) + (rest if self.rng.integers(2) else "")
            if self.rng.random() < 0.2:
                lines.insert(at, self.pick(lines))
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        file = self.folder / "design.yaml"
        with self.changed(file, text if self.rng.random() < 0.8 else self.bytes_of(text)):
            load_design(file)

    def checkpoint(self) -> None:
        file = self.folder / "weights.safetensors"
        with self.changed(file, self.header(file.read_bytes())):
            load_module(load_design(self.folder / "design.yaml"))

    def header(self, raw: bytes) -> bytes:
        """Bytes of a safetensors file, most of them in what it says of itself."""
        size = 8 + int.from_bytes(raw[:8], "little")
        return self.bytes_of(raw[:size]) + raw[size:] if self.rng.random() < 0.7 else self.bytes_of(raw)

    def inputs(self) -> None:
        name = self.pick(["samples.npy", "samples.npz", "samples.safetensors"])
        file = self.folder / name
        raw = file.read_bytes()
        head = 128 if name != "samples.npz" else 200
        data = self.bytes_of(raw[:head]) + raw[head:] if self.rng.random() < 0.7 else self.bytes_of(raw)
        with self.changed(file, data):
            arrays = read_arrays(file)
            input_frames(self.program.tasks[0], next(iter(arrays.values()), None))

    def picture(self) -> None:
        file = self.folder / self.pick(["picture.png", "picture.jpg"])
        raw = file.read_bytes()
        data = self.bytes_of(raw[:80]) + raw[80:] if self.rng.random() < 0.5 else self.bytes_of(raw)
        with self.changed(file, data), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PictureWarning, and Pillow's of damaged EXIF
            read_pictures("picture", file, self.program.tasks[0].inputs[0].preprocessing)

    def command_line(self) -> None:
        words = self.pick([
            ["run", "program", "samples.npy", "--output", "missing/../program"],
            ["run", "program", "design.yaml", "--output", "out.npz", "--engine", "interpreter"],
            ["run", "program", "samples.npy", "--task", "main", "--output", "program/out.txt"],
            ["run", "program", "picture.png", "picture.jpg", "--output", "out.npz"],
            ["run", "program", "samples.npy", "--output", "seen", "--no-pictures"],
            ["run", "program", "picture.png", "picture.jpg", "--output", "seen"],
            ["deploy", "program", "--project", "program", "--output", "seen"],
            ["inspect", "program"],
            ["compile", "design.yaml", "-o", "models.py"],
            ["hls", "program", "program"],
        ])  # fmt: skip
        words = [word if self.rng.random() < 0.7 else self.pick([*words, *WORDS, "--help", "-o", "/dev/null", ".", ""])
                 for word in words]  # fmt: skip
        before = contents(self.folder)
        with chdir(self.folder):
            try:
                cli.app([word for word in words if "\x00" not in word and word.isprintable()])
            except SystemExit as end:
                if end.code == 0:  # what it was asked to write
                    self.drop_new(before)
                raise

    def drop_new(self, before: dict[str, bytes]) -> None:
        """Only files that were not there may be."""
        for path in contents(self.folder).keys() - before.keys():
            (self.folder / path).unlink()


def sealed(document: Any) -> bytes:
    """A manifest whose checksum is right."""
    crc = zlib.crc32(json.dumps(document, indent=1).encode())
    return (json.dumps(document | {"crc32": crc}, indent=1) + "\n").encode()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def fuzz(count: int, seed: int) -> Found:
    """`count` mutations, of all kinds in turn; memory is limited while they last."""
    with tempfile.TemporaryDirectory() as folder:
        made = Fuzz(seed, Path(folder))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        try:
            for number in shown(range(count)):
                made.once(number)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return made.found


if __name__ == "__main__":
    command_line(fuzz, count=5000)
