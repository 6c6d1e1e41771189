"""Machines mapped into the process: through PYNQ's classes with the RTL behind them, and through the files of UIO."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import MAGIC, REGISTERS
from patchloom.host.device import LONGEST_PAUSE, Region
from patchloom.host.errors import CapacityError, DeadlineError, LinkError, RegisterError
from patchloom.host.session import Session
from patchloom.host.transports.mapped import MappedDevice, uio_device
from tests.host.fake import FakeDevice
from tests.host.programs import ELEMENTS, copying

HERE = Path(__file__).parent
PYNQ = HERE.parents[1] / ".venv" / "pynq"
CONFIG = Config()
PROGRAM = copying(CONFIG, "copy")
NAMES = {register.offset: name for name, register in REGISTERS.items()}


# --- PYNQ ---


def test_the_home_of_pynq(tmp_path):
    """In a process of its own, with the NumPy that PYNQ works with."""
    assert PYNQ.is_dir(), "`make` installs tests/host/pynq.txt there"
    paths = os.pathsep.join([str(PYNQ), str(HERE.parents[1])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_homes.py")]
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), done.stdout + done.stderr


# --- Any mapping ---


class Words:
    def __init__(self, machine):
        self.machine = machine

    def read(self, offset):
        if self.machine.registers["status"] & 1 and self.machine.time >= self.machine.ends:
            self.machine.wait(0)
        return self.machine.read(NAMES[offset])

    def write(self, offset, value):
        assert type(value) is int
        self.machine.write(NAMES[offset], value)


class Piece:
    def __init__(self, machine, size):
        self.machine, self.region = machine, machine.allocate(size)

    def put(self, offset, data):
        self.machine.put(self.region.address + offset, data)

    def get(self, offset, size):
        return self.machine.get(self.region.address + offset, size)


@pytest.fixture
def machine():
    return FakeDevice(CONFIG, 2 * ELEMENTS)


@pytest.fixture
def device(machine):
    made = MappedDevice(Words(machine), lambda size: Piece(machine, size), sleep=machine.sleep)
    made.now = machine.now
    return made


def test_frames(device):
    session = Session(device, PROGRAM)
    given = [np.full(ELEMENTS, value, np.int16) for value in range(3)]
    for region, (output, *_) in zip(given, session.frames(given, "copy"), strict=True):
        np.testing.assert_array_equal(output, region)


def test_a_frame_that_takes_too_long(device, machine):
    machine.late = 2.0
    with pytest.raises(DeadlineError, match=r"no interrupt within 0\.5 s"):
        Session(device, PROGRAM).frame(np.zeros(ELEMENTS, np.int16), "copy", deadline=0.5)


def test_memory_that_was_not_allocated(device):
    region = device.allocate(100)
    device.put(region.address + 90, bytes(range(10)))
    assert device.get(region.address + 95, 5) == bytes(range(5, 10))
    for address, size in ((region.address - 1, 1), (region.address + 91, 10), (0, 4)):
        with pytest.raises(InputError, match=f"of a piece that was allocated, not {size} bytes at {address:#x}"):
            device.put(address, bytes(size))
    with pytest.raises(RegisterError, match="status cannot be written"):
        device.write("status", 1)


# --- UIO ---

PHYSICAL, SIZE = 0x7000_0000, 1 << 16


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path):
    """What Linux shows of a board: other UIO devices, ours, and memory; device files that are files."""
    for number, name in enumerate(("fan", "patchloom")):
        put(tmp_path / f"sys/class/uio/uio{number}/name", f"{name}\n")
        put(tmp_path / f"sys/class/uio/uio{number}/maps/map0/size", "0x1000\n")
        put(tmp_path / f"dev/uio{number}", "")
        (tmp_path / f"dev/uio{number}").write_bytes(bytes(4096))
    put(tmp_path / "sys/class/u-dma-buf/udmabuf0/phys_addr", f"{PHYSICAL:#010x}\n")
    put(tmp_path / "sys/class/u-dma-buf/udmabuf0/size", f"{SIZE}\n")
    (tmp_path / "dev/udmabuf0").write_bytes(bytes(SIZE))
    return tmp_path


def words(root):
    return np.fromfile(root / "dev/uio1", np.uint32)


def test_registers_and_memory_of_uio(root):
    with uio_device(root=root) as device:
        device.write("task", 3)
        assert words(root)[REGISTERS["task"].offset // 4] == 3
        stated = words(root)
        stated[REGISTERS["magic"].offset // 4] = MAGIC
        stated.tofile(root / "dev/uio1")
        assert device.read("magic") == MAGIC
        first, second = device.allocate(100), device.allocate(5000)
        assert first == Region(PHYSICAL, 100)
        assert second == Region(PHYSICAL + 4096, 5000)
        device.put(second.address + 4990, b"0123456789")
        assert (root / "dev/udmabuf0").read_bytes()[4096 + 4990 :][:10] == b"0123456789"
        assert device.get(second.address + 4995, 5) == b"56789"
        with pytest.raises(CapacityError, match="udmabuf0 has 53248 bytes left, not 60000"):
            device.allocate(60_000)
    assert (root / "dev/uio0").read_bytes() == bytes(4096), "another device's"


def test_an_interrupt_ends_a_wait(root):
    """A device file that is always ready stands for an interrupt at once."""
    with uio_device(root=root) as device:
        begun = device.now()
        device.sleep(30.0)
        assert device.now() - begun < 20


def test_an_interrupt_that_never_comes(root, monkeypatch):
    """The end of a frame is seen all the same."""
    looks = []

    def nothing(readers, writers, others, seconds):
        looks.append(seconds)
        if len(looks) == 3:
            stated = words(root)
            stated[REGISTERS["irq_status"].offset // 4] = 1
            stated.tofile(root / "dev/uio1")
        return [], [], []

    monkeypatch.setattr("select.select", nothing)
    with uio_device(root=root) as device:
        device.wait(60.0)
        assert len(looks) == 3
        assert max(looks) <= LONGEST_PAUSE


def test_what_is_missing(root):
    with pytest.raises(LinkError, match=r"no uio device is named vision; there are uio0, uio1"):
        uio_device("vision", root)
    (root / "dev/uio1").unlink()
    with pytest.raises(LinkError, match=r"uio1 must be a device of 4096 bytes to map, and is not"):
        uio_device(root=root)
    (root / "dev/uio1").write_bytes(bytes(4096))
    for file in ("phys_addr", "size"):
        (root / "sys/class/u-dma-buf/udmabuf0" / file).unlink()
    (root / "sys/class/u-dma-buf/udmabuf0").rmdir()
    with pytest.raises(LinkError, match=r"no u-dma-buf device is there: load its kernel module with a size$"):
        uio_device(root=root)
    with pytest.raises(LinkError, match="no u-dma-buf"):  # and the lock was given back
        uio_device(root=root)


def test_a_machine_that_another_process_has(root):
    code = (
        "from pathlib import Path; from patchloom.host.transports.mapped import uio_device;"
        f"device = uio_device(root=Path({str(root)!r})); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(LinkError, match=f"uio1 must be nobody else's: process {holder.pid} has it"):
            uio_device(root=root)
        holder.kill()
    uio_device(root=root).close()
