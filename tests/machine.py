"""One small machine for all tests that run whole models where any machine would do: its simulator is built once."""

from dataclasses import replace

from patchloom.boards.board import board
from patchloom.compiler.machine.config import Config

MACHINE = Config(inputs=8, outputs=8, lanes=4, scratchpad_chunks=4096, max_experts=6, max_top_k=3, fifo_beats=64)


def machine_of(name: str) -> Config:
    """A smaller one, for the memory of a board."""
    return replace(MACHINE, scratchpad_chunks=1024, max_rows=16, statistics_rows=128, command_depth=128,
                   bus_width=board(name).memory.bus_width)  # fmt: skip
