"""Bytes to a board and back, in order: what a link's protocol runs on."""

from abc import abstractmethod
from typing import Protocol


class Stream(Protocol):
    """Bytes in both directions. A home (a serial port, a simulation) is a subclass.

    No call lasts longer than it was told to. All raise `LinkError` once the link is gone.
    """

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

    @abstractmethod
    def now(self) -> float:
        """Seconds of the clock that all these waits are measured by."""

    @abstractmethod
    def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    def close(self) -> None: ...
