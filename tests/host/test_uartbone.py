"""The link to a SoC, on a bridge in Python: what is sent arrives, what is lost is missed."""

import os
import select
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from random import Random

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import MAGIC, REGISTERS
from patchloom.host.errors import CapacityError, DeadlineError, IdentityError, LinkError, NoAnswerError, RegisterError
from patchloom.host.session import Session
from patchloom.host.transports.bus import TRIES
from patchloom.host.transports.soc import SocDevice, SocMap
from patchloom.host.transports.tty import Tty
from patchloom.host.transports.uartbone import UartBone
from tests.host.bridge import CONTROLLER, MAP, REGISTERS_AT, SETUP, Bridge, FakeStream, check_faults
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
    assert stream.sent == 6 + 2400 + 3 * 3 * 6  # a silence's check, then three writes, each between two reads
    np.testing.assert_array_equal(bone.fetch(BASE + 400, 500), words[100:])
    assert bone.fetch(BASE, 0).size == 0
    with pytest.raises(InputError, match="multiple of 4, not 0x40000002"):
        bone.fetch(BASE + 2, 1)


def test_what_is_there_is_not_written(stream, bone):
    words = np.arange(600, dtype=np.uint32)
    bone.store(BASE, words)
    stream.bridge.stores.clear()
    words[300] = 7
    bone.store(BASE, words)
    assert stream.bridge.stores == list(range(BASE + 4 * 255, BASE + 4 * 510, 4)), "one burst"


def test_bursts_are_as_long_as_the_line_allows(stream, bone):
    """A line that loses a byte of every 500 carries half a burst."""
    sent, words = [0], np.arange(4000, dtype=np.uint32)

    def lose(data):
        sent[0] += len(data)
        return data[1:] if sent[0] % 500 < len(data) else data

    stream.spoil = lose
    bone.store(BASE, words)
    assert stream.machine.memory[:16000] == words.astype("<u4").tobytes()
    lines = []
    stream.spoil = lambda data: lines.append(len(data)) or data
    bone.store(BASE, words[::-1])
    assert lines[1] < 600 < max(lines) == 6 + 4 * 255 + 6, "as before, in the end"


def test_a_line_that_has_failed_is_read_more_often(stream, bone, monkeypatch):
    monkeypatch.setattr("patchloom.host.transports.bus.WARY", 3)
    lines = []
    stream.spoil = lambda data: lines.append(len(data)) or data
    stream.garble = once(FAULTS["lost"])
    for reads in (6, 4, 4, 2):  # at first the bridge is asked whether it is in step, and asked again
        lines.clear()
        bone.fetch(BASE, 1)
        assert len(lines) == reads


def test_a_word_that_never_reads_alike(stream, bone):
    """One that counts has every value; on a line that has failed nobody knows."""
    words = iter(range(1000))
    stream.garble = lambda data: data if data == MAGIC.to_bytes(4, "big") else next(words).to_bytes(4, "big")
    assert bone.read(BASE) == TRIES
    bone._wary = 1000
    with pytest.raises(LinkError, match="the word at 0x40000000 does not read twice alike"):
        bone.read(BASE)


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
    check_faults(stream, device, direction, lambda: once(FAULTS[fault]), SIZE)


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
    with pytest.raises(NoAnswerError, match=r"read of \d+ bytes at 0x40000000 was answered with \d+"):
        device.get(BASE, SIZE)
    assert stream.now() - begun < TRIES * 2
    stream.garble = lambda data: data.replace(b"\x11", b"\x12")
    with pytest.raises(LinkError, match=r"\d+ of \d+ words at 0x40000\w+ do not read as they were written"):
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


def test_an_image_that_is_there_is_not_uploaded(stream, device):
    """Neither by this process nor by another one; of one that has changed, a burst."""
    Session(device, PROGRAM)
    stream.bridge.stores.clear()
    Session(device, PROGRAM)
    session = Session(SocDevice.uart(MAP, stream), PROGRAM)
    assert stream.bridge.stores == []
    stream.machine.memory[5000] ^= 1
    Session(SocDevice.uart(MAP, stream), PROGRAM)
    assert len(stream.bridge.stores) == 255
    np.testing.assert_array_equal(session.frame(region(0), "copy")[0], region(0))


def astray(address, target):
    """A fault of the writes to an address: they go to another one."""
    old, new = (b"\x01" + b"%c" + (at // 4).to_bytes(4, "big") for at in (address, target))

    def spoil(data):
        return new % data[1] + data[6:] if data[:6] == old % data[1] else data

    return spoil


@pytest.mark.parametrize("what", ["input", "registers", "control", "irq_status"])
def test_words_that_went_elsewhere(stream, device, what):
    """Into the Program: it is missed where it should have gone, and the next result is of the Program as it was."""
    session = Session(device, PROGRAM)
    session.frame(region(0), "copy")
    image, names = device.read("program_base_lo"), stream.machine.registers
    first = REGISTERS["task"].offset
    addresses = {
        "input": names["input_base_lo"], "registers": REGISTERS_AT + first,
        "control": REGISTERS_AT + REGISTERS["control"].offset,
        "irq_status": REGISTERS_AT + REGISTERS["irq_status"].offset,
    }  # fmt: skip
    session.watchdog += 1  # a register that changes
    stream.spoil = once(astray(addresses[what], image + 64))
    if what == "irq_status":  # the frame has ended, but its output may be hit before it is read
        with pytest.raises(LinkError, match="the end of an interrupt is not what the machine has"):
            session.frame(region(1), "copy")
    elif what == "control":
        with pytest.raises(LinkError, match="the start of a frame is not what the machine has"):
            session.frame(region(1), "copy")
    else:
        np.testing.assert_array_equal(session.frame(region(1), "copy")[0], region(1))
    np.testing.assert_array_equal(session.frame(region(2), "copy")[0], region(2))
    assert device.get(image, len(PROGRAM.image)) == PROGRAM.image


def test_a_result_that_may_have_been_overwritten(stream, device):
    """While the first frame computes the second one's input goes somewhere: nobody knows what it has hit."""
    session, given = Session(device, PROGRAM), [region(seed) for seed in range(3)]
    assert len(list(session.frames(given, "copy"))) == 3
    second = session._allocated(1)[0].address
    stream.spoil = once(astray(second, second + 4096))
    with pytest.raises(LinkError, match="the link changed what it carried to the machine while a frame ran"):
        list(session.frames(given[::-1] + given, "copy"))
    for found, expected in zip(session.frames(given, "copy"), given, strict=True):
        np.testing.assert_array_equal(found[0], expected)


def test_deadline_in_the_links_time(stream, device):
    session = Session(device, PROGRAM)
    stream.machine.late = 5.0
    with pytest.raises(DeadlineError, match=r"no interrupt within 2 s; status <Status.BUSY: 1>"):
        session.frame(region(0), "copy", deadline=2)
    np.testing.assert_array_equal(session.finish(10.0)[0], region(0))


# --- A terminal ---


@contextmanager
def plugged(machine, path):
    """A pseudo-terminal of this path with a bridge at its other end, until it is pulled out."""
    ours, theirs = os.openpty()
    bridge, left = Bridge(machine), threading.Event()
    path.unlink(missing_ok=True)
    path.symlink_to(os.ttyname(theirs))

    def serve():
        while not left.is_set():
            machine.time += 0.01
            if select.select([ours], [], [], 0.01)[0]:
                for byte in os.read(ours, 4096):
                    os.write(ours, bridge.take(byte, 0.0))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield bridge
    finally:
        left.set()
        thread.join()
        os.close(theirs)
        os.close(ours)


@pytest.fixture
def terminal(tmp_path):
    machine = FakeDevice(CONFIG, FRAME)
    with plugged(machine, tmp_path / "tty"), closing(Tty(tmp_path / "tty", 3_000_000)) as stream:
        yield stream, machine


@pytest.fixture
def hasty(monkeypatch):
    """Nobody waits for long."""
    monkeypatch.setattr("patchloom.host.transports.tty.REOPENED", 0.05)
    monkeypatch.setattr("patchloom.host.transports.tty.DELAY", 0.05)


@pytest.mark.usefixtures("hasty")
def test_a_plug_that_is_pulled_out_and_put_back(tmp_path):
    machine, path = FakeDevice(CONFIG, FRAME), tmp_path / "tty"
    with plugged(machine, path):
        device = SocDevice.uart(MAP, Tty(path, 3_000_000))
        session = Session(device, PROGRAM)
        np.testing.assert_array_equal(session.frame(region(0), "copy")[0], region(0))
        session.start(region(1), "copy")
    with pytest.raises(LinkError, match=f"{path} was lost"):
        session.finish()
    for _ in range(2):
        with pytest.raises(LinkError, match=f"{path} was lost and did not come back within .* s; connect it and try"):
            session.frame(region(1), "copy")
    image = machine.registers["program_base_lo"] - BASE
    machine.memory[image : image + 100] = bytes(100)  # somebody else had the board meanwhile
    with plugged(machine, path):
        np.testing.assert_array_equal(session.frame(region(2), "copy")[0], region(2))
        assert machine.memory[image : image + len(PROGRAM.image)] == PROGRAM.image
    with plugged(machine, path):  # a cut between two calls
        np.testing.assert_array_equal(session.frame(region(3), "copy")[0], region(3))
    with plugged(FakeDevice(Config(lanes=8), FRAME), path), pytest.raises(IdentityError, match="another Config"):
        session.frame(region(2), "copy")  # another board
    with pytest.raises(LinkError, match=f"{path} was lost"):
        session.frame(region(2), "copy")
    device.close()
    with plugged(machine, path), pytest.raises(LinkError, match=f"{path} is closed"):
        session.frame(region(2), "copy")


@pytest.mark.usefixtures("hasty")
def test_a_plug_that_is_pulled_out_while_the_program_is_uploaded(tmp_path):
    """What has arrived is not moved again."""
    machine, path = FakeDevice(CONFIG, FRAME), tmp_path / "tty"
    with plugged(machine, path) as first:
        link = Tty(path, 3_000_000)
        device, send, left = SocDevice.uart(MAP, link), link.send, iter(range(60))

        def cut(data, seconds):
            if next(left, None) is None:
                raise link._gone("the plug")
            send(data, seconds)

        link.send = cut
        with pytest.raises(LinkError, match="was lost: the plug"):
            Session(device, PROGRAM)
        del link.send
    with plugged(machine, path) as second:
        session = Session(device, PROGRAM)
        assert not set(first.stores) & set(second.stores)
        assert first.stores
        assert second.stores
        np.testing.assert_array_equal(session.frame(region(2), "copy")[0], region(2))
    device.close()


def test_terminal(terminal):
    stream, machine = terminal
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
