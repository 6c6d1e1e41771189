"""One small machine for all tests that run whole models where any machine would do: its simulator is built once."""

from dataclasses import replace
from typing import Any

import numpy as np

import patchloom
from patchloom.boards.board import board
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.frames import Result
from patchloom.compiler.machine.program import Program

MACHINE = Config(inputs=8, outputs=8, lanes=4, scratchpad_chunks=4096, max_experts=6, max_top_k=3, fifo_beats=64)


def machine_of(name: str) -> Config:
    """A smaller one, for the memory of a board."""
    return replace(MACHINE, scratchpad_chunks=1024, max_rows=16, statistics_rows=128, command_depth=128,
                   bus_width=board(name).memory.bus_width)  # fmt: skip


def agreed(program: Program, inputs: Any, *engines: str) -> Result:
    """The interpreter's result, of which the engines' are every element and every saturation."""
    expected = patchloom.run(program, inputs, engine="interpreter")
    for engine in engines:
        result = patchloom.run(program, inputs, engine=engine)
        assert result.raw.keys() == expected.raw.keys()
        for name, raw in expected.raw.items():
            np.testing.assert_array_equal(result.raw[name], raw)
        assert result.saturations == expected.saturations
    return expected
