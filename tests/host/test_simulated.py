"""Sessions on the native simulation: a machine that copies, and the whole one."""

import subprocess
import sys

import numpy as np
import pytest

import patchloom
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import input_region
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.host.errors import DeadlineError, DeviceError, IdentityError
from patchloom.host.session import Session
from patchloom.hw import axi
from patchloom.hw.top import Top
from patchloom.hw.verilog import ResetRegister, digest, emit
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute
from tests.machine import MACHINE
from tests.sim.copier import Copier
from tests.sim.models import TASKS, Model

CONFIG = Config(fifo_beats=64)
BEATS = 100


def program(beats: int, config: Config = CONFIG) -> Program:
    tasks = (Task("other", (), (), (), 8, 8, 0), Task("copy", (), (), (), 8 * beats, 8 * beats, 0, ("first", "second")))
    return Program(config, "exact", tasks, bytes(range(200)))


# --- A machine that copies as many beats as `watchdog` says ---


def test_run():
    made = program(BEATS)
    with SimulatedDevice(CONFIG, top=Copier) as device, Session(device, made, watchdog=BEATS) as session:
        rng = np.random.default_rng(0)
        for _ in range(3):
            inputs = rng.integers(-(1 << 15), 1 << 15, 400).astype(np.int16)
            output, cycles, saturations = session.frame(inputs, "copy")
            np.testing.assert_array_equal(output, inputs)
            assert 100 < cycles < 250
            assert saturations == 100
        assert device.read("task") == 1
        image = device.read("program_base_lo") | device.read("program_base_hi") << 32
        assert device.get(image, 200) == made.image


def test_run_reports_errors_and_recovers():
    inputs = np.arange(400, dtype=np.int16)
    with SimulatedDevice(CONFIG, top=Copier) as device:
        session = Session(device, program(BEATS), watchdog=BEATS)
        session.frame(inputs, "copy")
        address = device.read("input_base_lo") | device.read("input_base_hi") << 32
        device.inject(address, 8, axi.Response.DECERR)
        with pytest.raises(DeviceError, match=r"READ_SLVERR at command 0 \(first\), detail 0x3") as caught:
            session.frame(inputs, "copy")
        assert caught.value.code is ErrorCode.READ_SLVERR
        device.clear_faults()
        np.testing.assert_array_equal(session.frame(inputs, "copy")[0], inputs)


def test_run_refuses():
    with SimulatedDevice(CONFIG, top=Copier) as device:
        with pytest.raises(ValueError, match="another Config"):
            Session(device, program(1, Config()))
        session = Session(device, program(1))
        with pytest.raises(ValueError, match="the input region must have 8 bytes, not 10"):
            session.frame(np.zeros(5, np.int16), "copy")
        with pytest.raises(InputError, match="task must be one of other, copy, not 'paint'"):
            session.frame(np.zeros(4, np.int16), "paint")


def test_deadline_in_simulated_time():
    inputs = np.arange(400, dtype=np.int16)
    with SimulatedDevice(CONFIG, top=Copier, latency=5000) as device:
        session = Session(device, program(BEATS), watchdog=BEATS)
        with pytest.raises(DeadlineError, match="no interrupt within 300 cycles; status"):
            session.frame(inputs, "copy", deadline=3e-6)
        np.testing.assert_array_equal(session.frame(inputs, "copy")[0], inputs)


# --- The whole machine ---


@pytest.fixture(scope="module")
def model():
    return Model(3)


@pytest.fixture(scope="module")
def compiled(model):
    return model.compiled(MACHINE, "w8a8")


def test_by_name(model, compiled):
    """As the front door gives it: tasks in turns, with the numbers and cycles of `patchloom.run`."""
    image = model.calibration["image"][:2]
    expected = {task: patchloom.run(compiled, image, task=task) for task in TASKS}
    with patchloom.Session("sim", compiled, latency=10) as session:
        for task in (*TASKS, *TASKS):
            result = session.run(image, task=task)
            for name, raw in expected[task].raw.items():
                np.testing.assert_array_equal(result.raw[name], raw)
                np.testing.assert_array_equal(result.outputs[name], expected[task].outputs[name])
            assert (result.saturations, result.clipped) == (expected[task].saturations, expected[task].clipped)
        device = session.device
    assert result.cycles == patchloom.run(compiled, image, task=TASKS[-1], engine="rtl", latency=10).cycles
    with pytest.raises(ValueError, match="the device is closed"):
        device.read("status")


def test_identity(compiled):
    """The registers tell the build, which is that of the Verilog."""
    with SimulatedDevice(MACHINE) as device, Session(device, compiled, build=device.digest) as session:
        assert session.identity.digest == device.digest == digest(emit(ResetRegister(Top(MACHINE)))) != 0
        assert session.identity.fingerprint == MACHINE.fingerprint
        with pytest.raises(IdentityError, match="the machine must be of build"):
            Session(device, compiled, build=device.digest ^ 1)
    with SimulatedDevice(CONFIG, top=Copier) as device:
        assert Session(device, program(1)).identity.digest == 0  # it has no such port


def test_errors_of_the_bus(model, compiled):
    """The next frame is as if nothing had been."""
    region, _ = input_region(compiled.task(TASKS[0]), {"image": model.calibration["image"][0]})
    with SimulatedDevice(MACHINE) as device, Session(device, compiled) as session:
        expected, _ = execute(compiled, TASKS[0], region)
        np.testing.assert_array_equal(session.frame(region, TASKS[0])[0], expected)
        device.inject(device.base, 1, axi.Response.SLVERR)
        with pytest.raises(DeviceError, match="READ_SLVERR at command"):
            session.frame(region, TASKS[0])
        device.clear_faults()
        np.testing.assert_array_equal(session.frame(region, TASKS[0])[0], expected)


def test_memory_that_does_not_answer(model, compiled):
    """The machine gives up, then its reset; once the memory answers again the next frame is as if nothing had been."""
    region, _ = input_region(compiled.task(TASKS[0]), {"image": model.calibration["image"][0]})
    with SimulatedDevice(MACHINE, latency=1_200_000) as device, Session(device, compiled, watchdog=2000) as session:
        with pytest.raises(DeviceError, match=r"WATCHDOG at command .*, detail 0x7d0"):
            session.frame(region, TASKS[0])
        with pytest.raises(DeadlineError, match=r"status <Status.OWED: 32>: the memory owes answers"):
            session.frame(region, TASKS[0])
        device.set_memory(latency=5)
        device.step(250_000)
        np.testing.assert_array_equal(session.frame(region, TASKS[0])[0], execute(compiled, TASKS[0], region)[0])


def test_names_and_machines_that_are_refused(compiled):
    with pytest.raises(
        InputError, match=r"must be a Device or one of sim, soc:BOARD, .*, pynq:BITFILE, .*, not 'fpga'"
    ):
        patchloom.Session("fpga", compiled)
    with SimulatedDevice(CONFIG, top=Copier) as device, pytest.raises(IdentityError):
        patchloom.Session(device, compiled)


class Counting(SimulatedDevice):
    """Of a simulation: bytes that a driver moves."""

    moved = 0

    def put(self, address, data):
        self.moved += len(data)
        super().put(address, data)


def test_a_thousand_frames(compiled, model):
    """Of random inputs and tasks, overlapped: every element is the interpreter's, and no switch moves a weight.

    The machine computes in 95 % of all cycles, or more: the next frame waits in it.
    """
    rng, given = np.random.default_rng(0), []

    def jobs():
        for _ in range(1000):
            task = compiled.tasks[rng.integers(len(compiled.tasks))]
            region, _ = input_region(task, {"image": rng.normal(0, 2, model.calibration["image"].shape[1:])})
            given.append((region, task.name))
            yield region, task.name

    with Counting(MACHINE, latency=5, jitter=9, stalls=0.1) as device, Session(device, compiled) as session:
        assert device.moved == len(compiled.image)
        begun, busy = device.cycles, 0
        for number, (output, cycles, saturations) in enumerate(session.jobs(jobs())):
            busy += cycles
            region, task = given[number]
            expected, expected_saturations = execute(compiled, task, region)
            np.testing.assert_array_equal(output, expected)
            assert saturations == expected_saturations
        assert (number, {task for _, task in given}) == (999, set(TASKS))
        print(f"busy in {busy / (device.cycles - begun):.1%} of {device.cycles - begun} cycles")
        assert busy >= 0.95 * (device.cycles - begun)
        frames = sum(compiled.task(task).input_bytes + compiled.task(task).output_bytes for _, task in given)
        assert device.moved == len(compiled.image) + frames


IMPORTS = """
import sys, time
begun = time.process_time()
import numpy
numpy_loaded = time.process_time()
import patchloom
patchloom.load, patchloom.Session
heavy = {name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])
seconds = numpy_loaded - begun, time.process_time() - numpy_loaded
print(*sorted(heavy), "| %.3f s of CPU for NumPy, %.3f beside" % seconds)
"""


def test_imports_numpy_alone():
    heavy = ["torch", "amaranth", "rich", "typer", "safetensors", "yaml", "pyosys", "cocotb", "hls4ml"]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *heavy], capture_output=True, text=True, check=True)
    found, _, seconds = done.stdout.partition("|")
    assert found.strip() == ""
    print(seconds)
