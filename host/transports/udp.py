"""UDP to one board."""

import os
import select
import socket
import time

from patchloom.host.errors import LinkError
from patchloom.host.transports.lock import lock_file
from patchloom.host.transports.stream import Datagrams

MOST = 1 << 16  # bytes of a packet


class Udp(Datagrams):
    """Packets to a port of a host, and from it. Locked (flock) until it is closed or its process ends.

    LiteEth answers to its own port's number, whatever port asked: ours is the same.
    """

    def __init__(self, host: str, port: int) -> None:
        self.name = f"{host}:{port}"
        try:
            *_, (address, *_) = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)[0]
        except (OSError, UnicodeError, OverflowError) as error:
            raise LinkError(f"{host!r} must be the name or the address of a host, and is not: {error}") from error
        self._lock = lock_file(f"etherbone-{address}-{port}")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._connect(str(address), port)
        except OSError as error:
            self.close()
            raise LinkError(f"{self.name} must be a host to reach from this one's port {port}: {error}") from error

    def _connect(self, address: str, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))  # sends nothing; tells which of our addresses it is reached from
            ours, _ = probe.getsockname()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # another driver has another board
        self._socket.bind((ours, port))
        self._socket.connect((address, port))
        self._socket.setblocking(False)

    def send(self, packet: bytes) -> None:
        try:
            self._socket.send(packet)
        except ConnectionRefusedError:  # of a packet before: who does not answer is noticed anyway
            pass
        except OSError as error:
            raise LinkError(f"{self.name} cannot be sent to: {error}") from error

    def receive(self, seconds: float) -> bytes:
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return self._socket.recv(MOST) if poll.poll(max(0.0, seconds) * 1000) else b""
        except (ConnectionRefusedError, BlockingIOError):
            return b""
        except (OSError, ValueError) as error:
            raise LinkError(f"{self.name} cannot be heard: {error}") from error

    def reopen(self) -> None:
        """There is no connection that could be lost."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            os.close(self._lock)
