"""A serial port, or a pseudo-terminal in its place."""

import os
import select
import termios
import time
import tty
from pathlib import Path

from patchloom.compiler.machine.errors import InputError
from patchloom.host.errors import LinkError
from patchloom.host.transports.lock import try_lock
from patchloom.host.transports.stream import Stream

BITS = 10  # of a byte on the line: start, 8 data, stop
DELAY = 1.0  # seconds: of the line's drivers on both sides, at the very worst
REOPENED = 5.0  # seconds that a port that was lost has for coming back
SPEEDS = {int(name[1:]): int(getattr(termios, name)) for name in dir(termios) if name[:1] == "B" and name[1:].isdigit()}


class Tty(Stream):
    """The terminal device `path`, raw, 8 data bits, no parity, no flow control, at `baud` bits a second.

    It is locked (flock) until it is closed or its process ends: two drivers would take each other's answers.
    """

    def __init__(self, path: str | Path, baud: int) -> None:
        if baud not in SPEEDS or baud == 0:
            known = ", ".join(str(speed) for speed in sorted(SPEEDS) if speed >= 9600)
            raise InputError(f"baud must be one of {known}, not {baud!r}")
        self.path, self.baud, self.rate, self.delay = str(path), baud, baud / BITS, DELAY
        self._lost = False
        self._file: int | None = self._opened()

    def _opened(self) -> int:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise LinkError(f"{self.path} must be a serial port to open, and is not: {error.strerror}") from error
        try:
            self._claim(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _claim(self, file: int) -> None:
        try:
            termios.tcgetattr(file)
            if holder := try_lock(file):
                raise LinkError(f"{self.path} must be a serial port that nobody else uses: {holder} does")
            self._configure(file, SPEEDS[self.baud])
        except termios.error as error:
            why = f"at {self.baud} baud, and is not: {error.args[-1]}"
            raise LinkError(f"{self.path} must be a serial port {why}") from error

    def reopen(self) -> None:
        """Whoever pulls a plug puts it back within seconds, or is told to."""
        if not self._lost:
            return
        self._release()
        limit = self.now() + REOPENED
        while True:
            try:
                self._file, self._lost = self._opened(), False
            except LinkError as error:
                if self.now() > limit:
                    text = f"{self.path} was lost and did not come back within {REOPENED:g} s; connect it and try again"
                    raise LinkError(f"{text}: {error}") from error
                self.sleep(REOPENED / 50)
            else:
                return

    @staticmethod
    def _configure(file: int, speed: int) -> None:
        tty.setraw(file)
        settings = termios.tcgetattr(file)
        settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL  # also no parity, one stop bit, no RTS/CTS
        settings[4] = settings[5] = speed
        termios.tcsetattr(file, termios.TCSANOW, settings)

    def send(self, data: bytes, seconds: float) -> None:
        limit, left = self.now() + seconds, memoryview(data)
        while left:
            if not self._ready(limit, writing=True):
                raise LinkError(f"{self.path} took {len(data) - len(left)} of {len(data)} bytes within {seconds:g} s")
            try:
                left = left[os.write(self._open, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone(error.args[-1]) from error

    def receive(self, size: int, seconds: float) -> bytes:
        limit, data = self.now() + seconds, bytearray()
        while len(data) < size and self._ready(limit):
            try:
                part = os.read(self._open, size - len(data))
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone(error.args[-1]) from error
            if not part:
                raise self._gone("it was closed at its other end")
            data += part
        return bytes(data)

    def _ready(self, limit: float, *, writing: bool = False) -> bool:
        """Whether there is something to read, or room to write, before the limit. poll() knows no largest file."""
        poll = select.poll()
        poll.register(self._open, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(max(0.0, limit - self.now()) * 1000))

    def discard(self) -> None:
        try:
            termios.tcflush(self._open, termios.TCIOFLUSH)
        except termios.error as error:
            raise self._gone(error.args[-1]) from error

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    @property
    def _open(self) -> int:
        if self._file is None:
            raise LinkError(f"{self.path} is closed")
        return self._file

    def _gone(self, why: str) -> LinkError:
        self._lost = True
        return LinkError(f"{self.path} was lost: {why}")

    def close(self) -> None:
        self._lost = False
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
