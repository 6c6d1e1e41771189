"""The HLS kernels compiled by g++: the machine of a Config as a function from frame to frame."""

import ctypes
import functools
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error, MissingExtraError
from patchloom.compiler.machine.program import Program
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw import cache
from patchloom.hw.hls import emit
from patchloom.sim import toolchain
from patchloom.sim.interpret import execute

WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas")  # g++ knows no HLS pragmas
COMPILE = ("g++", "-std=c++17", "-O2", *WARNINGS, "-fPIC", "-shared")
Elements = NDArray[np.int16]


class HlsError(Error, RuntimeError):
    """The kernels refused a Program."""


@functools.cache
def ap_types() -> Path:
    """The ap_int headers that come with hls4ml."""
    spec = find_spec("hls4ml")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("HLS simulation", "hls4ml", "the headers of hls4ml")
    return Path(next(iter(spec.submodule_search_locations))) / "templates" / "vivado" / "ap_types"


def build(config: Config, compiler: tuple[str, ...] = COMPILE) -> Path:
    """The shared library of a Config's machine; built once per content."""
    texts = {name: text for name, text in emit.sources().items() if name.endswith(".hpp") or name == "library.cpp"}
    texts["facts.hpp"] = emit.facts(config)

    def make(directory: Path) -> None:
        for name, text in texts.items():
            (directory / name).write_text(text)
        toolchain.call([*compiler, "-isystem", ap_types(), "-o", "machine.so", "library.cpp"], directory)

    key = cache.digest(*compiler, *(part for item in sorted(texts.items()) for part in item))
    return cache.entry("hls", key, make) / "machine.so"


@functools.cache
def _library(config: Config) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(config)))
    pointer = ctypes.c_void_p
    library.patchloom_run.restype = ctypes.c_int
    library.patchloom_run.argtypes = [pointer, pointer, pointer, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)]
    return library


def write_project(program: Program, regions: Mapping[str, Elements], path: Path) -> None:
    """A project for Vitis HLS; the golden of each named task is what the interpreter makes of its input region."""
    goldens = []
    for number, task in enumerate(program.tasks):
        if task.name in regions:
            output, saturations = execute(program, task.name, regions[task.name])
            goldens.append(emit.Golden(number, regions[task.name], output, saturations))
    emit.write_project(program, goldens, ap_types(), path)


class HlsMachine:
    """Runs frames of one Program; threads may share it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._library = _library(program.config)
        self._image = self._words(np.frombuffer(program.image, np.uint8))

    def _words(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Padded to whole bus words."""
        return np.pad(data, (0, -data.size % self.program.config.beat_bytes))

    def run(self, region: Elements, task: str | None = None) -> tuple[Elements, int]:
        """One frame: the input region's elements to the output region's, and the number of saturations."""
        chosen = self.program.task(task)
        source = self._words(np.ascontiguousarray(region, np.int16).view(np.uint8))
        output = self._words(np.zeros(chosen.output_bytes, np.uint8))
        saturations = ctypes.c_int64()
        error = self._library.patchloom_run(
            self._image.ctypes.data,
            source.ctypes.data,
            output.ctypes.data,
            self.program.tasks.index(chosen),
            ctypes.byref(saturations),
        )
        if error:
            raise HlsError(f"task '{chosen.name}' stopped: {ErrorCode(error).name}")
        return output[: chosen.output_bytes].view(np.int16), saturations.value
