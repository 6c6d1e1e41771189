"""Bytes to a board and back: what a link's protocol runs on."""

from abc import abstractmethod
from typing import Protocol


class Link(Protocol):
    """No call lasts longer than it was told to. All raise `LinkError` once the link is gone."""

    @abstractmethod
    def reopen(self) -> None:
        """Have the link again, if it is gone and comes back in time; raises `LinkError` if it does not."""

    @abstractmethod
    def now(self) -> float:
        """Seconds of the clock that all waits are measured by."""

    @abstractmethod
    def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """For good."""


class Stream(Link, Protocol):
    """Bytes in both directions, in order. A home (a serial port, a simulation) is a subclass."""

    rate: float  # bytes a second, in each direction
    delay: float  # seconds after which nothing more will come, beside the time that bytes take

    @abstractmethod
    def send(self, data: bytes, seconds: float) -> None:
        """All of it; raises `LinkError` if it was not taken in time."""

    @abstractmethod
    def receive(self, size: int, seconds: float) -> bytes:
        """As many bytes, or fewer if no more came in time."""

    @abstractmethod
    def discard(self) -> None:
        """Forget what is on its way, as far as it is in reach."""


class Datagrams(Link, Protocol):
    """Packets in both directions. They may be lost, doubled, late and in another order."""

    @abstractmethod
    def send(self, packet: bytes) -> None: ...

    @abstractmethod
    def receive(self, seconds: float) -> bytes:
        """The next one, or nothing if none came in time."""
