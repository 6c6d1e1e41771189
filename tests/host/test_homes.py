"""One file for every home of a machine: wherever it is, a Session does the same, and every number is the same.

Where PYNQ can be imported, with the NumPy that it needs, its home is the only one: `test_mapped` runs this file there.
"""

import zlib
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest

import patchloom
from patchloom.boards.simulated import simulate
from patchloom.compiler.machine.registers import REGISTERS, Control, ErrorCode
from patchloom.host.device import Device, Region
from patchloom.host.errors import CapacityError, DeadlineError, DeviceError, LinkError, RegisterError
from patchloom.host.session import Session, frame_bytes
from patchloom.host.transports.soc import SocDevice
from patchloom.host.transports.tty import Tty
from patchloom.host.transports.udp import Udp
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute
from tests.machine import MACHINE, machine_of
from tests.sim.models import TASKS, Model

MODEL = Model(3)
NOWHERE = 0  # an address at which no home has memory
SHORT = 0.002  # seconds: longer than a frame where time is simulated
PATIENCE = 20.0  # seconds for a packet: the SoC may have to share its processor


@contextmanager
def native(folder):
    with SimulatedDevice(MACHINE, latency=5, jitter=9, stalls=0.1) as device:
        yield device, MACHINE


@contextmanager
def terminal(folder):
    config = machine_of("ulx3s_85f")
    with (
        simulate("ulx3s_85f", config) as soc,
        soc.terminal() as path,
        SocDevice.uart(soc.map, Tty(path, 3_000_000)) as device,
    ):
        yield device, config


@contextmanager
def network(folder):
    from tests.host.etherbone import served  # noqa: PLC0415 - LiteX and an old NumPy need not meet

    config = machine_of("ecpix5_85f")
    with (
        simulate("ecpix5_85f", config) as soc,
        served(soc) as place,
        SocDevice.etherbone(soc.map, Udp(*place), PATIENCE) as device,
    ):
        yield device, config


@contextmanager
def pynq(folder):
    from tests.host.double import MOST, doubled  # noqa: PLC0415 - imports PYNQ

    with SimulatedDevice(MACHINE, latency=5) as machine, doubled(machine, folder) as device:
        with pytest.raises(LinkError, match=r"the machine must be nobody else's: process \d+ has it"):
            doubled(machine, folder).__enter__()
        with pytest.raises(CapacityError, match="no CMA left"):
            device.allocate(MOST + 1)
        yield device, MACHINE


HOMES = [pynq] if find_spec("pynq") else [native, terminal, network]


@pytest.fixture(scope="module", params=HOMES, ids=lambda home: home.__name__)
def home(request, tmp_path_factory):
    """A device, and a Program for its machine."""
    with request.param(tmp_path_factory.mktemp("home")) as (device, config):
        yield device, MODEL.compiled(config, "w8a8")


@pytest.fixture
def device(home):
    return home[0]


@pytest.fixture
def program(home):
    return home[1]


@pytest.fixture
def session(device, program):
    with Session(device, program) as opened:
        yield opened


def check_frame(session, number, task):
    region = MODEL.region(session.program, TASKS.index(task), number)
    output, cycles, saturations = session.frame(region, task)
    expected, expected_saturations = execute(session.program, task, region)
    np.testing.assert_array_equal(output, expected)
    assert (saturations, cycles > 0) == (expected_saturations, True)


def test_identity(session, program):
    assert session.identity.fingerprint == program.config.fingerprint
    assert session.identity.digest != 0


def test_switching_task_moves_no_weight(session, device, program, monkeypatch):
    sizes, put = [], device.put
    monkeypatch.setattr(device, "put", lambda address, data: (sizes.append(len(data)), put(address, data)))
    for number, task in enumerate((*TASKS, *TASKS[::-1], *TASKS)):
        check_frame(session, number, task)
    assert max(sizes) <= max(frame_bytes(program)) < len(program.image)
    assert sum(sizes) == 3 * sum(task.input_bytes + task.output_bytes for task in program.tasks)


def test_a_batch_in_the_models_units(session, program):
    """Frames overlap."""
    images = MODEL.calibration["image"]
    for task in TASKS:
        result, expected = session.run(images, task=task), patchloom.run(program, images, task=task)
        np.testing.assert_array_equal(result.outputs[task], expected.outputs[task])
        np.testing.assert_array_equal(result.raw[task], expected.raw[task])
        assert (result.saturations, result.clipped) == (expected.saturations, expected.clipped)
        assert len(result.cycles) == len(images)


def test_a_stream_of_both_tasks(session, program):
    samples = [(image, task) for image in MODEL.calibration["image"] for task in TASKS]
    for (image, task), result in zip(samples, session.stream(samples), strict=True):
        expected = patchloom.run(program, image, task=task)
        np.testing.assert_array_equal(result.raw[task], expected.raw[task])


def test_commands_that_were_overwritten(session, device, program):
    """The machine stops; the Program is whole again in the next frame."""
    check_frame(session, 0, TASKS[0])
    image = device.read("program_base_lo") | device.read("program_base_hi") << 32
    device.put(image, bytes(64))
    with pytest.raises(DeviceError, match="BAD_COMMAND at command"):
        session.frame(MODEL.region(program, 0, 0), TASKS[0])
    check_frame(session, 1, TASKS[0])


def test_memory_that_is_not_there(session, device):
    """The machine does not ask for it, as its window ends before; without a window the bus says so."""
    check_frame(session, 0, TASKS[1])
    everywhere = {name: REGISTERS[name].reset for name in REGISTERS if name.startswith("window_")}
    for window, code in (({}, ErrorCode.READ_OUTSIDE), (everywhere, ErrorCode.READ_DECERR)):
        device.write_all({"program_base_lo": NOWHERE, "program_base_hi": 0, **window})
        device.write("control", Control.START | Control.IRQ_ENABLE)
        device.wait(1.0)
        assert device.read("error_code") == code
        check_frame(session, 1, TASKS[1])


def test_a_checksum(session, device):
    """By the machine, whatever the link; a frame before and behind is as ever."""
    region = device.allocate(8192)
    data = bytes(range(256)) * 20
    device.put(region.address, data)
    check_frame(session, 0, TASKS[0])
    for size in (len(data), 4096, 5, 3, 0):
        assert Device.crc(device, Region(region.address, size)) == zlib.crc32(data[:size])
    check_frame(session, 1, TASKS[1])


def test_a_reset_in_the_middle_of_a_frame(session, device, program):
    """No result comes of it, nor of the one before."""
    for task in TASKS:
        check_frame(session, 0, task)
        session.start(MODEL.region(program, TASKS.index(task), 0), task)
        device.reset()
        with pytest.raises(DeadlineError, match="no interrupt within"):
            session.finish(SHORT)
        check_frame(session, 1, task)


def test_what_cannot_be_written(device):
    with pytest.raises(RegisterError):
        device.write("status", 1)


def test_a_second_session_moves_no_weight(session, device, program, monkeypatch):
    moved, put = [], device.put
    monkeypatch.setattr(device, "put", lambda address, data: (moved.append(len(data)), put(address, data)))
    check_frame(Session(device, program), 0, TASKS[0])
    assert len(moved) == 2  # input, and what the output must replace
