"""The driver's Etherbone packets on LiteEth's own gateware, receiver, bus master and sender, in migen's simulation."""

import numpy as np
from liteeth.common import eth_udp_user_description
from liteeth.frontend.etherbone import LiteEthEtherbone
from litex.soc.interconnect import stream
from migen import Module
from migen.sim import passive, run_simulation

from patchloom.boards.soc import ETHERBONE_WORDS
from patchloom.host.transports.etherbone import HEADER, MOST_WORDS, PORT, RECORD, Etherbone, reading, writing
from tests.host.etherbone import FakePackets
from tests.machine import MACHINE

BASE = 0x4000_0000
WORDS = 16  # of this board's buffer: a board's own would take half a minute


class Port:
    """Of LiteEth's UDP: packets to the board leave from `source`, the board's arrive at `sink`."""

    dw = 32

    def __init__(self):
        self.sink, self.source = (stream.Endpoint(eth_udp_user_description(32)) for _ in range(2))

    def get_port(self, *_, **__):
        return self


class Udp:
    def __init__(self):
        self.crossbar = Port()


class Board(Module):
    def __init__(self):
        self.udp = Udp()
        self.submodules.etherbone = LiteEthEtherbone(self.udp, PORT, buffer_depth=WORDS)


@passive
def memory(bus, words, log):
    """Of the board: a Wishbone slave that takes a cycle."""
    while True:
        yield
        if (yield bus.cyc) and (yield bus.stb) and not (yield bus.ack):
            address, writes = 4 * (yield bus.adr), (yield bus.we)
            log.append(("write" if writes else "read", address))
            if writes:
                words[address] = yield bus.dat_w
            yield bus.dat_r.eq(words.get(address, 0))
            yield bus.ack.eq(1)
            yield
            yield bus.ack.eq(0)


@passive
def listen(port, answers):
    packet = b""
    yield port.sink.ready.eq(1)
    while True:
        yield
        if (yield port.sink.valid):
            packet += (yield port.sink.data).to_bytes(4, "little")
            if (yield port.sink.last):
                assert (yield port.sink.length) == len(packet)
                assert (yield port.sink.dst_port) == PORT
                answers.append(packet)
                packet = b""


def send(port, packets):
    source = port.source
    for packet in packets:
        words = np.frombuffer(packet, "<u4").tolist()
        yield source.length.eq(len(packet))
        for left, word in zip(reversed(range(len(words))), words, strict=True):
            yield source.data.eq(word)
            yield source.valid.eq(1)
            yield source.last.eq(not left)
            yield source.last_be.eq(8 * (not left))
            yield
            while not (yield source.ready):
                yield
        yield source.valid.eq(0)
        for _ in range(9 * len(words) + 100):
            yield


def on_gateware(*packets):
    """What a board answers, its memory, and what it did there."""
    board, answers, words, log = Board(), [], {}, []
    port = board.udp.crossbar
    run_simulation(
        board, [send(port, packets), listen(port, answers), memory(board.etherbone.wishbone.bus, words, log)]
    )
    return answers, words, log


class Gateware(FakePackets):
    """The answers that LiteEth has given, for the driver to read."""

    def __init__(self, answers):
        super().__init__(MACHINE, 0)
        self.answers = answers

    def send(self, packet):
        self.sent.append(packet)


def test_words_written_and_read_back():
    """Also of the longest records: they and an address fill the buffer."""
    assert ETHERBONE_WORDS == MOST_WORDS + 1
    for count in (1, WORDS - 1):
        written = np.random.default_rng(count).integers(0, 1 << 32, count, np.uint32)
        bus = Etherbone(link := Gateware([]), (0, 0))
        link.answers, words, _ = on_gateware(writing(BASE, written), reading(7, BASE, count))
        assert words == {BASE + 4 * at: word for at, word in enumerate(written.tolist())}
        bus._numbers = iter([7])
        np.testing.assert_array_equal(bus._read(BASE, count), written)
        assert link.sent == [reading(7, BASE, count)]


def test_why_records_read_or_write():
    """Of one that does both LiteEth takes the address for the answer, here 8, for the first that it reads."""
    fields = (BASE, 5, 8, BASE + 16, BASE + 20)  # written to, the word, for the answer, read twice
    both = HEADER + RECORD.pack(0, 0xF, 1, 2) + b"".join(field.to_bytes(4, "big") for field in fields)
    _, _, log = on_gateware(both)
    assert log == [("write", BASE), ("read", 8), ("read", BASE + 16)]
