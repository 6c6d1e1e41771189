"""One small machine for all tests that run whole models where any machine would do: its simulator is built once."""

from patchloom.compiler.machine.config import Config

MACHINE = Config(inputs=8, outputs=8, lanes=4, scratchpad_chunks=4096, max_experts=6, max_top_k=3, fifo_beats=64)
