"""Etherbone against LiteX's own packet code: what is sent arrives, whatever the network makes of packets."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest

import patchloom
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.registers import MAGIC
from patchloom.host.errors import LinkError, NoAnswerError
from patchloom.host.transports.bus import TRIES
from patchloom.host.transports.etherbone import MOST_WORDS, PATIENCE, reading, writing
from patchloom.host.transports.soc import SocDevice
from patchloom.host.transports.udp import Udp
from tests.host.bridge import MAP, check_faults
from tests.host.etherbone import HOST, FakePackets, decoded, return_address
from tests.host.fake import BASE
from tests.host.programs import ELEMENTS, copying

CONFIG = Config()
PROGRAM = copying(CONFIG, "copy")
FRAME = 2 * ELEMENTS  # bytes
SIZE = 3000  # bytes: six packets, the last one short


@pytest.fixture
def packets():
    return FakePackets(CONFIG, FRAME)


@pytest.fixture
def device(packets):
    return SocDevice.etherbone(MAP, packets)


# --- The protocol ---


def test_packets_as_litex_reads_them():
    written = writing(0x4000_0008, np.array([0x1122_3344, 5], np.uint32))
    assert written.hex(" ", 4) == "4e6f1044 00000000 000f0200 40000008 11223344 00000005"
    (record,) = decoded(written).records
    assert (record.byte_enable, record.writes.base_addr) == (0xF, 0x4000_0008)
    assert (record.writes.get_datas(), record.reads) == ([0x1122_3344, 5], None)
    read = decoded(reading(7, 0x9000_0000, 3))
    assert (read.magic, read.version, read.addr_size, read.port_size) == (0x4E6F, 1, 4, 4)
    assert (read.nr, read.pr, read.pf) == (0, 0, 0)
    (record,) = read.records
    assert (return_address(record), record.reads.get_addrs()) == (7, [0x9000_0000, 0x9000_0004, 0x9000_0008])
    assert record.writes is None


def test_memory_and_registers(packets, device):
    data = Random(0).randbytes(SIZE)
    device.put(BASE, data)
    assert packets.machine.memory[:SIZE] == data
    assert device.get(BASE, SIZE) == data
    assert device.read("magic") == MAGIC
    assert max(map(len, packets.sent)) == 16 + 4 * MOST_WORDS < 1472, "a packet is an Ethernet frame"


def first(change):
    """A fault of the first packet."""
    left = [change]
    return lambda packet: left.pop()(packet) if left else [packet]


def flipped(at):
    return lambda packet: [packet[:at] + bytes([packet[at] ^ 4]) + packet[at + 1 :]]


FAULTS = {
    "lost": lambda packet: [],
    "doubled": lambda packet: [packet, packet],
    "cut": lambda packet: [packet[:-4]],
    "longer": lambda packet: [packet + bytes(4)],
    "magic": flipped(0),
    "count": flipped(11),
    "number or address": flipped(14),
    "word": flipped(17),
}


@pytest.mark.parametrize("direction", ["spoil", "garble"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_put_right(packets, device, fault, direction):
    check_faults(packets, device, direction, lambda: first(FAULTS[fault]), SIZE)


def test_an_answer_that_is_late(packets, device):
    """It is nobody's: not even of the next read of the same word, which has another value by then."""
    kept = []
    packets.garble = lambda answer: kept.append(answer) or []
    packets.machine.memory[:4] = b"past"
    with pytest.raises(NoAnswerError, match="the read of 4 bytes at 0x40000000 was not answered"):
        device.get(BASE, 4)
    packets.garble = lambda answer: [*kept, answer, answer]
    packets.machine.memory[:4] = b"now."
    assert device.get(BASE, 4) == b"now."
    assert device.read("magic") == MAGIC


def test_a_register_is_written_once(packets, device):
    writes = []
    packets.machine.write = lambda *access: writes.append(access)
    for fault, done in ((lambda packet: [packet], 1), (FAULTS["lost"], 0), (FAULTS["cut"], 0)):
        writes.clear()
        packets.spoil = first(fault)
        device.write("control", 1)  # that the board is there says nothing about the write
        assert writes == [("control", 1)] * done
    packets.garble = lambda answer: []
    with pytest.raises(NoAnswerError):
        device.write("control", 1)
    assert writes == [("control", 1)]


def test_what_never_answers_ends(packets, device):
    packets.spoil = lambda packet: []
    for _ in range(3):
        begun = packets.now()
        with pytest.raises(NoAnswerError, match=r"the read of \d+ bytes at 0x40000000 was not answered"):
            device.get(BASE, SIZE)
        assert packets.now() - begun < TRIES * 8 * PATIENCE + 0.1
    packets.spoil = lambda packet: [packet]
    assert device.read("magic") == MAGIC
    packets.gone = True
    with pytest.raises(LinkError, match="the network is down"):
        device.read("magic")


# --- A socket ---


def test_a_board_that_another_process_uses(tmp_path, monkeypatch):
    code = f"from patchloom.host.transports.udp import Udp; Udp({HOST!r}, 40123); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(LinkError, match=f"the machine must be nobody else's: process {holder.pid} has it"):
            Udp(HOST, 40123)
        Udp("127.0.0.3", 40123).close()  # another board
        holder.kill()
    for _ in range(2):
        Udp(HOST, 40123).close()


def test_nobody_there(tmp_path):
    link = Udp(HOST, 40124)
    with pytest.raises(NoAnswerError, match="was not answered"):
        SocDevice.etherbone(MAP, link, patience=0.001)
    link.close()
    for access in (lambda: link.send(b""), lambda: link.receive(0.1)):
        with pytest.raises(LinkError, match=f"{HOST}:40124 cannot be"):
            access()
    with pytest.raises(LinkError, match="must be the name or the address of a host"):
        Udp("no host", 1234)


@pytest.mark.parametrize("name", ["etherbone:", "etherbone::7", "etherbone:board:x"])
def test_names(name, tmp_path):
    MAP.save(tmp_path / "soc.json")
    (tmp_path / "manifest.json").write_text('{"digest": "0"}')
    with pytest.raises(InputError, match="device must be etherbone:HOST or etherbone:HOST:PORT"):
        patchloom.Session(name, PROGRAM, project=tmp_path)
    with pytest.raises(InputError, match=r"device '.*' needs the project that `patchloom build` wrote"):
        patchloom.Session(name, PROGRAM)
