"""What LiteX makes of each board."""

import re
from dataclasses import replace

import pytest

from patchloom.boards import sources
from patchloom.boards.board import BOARDS, BoardError, board
from patchloom.compiler.machine.config import Config
from patchloom.host.device import Region

CONFIG = Config(inputs=8, outputs=8, lanes=4, scratchpad_chunks=1024, max_rows=32, command_depth=64)
WITH_LITEX = [name for name, found in BOARDS.items() if found.litex]


def config(name: str) -> Config:
    return replace(CONFIG, bus_width=board(name).memory.bus_width)


@pytest.mark.parametrize("name", WITH_LITEX)
def test_sources_of_a_board(name):
    found = board(name)
    made = sources.soc(found, config(name))
    assert re.search(rf"^{sources.MACHINE} {sources.MACHINE}\(", made.verilog, re.MULTILINE)
    assert re.search(rf"^{sources.DIGEST} {sources.DIGEST}\(", made.verilog, re.MULTILINE)
    assert "serial" in made.constraints
    assert made.map.memory == Region(found.memory.base, found.memory.bytes)
    assert (made.map.board, made.map.clock_hz, made.map.registers) == (name, found.clock_hz, found.registers)
    control = made.csrs["sdram_dfii_control"]
    assert [step.value for step in made.map.setup if step.address == control][-1] == 15
    assert made.map.setup[-1].address == control
    assert bool(made.map.levelling) == found.memory.kind.startswith("DDR3")
    if made.map.levelling:
        assert made.map.levelling.lanes * 8 == 16
        assert made.map.levelling.phases * made.map.levelling.phase_bytes * 8 == found.memory.bus_width
        assert {"dly_sel", "rdly_dq_inc", "pi1_wrdata", "pi1_rddata"} <= made.map.levelling.csrs.keys()
    assert bool(made.script) == (found.tools == "vivado")
    if made.script:
        files = re.findall(r"^read_(?:verilog|xdc) \{?(.*?)\}?$", made.script, re.MULTILINE)
        assert sorted(files) == [f"../{name}" for name in ("build_digest.v", "patchloom.v", "soc.v", "soc.xdc")]


def test_the_same_sources_in_another_place(tmp_path, monkeypatch):
    one = sources.soc(board("ulx3s_85f"), config("ulx3s_85f"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert sources.soc(board("ulx3s_85f"), config("ulx3s_85f")) == one
    assert "/" not in re.sub(r"1ns / 1ps", "", one.verilog), "neither comments nor paths"


def test_a_simulated_board_has_pins_for_a_harness():
    made = sources.soc(board("ulx3s_85f"), config("ulx3s_85f"), simulated=True)
    ports = re.findall(r"^ +(?:in|out)put .*?(\w+),?$", made.verilog, re.MULTILINE)
    streams = [f"serial_{way}_{name}" for way in ("sink", "source") for name in ("data", "ready", "valid")]
    assert sorted(ports) == sorted([*streams, "sys_clk", "sys_rst"])


def test_the_bus_is_never_converted():
    with pytest.raises(BoardError, match=r"Config.bus_width must be 32, not 64"):
        sources.soc(board("ulx3s_85f"), CONFIG)
    other = replace(board("ulx3s_85f"), memory=replace(board("ulx3s_85f").memory, bus_width=64))
    with pytest.raises(BoardError, match="controller has 32 bits, the board says 64 and the machine has 64"):
        check_in_litex(other)


def check_in_litex(found):
    """As `sources.soc` does in its own process, of a board that is not declared."""
    from patchloom.boards.soc import Soc  # noqa: PLC0415 - LiteX, only here

    Soc(found, CONFIG, simulated=True)


def test_a_board_without_litex():
    with pytest.raises(BoardError, match="board zcu102 has a processing system, and no SoC by LiteX"):
        sources.soc(board("zcu102"), replace(CONFIG, bus_width=128))
