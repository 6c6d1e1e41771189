"""The area model beside the machines that Yosys has measured."""

import json
from dataclasses import replace

import pytest

from benchmarks.area_model import FAMILIES, POINTS, errors, fitted, points
from benchmarks.boards import RESULTS as SIZED
from benchmarks.configs import CONFIGS
from patchloom.boards.area import FAMILIES as RULES
from patchloom.boards.area import _holes
from patchloom.boards.board import BOARDS
from patchloom.boards.estimate import FACTORS, Area, estimate, exceeds, soc_area, usable
from patchloom.compiler.machine.config import Config
from patchloom.hw.cache import RTL, digest, sources

MEASURED = points()
TODAY = digest(*sources(*RTL))


@pytest.mark.parametrize("point", MEASURED, ids=[f"{p['family']} {p['name']}" for p in MEASURED])
def test_measured_machines(point):
    """Commands of another RTL had fewer bits: its small machines have a block RAM or two less."""
    [(_, _, (lut, ff, dsp, bram))] = errors(json.loads(FACTORS.read_text())["families"], [point])
    assert dsp == 0
    assert abs(bram) <= (0.03 if point["rtl"] == TODAY else 0.06)
    assert abs(lut) <= 0.1
    assert abs(ff) <= 0.1


def test_factors_are_what_the_points_give():
    stated = json.loads(FACTORS.read_text())["families"]
    for family, kinds in fitted(MEASURED).items():
        for kind, units in kinds.items():
            for unit, factors in units.items():
                assert stated[family][kind][unit] == pytest.approx(factors, rel=1e-6, abs=1e-9)


def test_points_are_the_machines_they_name():
    for point in MEASURED:
        assert Config(**point["config"]) == POINTS[point["name"]][point["family"]]


@pytest.mark.parametrize(("name", "dsps"), [("ulx3s", 146), ("mid", 402), ("zcu102", 673), ("zcu102-wide", 1265)])
def test_multipliers_are_counted(name, dsps):
    """As Yosys has counted them: benchmarks/results/area.json."""
    assert estimate(CONFIGS[name], "xcup").dsp == dsps


def test_one_lane_behind_the_array_saves_the_multipliers_of_seven():
    assert estimate(replace(CONFIGS["ulx3s"], epilogue_lanes=1), "ecp5").dsp == 97


@pytest.mark.parametrize("family", FAMILIES)
def test_more_of_anything_takes_no_less(family):
    base = POINTS["8x8"][family]
    small = estimate(base, family)
    for change in (
        {"inputs": 16},
        {"outputs": 16},
        {"scratchpad_chunks": base.scratchpad_chunks * 2},
        {"max_rows": 1024},
        {"fifo_beats": 8192},
        {"max_experts": 64},
        {"command_depth": 2048},
    ):
        large = estimate(replace(base, **change), family)
        assert not exceeds(replace(small, dsp=0), large), change  # a depth that is a power of two saves a multiplier
        assert small != large, change


def test_what_a_board_has_left():
    for board in BOARDS.values():
        room, soc = usable(board), soc_area(board)
        assert 0 < room.lut + soc.lut <= 0.8 * board.device.luts + 1
        assert room.dsp + soc.dsp == int(0.94 * board.device.dsps)
        assert exceeds(Area(room.dsp + 1, 0, 0, room.ff), room) == {"dsp": room.dsp + 1}


def test_the_machines_of_the_table_fit_their_boards():
    """Of docs/boards.md, chosen when the factors may have been others."""
    for boards in json.loads(SIZED.read_text())["models"].values():
        for name, result in boards.items():
            if "config" in result:
                config, board = Config(**result["config"]), BOARDS[name]
                assert not exceeds(estimate(config, board.device.family), usable(board)), (name, config)


def test_cells_are_counted_by_the_places_they_take():
    cells = {
        "LUT4": 10,
        "CCU2C": 3,
        "TRELLIS_DPR16X4": 2,
        "TRELLIS_FF": 7,
        "MULT18X18D": 1,
        "DP16KD": 4,
        "$scopeinfo": 9,
    }
    assert RULES["ecp5"].area(cells) == Area(dsp=1, bram=4, lut=24, ff=7)
    cells = {"LUT6": 1, "LUT2": 1, "SRL16E": 1, "RAM64M8": 1, "FDRE": 2, "FDSE": 1, "RAMB18E2": 3, "RAMB36E2": 1}
    assert RULES["xcup"].area(cells) == Area(dsp=0, bram=2.5, lut=11, ff=3)


def test_the_hole_has_the_machines_ports():
    text = _holes(Config(bus_width=32))
    assert "module patchloom(input clk, input rst, " in text
    assert "output [31:0] m_axi_wdata" in text
    assert "input [11:0] s_axil_araddr" in text
