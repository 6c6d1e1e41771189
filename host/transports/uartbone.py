"""UARTBone: reads and writes on a LiteX SoC's bus over a serial line (litex/soc/cores/uart.py, `Stream2Wishbone`).

A request is a command, a number of words (1 to 255), the first word's address (4 bytes, in words), and to write, the
words; a read is answered with its words. All most significant byte first. Nothing is acknowledged or has a checksum,
and what arrives while an answer leaves is lost. A byte lost leaves the bridge out of step: it takes what follows for
something else, until it gives up 100 ms after its command's first byte.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import InputError
from patchloom.host.errors import LinkError, NoAnswerError
from patchloom.host.transports.stream import Stream

WRITE, READ = 1, 2  # commands: bursts at rising addresses
MOST_WORDS = 255  # of a burst
GIVES_UP = 0.1  # seconds from a command's first byte, after which the bridge waits for another command
SILENCE = 1.5  # of that, after which it certainly does
TRIES = 4

Words = NDArray[np.uint32]
T = TypeVar("T")


class UartBone:
    """Words of 32 bits at byte addresses, over a stream. All methods raise `LinkError`.

    Whatever is read is read twice, and whatever is stored is read back. What differs, or is not answered, is done
    again after a silence that brings the bridge back into step. `witness` is the address of a word that never changes,
    and its value, by which a bridge in step is known; `gives_up` is in seconds.

    A request that was changed on its way may write words to anywhere: only a checksum of the memory, taken afterwards,
    tells that nothing else was overwritten.
    """

    def __init__(self, stream: Stream, witness: tuple[int, int], gives_up: float = GIVES_UP) -> None:
        self.stream, self.witness, self._silence = stream, witness, SILENCE * gives_up
        # A burst must be over in half the time after which the bridge gives up, each way.
        self.words = int(max(1, min(MOST_WORDS, stream.rate * gives_up / 2 / 4)))
        self._in_step = False  # nobody knows what was sent before

    def read(self, address: int) -> int:
        """A word that two reads agree on; of one that never stands still, the last."""
        before = self._again(self._read, address, 1)
        for _ in range(TRIES):
            word = self._again(self._read, address, 1)
            if word == before:
                break
            before = word
        return int(before[0])

    def fetch(self, address: int, count: int) -> Words:
        """Words of memory, one after another."""
        parts = [self._again(self._fetch, *burst) for burst in self._bursts(address, count)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def store(self, address: int, words: Words) -> None:
        """Words of memory, one after another."""
        for at, count in self._bursts(address, words.size):
            first = (at - address) // 4
            self._again(self._store, at, words[first : first + count])

    def write(self, address: int, value: int) -> None:
        """A word that may have effects, once: if this fails, nobody knows whether it was written."""
        self._step()
        self._check_witness(_request(WRITE, address, 1) + value.to_bytes(4, "big"))

    def synchronise(self) -> None:
        """Whatever the bridge took its input for, it waits for a command afterwards."""
        self._in_step = True
        self.stream.discard()
        self.stream.sleep(self._silence)
        self.stream.discard()
        self._check_witness()

    # --- One burst ---

    def _bursts(self, address: int, count: int) -> list[tuple[int, int]]:
        """Address and length of each."""
        if address % 4:
            raise InputError(f"an address on the link must be a multiple of 4, not {address:#x}")
        return [(address + 4 * at, min(self.words, count - at)) for at in range(0, count, self.words)]

    def _fetch(self, address: int, count: int) -> Words:
        first = self._read(address, count)
        self._compare(address, first, self._read(address, count), "twice alike")
        return first

    def _store(self, address: int, words: Words) -> None:
        request = _request(WRITE, address, words.size) + words.astype(">u4").tobytes()
        self._compare(address, words, self._read(address, words.size, request), "as they were written")

    def _compare(self, address: int, wanted: Words, found: Words, how: str) -> None:
        wrong = int(np.count_nonzero(wanted != found))
        if wrong:
            text = f"{wrong} of {wanted.size} words at {address:#x} do not read {how}"
            raise self._out_of_step(LinkError(text))

    def _check_witness(self, before: bytes = b"") -> None:
        address, wanted = self.witness
        found = int(self._read(address, 1, before)[0])
        if found != wanted:
            raise self._out_of_step(LinkError(f"the word at {address:#x} must be {wanted:#x}, not {found:#x}"))

    def _read(self, address: int, count: int, before: bytes = b"") -> Words:
        """Behind other requests, which have no answer. At most one read may be on its way."""
        request, size = before + _request(READ, address, count), 4 * count
        rate, delay = self.stream.rate, self.stream.delay
        try:
            unasked = self.stream.receive(1, 0)
            self.stream.send(request, delay + 2 * len(request) / rate)
            answer = self.stream.receive(size, delay + 2 * (size + len(request)) / rate)
        except LinkError as error:
            raise self._out_of_step(error) from None
        if unasked:
            raise self._out_of_step(LinkError(f"before the read at {address:#x} bytes came that nobody asked for"))
        if len(answer) != size:
            text = f"the read of {size} bytes at {address:#x} was answered with {len(answer)}"
            raise self._out_of_step(NoAnswerError(text))
        return np.frombuffer(answer, ">u4").astype(np.uint32)

    # --- Step ---

    def _step(self) -> None:
        if not self._in_step:
            self.synchronise()

    def _out_of_step(self, error: LinkError) -> LinkError:
        self._in_step = False
        return error

    def _again(self, access: Callable[..., T], *arguments: object) -> T:
        """An access that may be repeated."""
        for left in reversed(range(TRIES)):
            try:
                self._step()
                return access(*arguments)
            except LinkError:
                if not left:
                    raise
        raise AssertionError


def _request(command: int, address: int, count: int) -> bytes:
    return bytes([command, count]) + (address // 4).to_bytes(4, "big")
