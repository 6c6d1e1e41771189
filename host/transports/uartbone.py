"""UARTBone: reads and writes on a LiteX SoC's bus over a serial line (litex/soc/cores/uart.py, `Stream2Wishbone`).

A request is a command, a number of words (1 to 255), the first word's address (4 bytes, in words), and to write, the
words; a read is answered with its words. All most significant byte first. Nothing is acknowledged or has a checksum,
and what arrives while an answer leaves is lost. A byte lost leaves the bridge out of step: it takes what follows for
something else, until it gives up 100 ms after its command's first byte.
"""

import numpy as np

from patchloom.host.errors import LinkError, NoAnswerError
from patchloom.host.transports.bus import Bus, Words
from patchloom.host.transports.stream import Stream

WRITE, READ = 1, 2  # commands: bursts at rising addresses
MOST_WORDS = 255  # of a burst
GIVES_UP = 0.1  # seconds from a command's first byte, after which the bridge waits for another command
SILENCE = 1.5  # of that, after which it certainly does


class UartBone(Bus):
    """A bus over a stream. What went wrong is followed by a silence that brings the bridge back into step.

    `gives_up` is in seconds.
    """

    def __init__(self, stream: Stream, witness: tuple[int, int], gives_up: float = GIVES_UP) -> None:
        # A burst must be over in half the time after which the bridge gives up, each way.
        super().__init__(stream, witness, int(max(1, min(MOST_WORDS, stream.rate * gives_up / 2 / 4))))
        self.stream, self._silence = stream, SILENCE * gives_up
        self._in_step = False  # nobody knows what was sent before

    def restore(self) -> None:
        """Whatever the bridge took its input for, it waits for a command afterwards."""
        if self._in_step:
            return
        self._in_step = True
        self.stream.discard()
        self.stream.sleep(self._silence)
        self.stream.discard()
        self.check_witness()

    def _out_of_order(self, error: LinkError) -> LinkError:
        self._in_step = False
        return error

    def _read(self, address: int, count: int, before: tuple[int, Words] | None = None) -> Words:
        """At most one read may be on its way."""
        request, size = _request(READ, address, count), 4 * count
        if before:
            at, words = before
            request = _request(WRITE, at, words.size) + words.astype(">u4").tobytes() + request
        rate, delay = self.stream.rate, self.stream.delay
        try:
            unasked = self.stream.receive(1, 0)
            self.stream.send(request, delay + 2 * len(request) / rate)
            answer = self.stream.receive(size, delay + 2 * (size + len(request)) / rate)
        except LinkError as error:
            raise self._out_of_order(error) from None
        if unasked:
            raise self._out_of_order(LinkError(f"before the read at {address:#x} bytes came that nobody asked for"))
        if len(answer) != size:
            text = f"the read of {size} bytes at {address:#x} was answered with {len(answer)}"
            raise self._out_of_order(NoAnswerError(text))
        return np.frombuffer(answer, ">u4").astype(np.uint32)


def _request(command: int, address: int, count: int) -> bytes:
    return bytes([command, count]) + (address // 4).to_bytes(4, "big")
