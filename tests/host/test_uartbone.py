"""The link to a SoC, on a bridge in Python: what is sent arrives, what is lost is missed."""

import os
import subprocess
import sys
import threading
from random import Random

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.registers import MAGIC, REGISTERS
from patchloom.host.errors import CapacityError, DeadlineError, LinkError, NoAnswerError, RegisterError
from patchloom.host.session import Session
from patchloom.host.transports.bus import TRIES
from patchloom.host.transports.soc import SocDevice, SocMap
from patchloom.host.transports.tty import Tty
from patchloom.host.transports.uartbone import UartBone
from tests.host.bridge import CONTROLLER, MAP, REGISTERS_AT, SETUP, Bridge, FakeStream
from tests.host.fake import BASE, FakeDevice
from tests.host.programs import ELEMENTS, copying

CONFIG = Config()
PROGRAM = copying(CONFIG, "copy")
FRAME = 2 * ELEMENTS  # bytes
SIZE = 3000  # bytes: three bursts, the last one short
WITNESS = (REGISTERS_AT, MAGIC)


@pytest.fixture
def stream():
    return FakeStream(CONFIG, FRAME)


@pytest.fixture
def bone(stream):
    return UartBone(stream, WITNESS)


@pytest.fixture
def device(stream):
    return SocDevice.uart(MAP, stream)


def once(change):
    """A fault of the first piece that it changes."""
    left = [change]

    def spoil(data):
        changed = left[0](data) if left else data
        if changed != data:
            left.clear()
        return changed

    return spoil


def spoiled(random, share):
    """Of the bytes, some are lost, some doubled, some others."""

    def spoil(data):
        fates = (
            random.choice(((), (b, b), (b ^ 1 << random.randrange(8),))) if random.random() < share else (b,)
            for b in data
        )
        return bytes(byte for fate in fates for byte in fate)

    return spoil


# --- The protocol ---


def test_bytes_on_the_line(stream, bone):
    lines = []
    stream.spoil = lambda data: lines.append(data.hex(" ")) or data
    bone.write(BASE + 8, 0x1122_3344)
    assert lines == ["02 01 24 00 00 00", "01 01 10 00 00 02 11 22 33 44 02 01 24 00 00 00"]
    assert stream.machine.memory[8:12].hex() == "44332211"
    assert bone.read(BASE + 8) == 0x1122_3344
    assert lines[2:] == ["02 01 10 00 00 02"] * 2
    assert stream.now() > 0.1  # the silence before the first access


def test_bursts(stream, bone):
    words = np.random.default_rng(0).integers(0, 1 << 32, 600, np.uint32)
    bone.store(BASE, words)
    assert stream.machine.memory[:2400] == words.astype("<u4").tobytes()
    assert stream.sent == 12 + 2400 + 3 * 2 * 6 - 6  # a silence's check, then three writes and their reads
    np.testing.assert_array_equal(bone.fetch(BASE + 400, 500), words[100:])
    assert bone.fetch(BASE, 0).size == 0
    with pytest.raises(InputError, match="multiple of 4, not 0x40000002"):
        bone.fetch(BASE + 2, 1)


def test_slow_lines_have_short_bursts(stream):
    """A burst that takes 0.1 s is given up."""
    stream.rate = 11520
    bone = UartBone(stream, WITNESS)
    words = np.arange(600, dtype=np.uint32)
    bone.store(BASE, words)
    assert bone.words == 144
    np.testing.assert_array_equal(bone.fetch(BASE, 600), words)


FAULTS = {
    "lost": lambda data: data[:-4] + data[-3:],
    "first lost": lambda data: data[1:],
    "cut": lambda data: data[: len(data) // 2],
    "all lost": lambda data: b"",
    "doubled": lambda data: data[:9] + data[8:],
    "flipped": lambda data: data[:9] + bytes([data[9] ^ 4]) + data[10:] if len(data) > 9 else data,
}


@pytest.mark.parametrize("direction", ["spoil", "garble"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_put_right(stream, device, fault, direction):
    data = Random(0).randbytes(SIZE)
    setattr(stream, direction, once(FAULTS[fault]))
    device.put(BASE, data)
    assert stream.machine.memory[:SIZE] == data
    setattr(stream, direction, once(FAULTS[fault]))
    assert device.get(BASE, SIZE) == data
    setattr(stream, direction, once(FAULTS[fault]))
    assert device.read("magic") == MAGIC


def test_a_register_is_written_once(stream, device):
    """A START that was lost, or whose confirmation was, is not repeated."""
    writes = []
    stream.machine.write = lambda *access: writes.append(access)
    device.write("control", 1)
    for fault, done in (("first lost", 0), ("cut", 0), ("lost", 1)):
        device.read("status")  # in step
        writes.clear()
        stream.spoil = once(FAULTS[fault])
        with pytest.raises(NoAnswerError, match="read of 4 bytes at 0x90000000 was answered with 0"):
            device.write("control", 1)
        assert writes == [("control", 1)] * done
    assert device.read("magic") == MAGIC


def test_what_never_works_ends(stream, device):
    begun = stream.now()
    stream.garble = lambda data: data[:-1] if len(data) > 4 else data
    with pytest.raises(NoAnswerError, match="read of 1020 bytes at 0x40000000 was answered with 1019"):
        device.get(BASE, SIZE)
    assert stream.now() - begun < TRIES * 2
    stream.garble = lambda data: data.replace(b"\x11", b"\x12") if len(data) > 4 else data
    with pytest.raises(LinkError, match=r"20 of 255 words at 0x40000000 do not read as they were written"):
        device.put(BASE, bytes(940) + b"\x11\x00\x00\x00" * 20 + bytes(60))
    stream.gone = True
    with pytest.raises(LinkError, match="the line was cut"):
        device.read("status")


def test_not_a_machine(stream):
    """A SoC without one, and a line on which somebody else talks."""
    stream.machine.registers["magic"] = 7
    with pytest.raises(LinkError, match="word at 0x90000000 must be 0x4d4f4c50, not 0x7"):
        SocDevice.uart(MAP, stream)
    stream.garble = lambda data: b"login: \r\n"
    with pytest.raises(LinkError, match="not 0x6c6f6769"):
        SocDevice.uart(MAP, stream)


def test_answers_too_many(stream, device):
    """What comes unasked for is not taken for an answer."""
    stream.machine.memory[:4] = b"good"
    stream.answer += b"evil"
    assert device.get(BASE, 4) == b"good"


# --- The device ---


def test_frames_follow_one_another(stream, device):
    """The machine works 95 % of the time: what surrounds a frame is a few bursts, and its end is looked for in time."""
    session = Session(device, PROGRAM)
    stream.machine.late = 0.1
    frames = session.frames([np.arange(ELEMENTS, dtype=np.int16)] * 11, "copy")
    next(frames)  # only now is it known how long one takes
    begun = device.now()
    assert len(list(frames)) == 10
    assert device.now() - begun < 10 * stream.machine.late / 0.95


def test_registers_together(stream, device):
    session = Session(device, PROGRAM)
    session.frame(np.arange(ELEMENTS, dtype=np.int16), "copy")
    assert device.read_all() == {name: device.read(name) for name in REGISTERS}
    stream.machine.registers["saturations"] = 0
    device.write_all({"watchdog": 7, "task": 3, "input_base_hi": 5})
    found = device.read_all()
    assert (found["watchdog"], found["task"], found["input_base_hi"]) == (7, 3, 5)
    assert found["input_base_lo"] == device.read("input_base_lo") != 0, "between those that were written"


def test_memory_is_set_up_once(stream, device):
    assert stream.bridge.controller == {CONTROLLER: 1, CONTROLLER + 4: 7}
    stream.bridge.controller[CONTROLLER + 4] = 8  # would become 7
    SocDevice.uart(MAP, stream)
    assert stream.bridge.controller[CONTROLLER + 4] == 8


def test_setup_waits(stream):
    times = {}
    store = stream.bridge.store
    stream.bridge.store = lambda address, value: times.setdefault(value, stream.now()) and store(address, value)
    SocDevice.uart(MAP, stream)
    assert times[7] - times[14] > SETUP[0].cycles / MAP.clock_hz


def test_odd_sizes(stream, device):
    stream.machine.memory[:12] = b"abcdefghijkl"
    device.put(BASE, b"ABCDE")
    assert stream.machine.memory[:12] == b"ABCDEfghijkl"
    assert device.get(BASE, 7) == b"ABCDEfg"
    assert device.get(BASE, 0) == b""


def test_device_refuses(device):
    first, second = device.allocate(100), device.allocate(4)
    assert (first.address, second.address) == (BASE, BASE + 4096)
    with pytest.raises(CapacityError, match="57344 bytes left, not 57345"):
        device.allocate(57345)
    with pytest.raises(RegisterError, match="register magic cannot be written"):
        device.write("magic", 1)
    for address, size in ((BASE - 4, 8), (BASE + (1 << 16) - 4, 8)):
        with pytest.raises(InputError, match="memory must be of the 65536 bytes from 0x40000000 on, not 8 bytes"):
            device.put(address, bytes(size))
        with pytest.raises(InputError, match="memory must"):
            device.get(address, size)


def test_map_as_json(tmp_path):
    path = tmp_path / "soc.json"
    MAP.save(path)
    assert SocMap.load(path) == MAP
    path.write_text('{"board": "x", "memory": {}}')
    with pytest.raises(InputError, match=r"soc.json must be the map of a SoC as its build wrote it, and is not"):
        SocMap.load(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        SocMap.load(tmp_path / "none")


# --- Sessions ---


def region(seed):
    return np.frombuffer(Random(100 + seed).randbytes(FRAME), np.int16)


def test_session(stream, device):
    session = Session(device, PROGRAM)
    stores = len(stream.bridge.stores)
    for seed in range(3):
        output, cycles, saturations = session.frame(region(seed), "copy")
        np.testing.assert_array_equal(output, region(seed))
        assert (cycles, saturations) == (3 << 32 | 77, 3)
    assert len(stream.bridge.stores) - stores == 3 * 2 * FRAME // 4  # input and poison; the image stays


def test_deadline_in_the_links_time(stream, device):
    session = Session(device, PROGRAM)
    stream.machine.late = 5.0
    with pytest.raises(DeadlineError, match=r"no interrupt within 2 s; status <Status.BUSY: 1>"):
        session.frame(region(0), "copy", deadline=2)
    np.testing.assert_array_equal(session.finish(10.0)[0], region(0))


def test_session_on_a_bad_line(stream, device):
    """No result is wrong, whatever the line does to bytes; a frame that fails says so, and another one works."""
    session, failed = Session(device, PROGRAM), 0
    stream.spoil, stream.garble = spoiled(Random(1), 5e-4), spoiled(Random(2), 5e-4)
    for seed in range(60):
        try:
            output, _, _ = session.frame(region(seed), "copy")
        except Error:
            failed += 1
        else:
            np.testing.assert_array_equal(output, region(seed))
    assert 0 < failed < 10


# --- A terminal ---


@pytest.fixture
def terminal():
    """A pseudo-terminal with a bridge at its other end."""
    ours, theirs = os.openpty()
    machine = FakeDevice(CONFIG, FRAME)
    bridge = Bridge(machine)

    def serve():
        try:
            while data := os.read(ours, 4096):
                for byte in data:
                    os.write(ours, bridge.take(byte, 0.0))
        except OSError:  # the other end was closed
            pass

    thread = threading.Thread(target=serve)
    stream = Tty(os.ttyname(theirs), 3_000_000)
    os.close(theirs)
    thread.start()
    yield stream, machine, ours
    stream.close()
    thread.join()
    os.close(ours)


def test_terminal(terminal):
    stream, machine, _ = terminal
    assert stream.rate == 300_000
    data = bytes(range(256)) * 8  # terminals make something of some
    with SocDevice.uart(MAP, stream) as device:
        machine.memory[4096:6144] = data
        assert device.get(BASE + 4096, 2048) == data
        device.put(BASE, data)
        assert machine.memory[:2048] == data
    with pytest.raises(LinkError, match="is closed"):
        device.read("magic")


def test_terminal_deadlines():
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)
    stream = Tty(path, 115_200)
    assert stream.receive(3, 0.01) == b""
    os.write(ours, b"ab")
    assert stream.receive(3, 0.01) == b"ab"
    with pytest.raises(LinkError, match=rf"{path} took \d+ of 1000000 bytes within 0.05 s"):
        stream.send(bytes(1_000_000), 0.05)
    os.close(theirs)
    os.close(ours)
    with pytest.raises(LinkError, match=f"{path} was"):
        stream.receive(1, 1)


def test_a_terminal_that_another_process_uses():
    """Whoever held it when it was killed holds it no more."""
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)
    code = f"from patchloom.host.transports.tty import Tty; Tty({path!r}, 115_200); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(LinkError, match=f"{path} must be .* that nobody else uses: process {holder.pid} does"):
            Tty(path, 115_200)
        holder.kill()
    Tty(path, 115_200).close()
    os.close(theirs)
    os.close(ours)


def test_no_terminal(tmp_path):
    with pytest.raises(InputError, match=r"baud must be one of 9600, .*3000000.*, not 12345"):
        Tty("/dev/null", 12345)
    with pytest.raises(LinkError, match="must be a serial port to open, and is not: No such file"):
        Tty(tmp_path / "tty", 115_200)
    with pytest.raises(LinkError, match="must be a serial port at 115200 baud, and is not: Inappropriate ioctl"):
        Tty("/dev/null", 115_200)
