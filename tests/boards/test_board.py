"""The boards that are declared."""

from dataclasses import replace

import pytest

from patchloom.boards.board import BOARDS, BoardError, board
from patchloom.compiler.machine.config import Config
from patchloom.sim.device import check_memory


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_one_that_a_machine_can_be_made_for(name):
    found = board(name)
    assert found.name == name
    assert Config(bus_width=found.memory.bus_width).bus_width == found.memory.bus_width
    check_memory(**found.memory.timing)
    assert found.memory.base % 4096 == 0
    assert found.registers % 4096 == 0
    outside = found.registers + 4096 <= found.memory.base or found.registers >= found.memory.base + found.memory.bytes
    assert outside, "registers must lie beside the memory"


@pytest.mark.parametrize(
    ("name", "near"), [("ulx3s", "ulx3s_85f"), ("ZCU-104", "zcu102"), ("kv26", "kv260"), ("", "ulx3s_85f, ecpix5")]
)
def test_unknown_boards_are_told_the_nearest(name, near):
    with pytest.raises(BoardError, match=f"board must be .*{near}.*, not '{name}'"):
        board(name)


def test_a_board_has_one_thing_around_the_machine():
    with pytest.raises(BoardError, match="board zcu102 must have either litex or zynq"):
        replace(board("zcu102"), litex=board("ulx3s_85f").litex)
