"""The machine sized for a board: it fits, is what the cycle model says, and what does not fit says where it would."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import patchloom
from patchloom import sizing
from patchloom.boards.board import BOARDS, BoardError
from patchloom.boards.estimate import MARGIN, estimate, exceeds, usable
from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.machine.config import Config
from patchloom.compiler.quantise import Precision, quantise
from patchloom.sizing import SizeError

BOARD = BOARDS["ulx3s_85f"]
EXAMPLE = torch.zeros(1, 5, 16)


@pytest.fixture(scope="module")
def sized(mlp, samples):
    """(Program for the board, its Budget)."""
    told = []
    program = patchloom.compile(mlp, EXAMPLE, calibration=samples, board=BOARD.name, budget=told.append)
    return program, *told


def test_it_fits_the_board_and_is_as_fast_as_it_says(sized, samples):
    program, budget = sized
    config = program.config
    assert budget.config == config
    assert config.bus_width == BOARD.memory.bus_width
    assert not exceeds(estimate(config, "ecp5"), usable(BOARD))
    assert all(budget.share(kind) <= 1 - margin for kind, margin in MARGIN.items())
    cycles = patchloom.predict(program, samples[0], **BOARD.memory.timing).cycles
    assert budget.cycles == {"main": cycles}
    assert budget.frames_per_second == {"main": BOARD.clock_hz / cycles}
    assert budget.bandwidth == 200e6 * (1 - BOARD.memory.refresh_cycles / BOARD.memory.refresh_period)
    assert budget.larger.board.device.dsps > BOARD.device.dsps


def test_no_preset_is_faster(sized, mlp, samples):
    """Of machines that fit as well."""
    config = replace(patchloom.PRESETS["small"], inputs=8, outputs=8, lanes=8, bus_width=32, scratchpad_chunks=64)
    told = []
    given = patchloom.compile(mlp, EXAMPLE, calibration=samples, board=BOARD.name, config=config, budget=told.append)
    assert (given.board, given.config) == (BOARD.name, config)
    assert sized[1].cycles["main"] <= told[0].cycles["main"]


def test_a_machine_of_a_board_computes_the_same(sized, program, samples):
    ours, theirs = (patchloom.run(p, samples).raw["main"] for p in (sized[0], program))
    np.testing.assert_array_equal(ours, theirs)


def test_the_board_is_in_the_manifest(sized, program, tmp_path):
    for made, name in ((sized[0], BOARD.name), (program, "")):
        patchloom.save(made, tmp_path / "program")
        stated = json.loads((tmp_path / "program" / "manifest.json").read_text())
        assert (stated.get("board", ""), "board" in stated) == (name, bool(name))
        assert patchloom.load(tmp_path / "program").board == name


def test_an_unknown_board_is_told_before_anything_is_done(mlp):
    with pytest.raises(BoardError, match="board must be one of ulx3s_85f, ecpix5_85f, not 'ulx3s_85'"):
        patchloom.compile(mlp, EXAMPLE, calibration=None, board="ulx3s_85")


def test_a_config_that_contradicts_the_board(mlp):
    config = Config(inputs=32, outputs=32, multipliers_packed=True)
    with pytest.raises(SizeError) as caught:
        patchloom.compile(mlp, EXAMPLE, calibration=None, board=BOARD.name, config=config)
    lines = str(caught.value).splitlines()
    assert lines[0] == ("Config.bus_width must be 32, as wide as the memory controller of board ulx3s_85f, not 64")
    assert (
        lines[1] == "Config.multipliers_packed must be False: the multipliers of board ulx3s_85f are too narrow for two"
    )
    assert any(line.startswith("Config needs ") and "multipliers" in line for line in lines)


# --- What does not fit ---


def small(board=BOARD, **left):
    """The board with less of something."""
    return replace(board, device=replace(board.device, **left))


def quantised(model, samples):
    graphs = capture(model.eval(), (torch.from_numpy(samples[:1]),))
    return quantise(graphs, {"x": samples}, Precision.parse("w8a8"))


def test_too_small_a_scratchpad_is_told_in_bytes_and_boards():
    """Sums that must all live at a time: a thousand rows of 64."""
    samples = np.random.default_rng(0).normal(size=(2, 1024, 64)).astype(np.float32)
    model = quantised(Wide(), samples)
    with pytest.raises(SizeError) as caught:
        sizing.size(model, {"x": samples}, small(brams=110))
    text = str(caught.value)
    need, have, missing = (int(word) for word in text.replace(":", "").split() if word.isdigit())
    assert need - have == missing > 0
    assert "board ulx3s_85f has room for" in text
    assert "try board ulx3s_85f or board ecpix5_85f" in text  # the real ones
    program, budget = sizing.size(model, {"x": samples}, BOARD)
    assert program.config.scratchpad_chunks * program.config.lanes * 2 >= need
    assert budget.board is BOARD


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return x + self.second(self.first(x))


def test_a_device_without_enough_multipliers(mlp, samples):
    model = quantised(mlp, samples)
    with pytest.raises(SizeError, match=r"the smallest machine needs \d+ multipliers, has 37 on board ulx3s_85f; try"):
        sizing.size(model, {"x": samples}, small(dsps=40))


def test_a_memory_too_small_for_the_image(mlp, samples):
    board = replace(BOARD, memory=replace(BOARD.memory, bytes=4096))
    with pytest.raises(SizeError, match=r"need \d+ bytes of memory, board ulx3s_85f has 4096; try board"):
        sizing.size(quantised(mlp, samples), {"x": samples}, board)


def test_more_memory_bandwidth_is_never_slower(mlp, samples):
    model = sizing.read_model(quantised(mlp, samples), {"x": samples})
    slow = replace(BOARD, memory=replace(BOARD.memory, cycles_per_beat=7))
    (fast, _), (late, limit) = (sizing.search(model, board) for board in (BOARD, slow))
    assert fast.total < late.total
    assert limit == "memory: its bandwidth"


def test_rooflines_are_below_what_is_predicted(mlp, samples):
    """Else the search would end too early."""
    model = sizing.read_model(quantised(mlp, samples), {"x": samples})
    for candidate in sizing.candidates(model, BOARD):
        if not candidate.lacks:
            assert candidate.roofline * sizing.SLACK <= sizing.attempt(model, candidate.config, BOARD).total


def test_an_array_that_yosys_finds_too_large_is_put_aside(mlp, samples, monkeypatch):
    """The first two are; Yosys itself is not run."""
    asked = []

    def measure(config, family):
        asked.append((config.inputs, config.outputs))
        area = estimate(config, family)
        return replace(area, lut=80_000) if len(asked) < 3 else replace(area, lut=12_345)

    monkeypatch.setattr(sizing, "measure", measure)
    program, budget = sizing.size(quantised(mlp, samples), {"x": samples}, BOARD, measured=True)
    assert len(set(asked)) == 3
    assert (program.config.inputs, program.config.outputs) == asked[-1]
    assert (budget.measured, budget.machine.lut) == (True, 12_345)
