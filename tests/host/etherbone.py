"""The board's side of Etherbone, by LiteX's own packet code: for a machine of `fake`, and for a simulated SoC."""

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from litex.tools.remote.etherbone import EtherbonePacket, EtherboneRecord, EtherboneWrites, etherbone_magic

from patchloom.compiler.machine.config import Config
from patchloom.host.transports.stream import Datagrams
from patchloom.sim.soc import SLICE, SimulatedSoc
from tests.host.bridge import FakeLink

HOST = "127.0.0.2"  # another computer, for all that a socket can tell


def decoded(packet: bytes) -> EtherbonePacket:
    made = EtherbonePacket(addr_width=32, init=bytes(packet))
    made.decode()
    return made


def return_address(record: EtherboneRecord) -> int:
    """Of the answer; LiteX's decoder forgets it."""
    return int.from_bytes(record.reads.bytes[:4], "big")


def answered(packet: bytes, fetch: Callable[[list[int]], Sequence[int]], store: Callable[[int, list[int]], None]):
    """What LiteEth sends back, if anything. Like LiteEth it looks at nothing but the magic and the counts."""
    try:
        asked = decoded(packet)
    except (struct.error, IndexError, AssertionError):
        return b""
    if asked.magic != etherbone_magic or len(asked.records) != 1:
        return b""
    (record,) = asked.records
    if record.wcount:
        store(record.writes.base_addr, record.writes.get_datas())
    if not record.rcount:
        return b""
    words = list(map(int, fetch(record.reads.get_addrs())))
    made, reply = EtherboneRecord(), EtherbonePacket()
    made.writes = EtherboneWrites(base_addr=return_address(record), datas=words)
    reply.records = [made]
    reply.encode()
    return bytes(reply.bytes)


class FakePackets(FakeLink, Datagrams):
    """A network to a board with a machine of `fake`, in simulated time.

    `spoil(packet)` gives the packets that become of one that is sent, and `garble(packet)` of one that is answered.
    """

    cut = "the network is down"

    def __init__(self, config: Config, size: int) -> None:
        super().__init__(config, size)
        self.sent: list[bytes] = []
        self.spoil = self.garble = lambda packet: [packet]
        self.answers: list[bytes] = []

    def send(self, packet):
        self.check()
        self.sent.append(packet)
        for taken in self.spoil(packet):
            self.machine.time += 1e-5
            answer = answered(taken, self._fetch, self._store)
            self.answers += self.garble(answer) if answer else []

    def _fetch(self, addresses):
        return [self.bridge.load(address) for address in addresses]

    def _store(self, address, words):
        for at, word in enumerate(words):
            self.bridge.store(address + 4 * at, word)

    def receive(self, seconds):
        self.check()
        if self.answers:
            return self.answers.pop(0)
        self.machine.time += seconds
        return b""


# --- A simulated SoC ---


@contextmanager
def served(soc: SimulatedSoc) -> Iterator[tuple[str, int]]:
    """A host and a port where a simulated SoC answers. Its time goes on, in a thread, until it is left."""
    left = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        thread = threading.Thread(target=_serve, args=(soc, server, left), daemon=True)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            left.set()
            thread.join()


def _serve(soc: SimulatedSoc, server: socket.socket, left: threading.Event) -> None:
    def fetch(addresses: list[int]) -> np.ndarray:
        soc.send(bytes([2, len(addresses)]) + (addresses[0] // 4).to_bytes(4, "big"))
        return np.frombuffer(soc.receive(4 * len(addresses), 1_000_000), ">u4")

    def store(address: int, words: list[int]) -> None:
        soc.send(bytes([1, len(words)]) + (address // 4).to_bytes(4, "big") + np.array(words, ">u4").tobytes())

    port = server.getsockname()[1]
    while not left.is_set():
        if select.select([server], [], [], 0)[0]:
            packet, (sender, _) = server.recvfrom(1 << 16)
            if answer := answered(packet, fetch, store):
                server.sendto(answer, (sender, port))  # not to the port that asked: as LiteEth does
        else:
            soc.step(SLICE)
