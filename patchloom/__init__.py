"""Patchloom's front door: compile a trained PyTorch module, save and load the Program, run it.

import patchloom

program = patchloom.compile(model, image, calibration=images, precision="w8a8")
result = patchloom.run(program, images, engine="rtl")

Names are loaded when they are first used: a machine that only loads and runs Programs needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchloom.boards.build import build
    from patchloom.compiler.machine.config import Config
    from patchloom.compiler.machine.errors import Error
    from patchloom.compiler.machine.frames import Result
    from patchloom.compiler.machine.preprocessing import Preprocessing
    from patchloom.compiler.machine.program import Program
    from patchloom.compiler.machine.store import load, save
    from patchloom.compiling import compile_module as compile  # noqa: A004 - `patchloom.compile`
    from patchloom.presets import PRESETS
    from patchloom.reporting.making import report
    from patchloom.reporting.report import Report
    from patchloom.running import predict, run
    from patchloom.session import Session
    from patchloom.sizing import Budget

__all__ = [
    "PRESETS",
    "Budget",
    "Config",
    "Error",
    "Preprocessing",
    "Program",
    "Report",
    "Result",
    "Session",
    "build",
    "compile",
    "load",
    "predict",
    "report",
    "run",
    "save",
]

_HOMES = {
    "PRESETS": "presets:PRESETS",
    "Budget": "sizing:Budget",
    "Config": "compiler.machine.config:Config",
    "Error": "compiler.machine.errors:Error",
    "Preprocessing": "compiler.machine.preprocessing:Preprocessing",
    "Program": "compiler.machine.program:Program",
    "Report": "reporting.report:Report",
    "Result": "compiler.machine.frames:Result",
    "Session": "session:Session",
    "build": "boards.build:build",
    "compile": "compiling:compile_module",
    "load": "compiler.machine.store:load",
    "predict": "running:predict",
    "report": "reporting.making:report",
    "run": "running:run",
    "save": "compiler.machine.store:save",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    from patchloom.extras import needed_by  # noqa: PLC0415 - after this package

    with needed_by(f"patchloom.{name}", {"build": "boards", "report": "report"}.get(name, "compile")):
        value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
