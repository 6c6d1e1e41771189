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

TRIES = 6  # of one access, each of half as many words as the one before
WARY = 1000  # bursts after one that failed, in which
MORE = 2  # more reads must agree: of some thousand addresses that are changed, two will be changed alike
GROWTH = 8  # successes until there are about twice as many again

Words = NDArray[np.uint32]
T = TypeVar("T")


class Bus(ABC):
    """Words of 32 bits at byte addresses. All methods raise `LinkError`. A protocol is a subclass.

    Whatever is read is read twice, and whatever is stored is read back. What differs, or is not answered, is done
    again, in shorter bursts: they are the less likely to be hit. On a link that has lately failed more reads must
    agree. `witness` is the address of a word that never changes, and its value, by which a link in order is known.

    A request that was changed on its way may write words to anywhere. `doubts` counts those that may have: only a
    checksum of the memory, taken afterwards, tells that nothing else was overwritten. None is missed, since what is
    stored is something else than what was there: words that are there already are not written.
    """

    def __init__(self, link: Link, witness: tuple[int, int], words: int) -> None:
        self.link, self.witness, self.words = link, witness, words
        self._burst = words  # as many as go well
        self._wary = 0  # for so many bursts
        self.doubts = 0
        self.lost = False  # the last access failed for good

    def read(self, address: int) -> int:
        """A word that two reads agree on; of one that never stands still, the last."""
        word, alike = self._word(address), 0
        for _ in range(TRIES):
            before, word = word, self._word(address)
            alike = alike + 1 if word == before else 0
            if alike > self._more:
                return word
        if self._wary:
            raise LinkError(f"the word at {address:#x} does not read twice alike")
        return word

    def fetch(self, address: int, count: int) -> Words:
        """Words of memory, one after another."""
        parts = self._again(lambda at, size: self._fetch(address + 4 * at, size), address, count)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def store(self, address: int, words: Words) -> None:
        """Words of memory, one after another."""
        self._again(lambda at, size: self._store(address + 4 * at, words[at : at + size]), address, words.size)

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

    def _word(self, address: int) -> int:
        ((word,),) = self._again(lambda at, size: self._read(address, size), address, 1)
        return int(word)

    def _fetch(self, address: int, count: int) -> Words:
        words = self._read(address, count)
        self._confirm(address, words, 1 + self._more)
        return words

    def _store(self, address: int, words: Words) -> None:
        if np.array_equal(words, self._read(address, words.size)):
            self._confirm(address, words, 1 + self._more)
            return
        with self._doubting():
            self._compare(address, words, self._read(address, words.size, (address, words)), "as they were written")
            self._confirm(address, words, self._more)

    @property
    def _more(self) -> int:
        return MORE if self._wary else 0

    def _confirm(self, address: int, words: Words, times: int) -> None:
        for _ in range(times):
            self._compare(address, words, self._read(address, words.size), "twice alike")

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

    def _again(self, access: Callable[[int, int], T], address: int, count: int) -> list[T]:
        """An access that may be repeated, burst by burst: it is given its first word and how many there are."""
        if address % 4:
            raise InputError(f"an address on the link must be a multiple of 4, not {address:#x}")
        done: list[T] = []
        at, left = 0, TRIES
        with self._losing():
            while at < count:
                size = min(self._burst, count - at)
                try:
                    self.restore()
                    done.append(access(at, size))
                except LinkError:
                    left -= 1
                    self._burst, self._wary = max(1, size // 2), WARY
                    if not left:
                        raise
                else:
                    at, left, self._wary = at + size, TRIES, max(0, self._wary - 1)
                    self._burst = min(self._burst + self._burst // GROWTH + 1, self.words)
        return done
