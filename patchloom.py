"""Patchloom's front door: compile a trained PyTorch module, save and load the Program, run it.

import patchloom

program = patchloom.compile(model, image, calibration=images, precision="w8a8")
result = patchloom.run(program, images, engine="rtl")
"""

from compiler.config import Config
from compiler.program import Program
from compiler.store import load, save
from host.flow import PRESETS, Result, run
from host.flow import compile_module as compile  # noqa: A004 - `patchloom.compile`

__all__ = ["PRESETS", "Config", "Program", "Result", "compile", "load", "run", "save"]
