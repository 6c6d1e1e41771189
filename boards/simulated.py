"""The SoC of a board, simulated with a model of its memory."""

from patchloom.boards import sources
from patchloom.boards.board import board
from patchloom.boards.tools import need_packages
from patchloom.compiler.machine.config import Config
from patchloom.sim.soc import SimulatedSoc


def simulate(name: str, config: Config) -> SimulatedSoc:
    """Raises `BoardError`. What is simulated is built once; LiteX is asked every time."""
    need_packages("the simulated SoC of a board")
    made, machine = sources.soc(board(name), config, simulated=True), sources.machine_verilog(config)
    digest = sources.digest_verilog(sources.digest([made.verilog, machine]))
    return SimulatedSoc(made.verilog + "`default_nettype wire\n" + machine + digest, made.map, made.row_bytes)
