"""Etherbone: reads and writes on a LiteX SoC's bus in UDP packets (liteeth/frontend/etherbone.py).

A packet is a header of 8 bytes and one record: flags, byte enable, the numbers of words written and read (a byte
each), and to write, an address and the words; to read, an address for the answer and the addresses of the words. An
answer is a record that writes the words to the address for the answer. All most significant byte first.

LiteEth reads or writes in a record, not both: of one that does both it takes the address for the answer for the first
that it reads. Writes have no answer. Packets have no numbers: here every read has one, in place of an address for the
answer, that no other read has, so that an answer that is late, doubled or somebody else's is told from the right one.
**A write that the network delivers twice, the second time after later ones, is not noticed**: on a cable between two
machines nothing does that.
"""

import struct
from itertools import count as counted
from random import SystemRandom

import numpy as np

from patchloom.host.errors import LinkError, NoAnswerError
from patchloom.host.transports.bus import Bus, Words
from patchloom.host.transports.stream import Datagrams

PORT = 1234  # as LiteX has it
HEADER = bytes.fromhex("4e6f 1044 0000 0000")  # magic, version 1, 32 bits of address and data
RECORD = struct.Struct(">BBBB")  # flags, byte enable, words written, words read
ALL_BYTES = 0xF
MOST_WORDS = 255  # of a record: with an address what the buffer of a board holds
PATIENCE = 0.25  # seconds for an answer, and twice as long in every try that follows,
MOST_PATIENT = 8  # times that at most


class Etherbone(Bus):
    """A bus over datagrams."""

    def __init__(self, packets: Datagrams, witness: tuple[int, int], patience: float = PATIENCE) -> None:
        super().__init__(packets, witness, MOST_WORDS)
        self.packets, self._least, self._patience = packets, patience, patience
        # Answers to whoever asked before are told from ours.
        self._numbers = counted(SystemRandom().randrange(1 << 32))

    def restore(self) -> None:
        """Every packet stands for itself."""

    def _out_of_order(self, error: LinkError) -> LinkError:
        return error

    def _read(self, address: int, count: int, before: tuple[int, Words] | None = None) -> Words:
        number = next(self._numbers) % (1 << 32)
        if before:
            self.packets.send(writing(*before))
        self.packets.send(reading(number, address, count))
        limit = self.packets.now() + self._patience
        while (left := limit - self.packets.now()) > 0:
            words = _answer(self.packets.receive(left), number, count)
            if words is not None:
                self._patience = self._least
                return words
        self._patience = min(2 * self._patience, MOST_PATIENT * self._least)
        raise NoAnswerError(f"the read of {4 * count} bytes at {address:#x} was not answered")


def writing(address: int, words: Words) -> bytes:
    """The packet that writes words."""
    return _packet(words.size, 0, address, words)


def reading(number: int, address: int, count: int) -> bytes:
    """The packet that asks for words."""
    return _packet(0, count, number, np.uint32(address) + 4 * np.arange(count, dtype=np.uint32))


def _packet(written: int, read: int, address: int, words: Words) -> bytes:
    return (
        HEADER + RECORD.pack(0, ALL_BYTES, written, read) + address.to_bytes(4, "big") + words.astype(">u4").tobytes()
    )


def _answer(packet: bytes, number: int, count: int) -> Words | None:
    """The words that a packet brings, if it is the answer; its flags do not matter."""
    head = len(HEADER) + RECORD.size
    wanted = HEADER, bytes([count, 0]), number.to_bytes(4, "big")
    if (packet[: len(HEADER)], packet[head - 2 : head], packet[head : head + 4]) != wanted:
        return None
    words = packet[head + 4 :]
    return np.frombuffer(words, ">u4").astype(np.uint32) if len(words) == 4 * count else None
