"""The driver in C that every project holds, compiled as users compile it, on the RTL."""

import ctypes
import subprocess
import zlib

import numpy as np
import pytest

from patchloom.boards import regmap
from patchloom.compiler.machine.registers import REGISTERS, VERSION, ErrorCode
from patchloom.hw import axi
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute
from tests.machine import MACHINE
from tests.sim.models import Model

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-O1")
OK, RUNNING, NO_MACHINE, OTHER_VERSION, OTHER_CONFIG, OTHER_BUILD, LATE, FAILED, STALE = range(9)
BASE = 0x9000_0000  # of the registers
LOOKS = 1_000_000
SHIM = """
#include <stdint.h>
extern uint32_t (*bus_read)(uintptr_t);
extern void (*bus_write)(uintptr_t, uint32_t);
extern uint32_t REGISTERS, IMAGE_BYTES, INPUT_BYTES, OUTPUT_BYTES;
extern uint64_t IMAGE, INPUT, OUTPUT;
#define REGISTERS REGISTERS
#define LOOKS 1000000u
#define PATCHLOOM_READ(address) bus_read(address)
#define PATCHLOOM_WRITE(address, value) bus_write(address, value)
"""
POINTERS = """
uint32_t (*bus_read)(uintptr_t);
void (*bus_write)(uintptr_t, uint32_t);
uint32_t REGISTERS, IMAGE_BYTES, INPUT_BYTES, OUTPUT_BYTES;
uint64_t IMAGE, INPUT, OUTPUT;
"""


class Machine(ctypes.Structure):
    _fields_ = (
        ("registers", ctypes.c_size_t), ("program", ctypes.c_uint64), ("program_bytes", ctypes.c_uint32),
        ("watchdog", ctypes.c_uint32),
    )  # fmt: skip


class Frame(ctypes.Structure):
    _fields_ = (
        ("input", ctypes.c_uint64), ("output", ctypes.c_uint64), ("input_bytes", ctypes.c_uint32),
        ("output_bytes", ctypes.c_uint32), ("task", ctypes.c_uint8), ("number", ctypes.c_uint32),
    )  # fmt: skip


class Failure(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint32), ("detail", ctypes.c_uint32), ("command", ctypes.c_uint32))


READ = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_size_t)
WRITE = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_uint32)


def write_files(folder, fingerprint, digest):
    for name, text in regmap.for_host(regmap.known(fingerprint, digest)).items():
        (folder / name).write_text(text)


def compiled(folder, fingerprint, digest):
    """The driver and its example, their bus ours to give."""
    write_files(folder, fingerprint, digest)
    (folder / "shim.h").write_text(SHIM)
    (folder / "pointers.c").write_text(POINTERS)
    files = ("patchloom.c", "example.c", "pointers.c")
    options = ("-std=c99", *STRICT, "-include", "shim.h", "-DEXAMPLE_ONLY", "-shared", "-fPIC", "-o", "driver.so")
    subprocess.run(["gcc", *options, *files], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "driver.so"))
    library.patchloom_cycles.restype = ctypes.c_uint64
    library.patchloom_why.restype = Failure
    return library


def pointed(library, read, write):
    callbacks = READ(read), WRITE(write)
    ctypes.c_void_p.in_dll(library, "bus_read").value = ctypes.cast(callbacks[0], ctypes.c_void_p).value
    ctypes.c_void_p.in_dll(library, "bus_write").value = ctypes.cast(callbacks[1], ctypes.c_void_p).value
    return callbacks  # as long as they are kept, they can be called


@pytest.mark.parametrize("compiler", [("gcc", "-std=c99"), ("g++", "-x", "c++", "-std=c++11")], ids=["C", "C++"])
def test_it_compiles_without_a_system(tmp_path, compiler):
    write_files(tmp_path, 1, 2)
    for file in ("patchloom.c", "example.c"):
        done = subprocess.run(
            [*compiler, *STRICT, "-ffreestanding", "-c", file, "-o", "made.o"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def model():
    return Model(3)


@pytest.fixture(scope="module")
def program(model):
    return model.compiled(MACHINE, "w8a8")


class Bench:
    """The driver on the RTL: a Program in its memory, and regions for its first task's input and output."""

    def __init__(self, folder, device, program):
        self.device, self.program = device, program
        self.library = compiled(folder, program.config.fingerprint, device.digest)
        self.broken: dict[str, int] = {}
        self.callbacks = pointed(self.library, self.read, self.write)
        task = program.tasks[0]
        self.sizes = len(program.image), task.input_bytes, max(task.output_bytes for task in program.tasks)
        self.image, self.input, self.output = (device.allocate(size).address for size in self.sizes)
        device.put(self.image, program.image)
        self.machine = Machine(BASE, self.image, len(program.image), 1 << 20)

    def read(self, address):
        name = next(name for name, register in REGISTERS.items() if register.offset == address - BASE)
        return self.broken.get(name, self.device.read_register(address - BASE))

    def write(self, address, value):
        self.device.write_register(address - BASE, value)

    def run(self, task, region, looks=LOOKS):
        self.device.put(self.input, region.astype("<i2").tobytes())
        self.device.put(self.output, bytes(self.program.tasks[task].output_bytes))  # not all of it is stored
        frame = Frame(self.input, self.output, *self.sizes[1:], task)
        return self.library.patchloom_run(ctypes.byref(self.machine), ctypes.byref(frame), looks)

    def result(self, task):
        return np.frombuffer(self.device.get(self.output, self.program.tasks[task].output_bytes), "<i2")


@pytest.fixture
def bench(tmp_path, program):
    with SimulatedDevice(MACHINE, latency=5) as device:
        yield Bench(tmp_path, device, program)


def test_frames_of_both_tasks(bench, model, program):
    assert bench.library.patchloom_identify(ctypes.byref(bench.machine)) == OK
    for number, task in ((0, "first"), (1, "second"), (0, "first")):
        region = model.region(program, number, number)
        expected, saturations = execute(program, task, region)
        assert bench.run(number, region) == OK
        np.testing.assert_array_equal(bench.result(number), expected)
        assert bench.library.patchloom_saturations(ctypes.byref(bench.machine)) == saturations
        assert bench.library.patchloom_cycles(ctypes.byref(bench.machine)) == bench.device.read("cycles_lo") > 1000


def test_the_example(bench, model, program):
    region = model.region(program, 0, 0)
    bench.device.put(bench.input, region.astype("<i2").tobytes())
    for name, value in (("IMAGE", bench.image), ("INPUT", bench.input), ("OUTPUT", bench.output)):
        ctypes.c_uint64.in_dll(bench.library, name).value = value
    sizes = zip(("IMAGE_BYTES", "INPUT_BYTES", "OUTPUT_BYTES"), bench.sizes, strict=True)
    for name, value in (("REGISTERS", BASE), *sizes):
        ctypes.c_uint32.in_dll(bench.library, name).value = value
    assert bench.library.example_tasks(2) == -1
    np.testing.assert_array_equal(bench.result(1), execute(program, "second", region)[0])
    assert bench.library.example_tasks(3) == 2, "there are two"


@pytest.mark.parametrize(("register", "value", "result"), [
    ("magic", 0, NO_MACHINE), ("version", VERSION + (1 << 16), OTHER_VERSION),
    ("version", VERSION - (1 << 16) + 9, OTHER_VERSION), ("fingerprint", 1, OTHER_CONFIG), ("digest_3", 1, OTHER_BUILD),
])  # fmt: skip
def test_other_machines(bench, register, value, result):
    bench.broken[register] = value
    assert bench.library.patchloom_identify(ctypes.byref(bench.machine)) == result


def test_a_machine_that_fails_runs_again(bench, model, program):
    region = model.region(program, 0, 0)
    bench.device.inject(bench.image, 8, axi.Response.DECERR)
    assert bench.run(0, region) == FAILED
    assert bench.library.patchloom_why(ctypes.byref(bench.machine)).code == ErrorCode.READ_DECERR
    bench.device.clear_faults()
    assert bench.run(0, region) == OK
    np.testing.assert_array_equal(bench.result(0), execute(program, "first", region)[0])


def test_a_frame_that_is_late_and_one_that_is_not_ours(bench, model, program):
    region = model.region(program, 0, 0)
    assert bench.run(0, region, 3) == LATE
    for register in ("output_base_lo", "input_bytes", "watchdog", "epoch", "frames"):
        bench.broken[register] = 4096
        assert bench.run(0, region, 10_000 if register != "frames" else LOOKS) == STALE
        bench.broken.clear()
        assert bench.run(0, region) == OK


def test_checksum(bench, program):
    found = ctypes.c_uint32()
    assert bench.library.patchloom_checksum(ctypes.byref(bench.machine), LOOKS, ctypes.byref(found)) == OK
    assert found.value == zlib.crc32(program.image)
    bench.device.inject(bench.image, 8, axi.Response.DECERR)
    assert bench.library.patchloom_checksum(ctypes.byref(bench.machine), LOOKS, ctypes.byref(found)) == FAILED
