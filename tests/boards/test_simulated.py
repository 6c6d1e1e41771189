"""The SoC of a board, simulated with its memory; what every home has in common is in tests/host/test_homes.py."""

import json
import re
import sys
from statistics import median

import numpy as np
import pytest

import patchloom
from patchloom import cli
from patchloom.boards.board import BoardError, board
from patchloom.boards.simulated import simulate
from patchloom.compiler.machine.errors import InputError
from patchloom.host.errors import IdentityError, LinkError
from patchloom.host.session import identify
from patchloom.sim.cycles import predict, queue_lengths
from patchloom.sim.interpret import execute
from tests.machine import machine_of
from tests.sim.models import TASKS, Model

BOARD = board("ulx3s_85f")
CONFIG = machine_of(BOARD.name)
MODEL = Model(3)
BASE = BOARD.memory.base


@pytest.fixture(scope="module")
def program():
    return MODEL.compiled(CONFIG, "w8a8")


@pytest.fixture(scope="module")
def soc():
    """One for all tests but the last: a driver finds it as the one before has left it."""
    with simulate(BOARD.name, CONFIG) as opened:
        yield opened


def check_frames(session, program):
    """Both tasks in turns, whole frames."""
    for sample, task in enumerate((*TASKS, *TASKS)):
        region = MODEL.region(program, TASKS.index(task), sample)
        output, _, saturations = session.frame(region, task)
        expected, expected_saturations = execute(program, task, region)
        np.testing.assert_array_equal(output, expected)
        assert saturations == expected_saturations


def test_a_board_on_a_terminal(soc, program, tmp_path, monkeypatch, capsys):
    """As a user runs it, who knows the port and the folder that `patchloom build` wrote."""
    soc.map.save(tmp_path / "soc.json")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"digest": f"{identify(soc.device()).digest:032x}"}))
    patchloom.save(program, tmp_path / "program")
    image = MODEL.calibration["image"][:2]
    np.save(tmp_path / "image.npy", image)
    with soc.terminal() as path:
        line = f"run program image.npy --output out.npz --task {TASKS[0]} --device uart:{path} --project ."
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["patchloom", *line.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        told = capsys.readouterr()
        assert not caught.value.code, told.err
        assert re.search(r"[\d,]+ bytes uploaded in .* s; 2 frames in .* s, input and result included", told.err)
        manifest.write_text(json.dumps({"digest": "1234"}))
        with pytest.raises(IdentityError, match=r"the machine must be of build 0{28}1234, not"):
            patchloom.Session(f"uart:{path}@3000000", program, project=tmp_path)
    expected = patchloom.run(program, image, task=TASKS[0])
    with np.load(tmp_path / "out.npz") as found:
        for name, raw in expected.raw.items():
            np.testing.assert_array_equal(found[f"raw/{name}"], raw)


def test_cycles(soc, program):
    """As predicted with the memory that the board states, within 1 %."""
    session = patchloom.Session(soc.device(), program)
    for number, task in enumerate(TASKS):
        region = MODEL.region(program, number, 0)
        cycles = median(session.frame(region, task)[1] for _ in range(5))  # a refresh falls anywhere in each
        predicted = predict(program, task, queues=queue_lengths(program, task, region), **BOARD.memory.timing).cycles
        # Into so short a frame falls one refresh more or less.
        assert abs(cycles - predicted) < 0.01 * predicted + BOARD.memory.refresh_cycles


def test_cut_in_the_middle_of_a_burst(soc, program):
    """Half a request; the bridge gives up, and the link goes on behind it."""
    session = patchloom.Session(soc.device(), program)
    unused = BASE + BOARD.memory.bytes // 2
    soc.send(bytes([1, 255]) + (unused // 4).to_bytes(4, "big") + bytes(range(10)))
    check_frames(session, program)


def test_preload(soc):
    device, data = soc.device(), np.random.default_rng(0).bytes(20_000)
    for address in (BASE, BASE + 0x12_3450, BASE + BOARD.memory.bytes - len(data)):
        soc.preload(address, data)
        assert device.get(address, len(data)) == data
    device.put(BASE + 96, data[:4000])
    soc.preload(BASE + 96, data[4000:8000])
    assert device.get(BASE + 92, 4008) == data[92:96] + data[4000:8000] + data[4096:4100]
    for address, size in ((BASE - 4, 4), (BASE + BOARD.memory.bytes, 4), (BASE, 3)):
        with pytest.raises(InputError, match="preloaded"):
            soc.preload(address, bytes(size))


def test_by_name(program):
    """As the front door gives it, with the numbers of `patchloom.run`; afterwards it is closed."""
    image = MODEL.calibration["image"][:2]
    expected = patchloom.run(program, image, task=TASKS[1])
    with patchloom.Session(f"soc:{BOARD.name}", program) as session:
        result = session.run(image, task=TASKS[1])
        for name, raw in expected.raw.items():
            np.testing.assert_array_equal(result.raw[name], raw)
        device = session.device
    with pytest.raises(LinkError, match="the simulated SoC is closed"):
        device.read("magic")
    with pytest.raises(BoardError, match="board must be"):
        patchloom.Session("soc:ulx3s", program)
