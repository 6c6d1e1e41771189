"""A SoC's bus over a link that may lose and change what it carries: what its protocols have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import InputError
from patchloom.host.errors import LinkError
from patchloom.host.transports.stream import Link

TRIES = 4

Words = NDArray[np.uint32]
T = TypeVar("T")


class Bus(ABC):
    """Words of 32 bits at byte addresses. All methods raise `LinkError`. A protocol is a subclass.

    Whatever is read is read twice, and whatever is stored is read back. What differs, or is not answered, is done
    again. `witness` is the address of a word that never changes, and its value, by which a link in order is known.

    A request that was changed on its way may write words to anywhere. `doubts` counts those that may have: only a
    checksum of the memory, taken afterwards, tells that nothing else was overwritten. It is certain to count them where
    what is stored differs from what was there, since then a word that went elsewhere is missing where it should be.
    """

    def __init__(self, link: Link, witness: tuple[int, int], words: int) -> None:
        self.link, self.witness = link, witness
        self.words = words  # of a burst, at most
        self.doubts = 0
        self.lost = False  # the last access failed for good

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
        with self._losing():
            self.restore()
            with self._doubting():
                self.check_witness((address, np.array([value], np.uint32)))

    def reopen(self) -> None:
        """Have a lost link again."""
        self.link.reopen()
        self.lost = False

    # --- What a protocol does ---

    @abstractmethod
    def _read(self, address: int, count: int, before: tuple[int, Words] | None = None) -> Words:
        """Words at an address, behind others that are written before, if any; writes have no answer of their own."""

    @abstractmethod
    def _out_of_order(self, error: LinkError) -> LinkError:
        """Take notice of what went wrong."""

    @abstractmethod
    def restore(self) -> None:
        """Whatever was before, the link is in order afterwards."""

    # --- One burst ---

    def check_witness(self, before: tuple[int, Words] | None = None) -> None:
        address, wanted = self.witness
        found = int(self._read(address, 1, before)[0])
        if found != wanted:
            raise self._out_of_order(LinkError(f"the word at {address:#x} must be {wanted:#x}, not {found:#x}"))

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
        with self._doubting():
            self._compare(address, words, self._read(address, words.size, (address, words)), "as they were written")

    def _compare(self, address: int, wanted: Words, found: Words, how: str) -> None:
        wrong = int(np.count_nonzero(wanted != found))
        if wrong:
            text = f"{wrong} of {wanted.size} words at {address:#x} do not read {how}"
            raise self._out_of_order(LinkError(text))

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Words are written."""
        try:
            yield
        except LinkError:
            self.doubts += 1
            raise

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """There is no other try."""
        try:
            yield
        except LinkError:
            self.lost = True
            raise

    def _again(self, access: Callable[..., T], *arguments: object) -> T:
        """An access that may be repeated."""
        with self._losing():
            for left in reversed(range(TRIES)):
                try:
                    self.restore()
                    return access(*arguments)
                except LinkError:
                    if not left:
                        raise
            raise AssertionError
