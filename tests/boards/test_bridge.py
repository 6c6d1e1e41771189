"""The window between the machine and LiteDRAM, against a model of the memory that holds back at random."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from litedram.common import LiteDRAMNativePort
from migen import passive, run_simulation

from patchloom.boards.board import board
from patchloom.boards.bridge import Bridge
from patchloom.hw.axi import Response

BASE, SIZE = 0x4000_0000, 1 << 14
MEMORY = replace(board("ulx3s_85f").memory, base=BASE, bytes=SIZE)
BEAT = MEMORY.bus_width // 8
DEADLINE = 2_000  # cycles
OUTSIDE = [BASE - BEAT, BASE + SIZE, 0, BASE + (1 << 32), (1 << 64) - BEAT, BASE ^ SIZE]


@dataclass
class Burst:
    address: int
    beats: int
    data: list[int] = field(default_factory=list)  # written; what was read
    responses: list[int] = field(default_factory=list)

    @property
    def inside(self) -> bool:
        return BASE <= self.address < BASE + SIZE

    def words(self) -> range:
        first = (self.address - BASE) // BEAT
        return range(first, first + self.beats)


class Bench:
    """A bridge, with reads and writes for a master to do; `stalls` is the share of cycles that sides hold back."""

    def __init__(self, reads: list[Burst], writes: list[Burst], *, stalls: float, seed: int) -> None:
        self.reads, self.writes, self.stalls = reads, writes, stalls
        self.random = random.Random(seed)
        self.port = LiteDRAMNativePort("both", address_width=12, data_width=MEMORY.bus_width)
        self.bridge = Bridge(MEMORY, self.port)
        self.words = [self.random.getrandbits(32) for _ in range(SIZE // BEAT)]
        self.asked: dict[bool, deque[int]] = {False: deque(), True: deque()}
        self.cycles = 0
        self.left = 2

    def run(self) -> None:
        axi = self.bridge.axi
        run_simulation(
            self.bridge,
            [
                *(self._addresses(axi.ar, self.reads), self._read_data(axi.r)),
                *(self._addresses(axi.aw, self.writes), self._write_data(axi.w), self._answers(axi.b)),
                *(self._commands(), self._written(), self._read()),
                self._clock(),
            ],
        )

    def _holds_back(self) -> bool:
        return self.random.random() < self.stalls

    def _send(self, channel: Any, **values: int) -> Iterator[Any]:
        while self._holds_back():
            yield
        for name, value in {**values, "valid": 1}.items():
            yield getattr(channel, name).eq(value)
        yield
        while not (yield channel.ready):
            yield
        yield channel.valid.eq(0)

    def _receive(self, channel: Any, *names: str) -> Iterator[Any]:
        while True:
            yield channel.ready.eq(not self._holds_back())
            yield
            if (yield channel.valid) and (yield channel.ready):
                values = {}
                for name in names:
                    values[name] = yield getattr(channel, name)
                return tuple(values.values())

    # --- The master ---

    def _addresses(self, channel: Any, bursts: list[Burst]) -> Iterator[Any]:
        for burst in bursts:
            yield from self._send(channel, addr=burst.address, len=burst.beats - 1)

    def _write_data(self, channel: Any) -> Iterator[Any]:
        for burst in self.writes:
            for i, word in enumerate(burst.data):
                yield from self._send(channel, data=word, strb=15, last=i == burst.beats - 1)

    def _read_data(self, channel: Any) -> Iterator[Any]:
        for burst in self.reads:
            for i in range(burst.beats):
                data, response, last = yield from self._receive(channel, "data", "resp", "last")
                burst.data.append(data)
                burst.responses.append(response)
                assert last == (i == burst.beats - 1)
        self.left -= 1

    def _answers(self, channel: Any) -> Iterator[Any]:
        for burst in self.writes:
            burst.responses += yield from self._receive(channel, "resp")
        self.left -= 1

    # --- The memory controller ---

    @passive
    def _commands(self) -> Iterator[Any]:
        while True:
            write, address = yield from self._receive(self.port.cmd, "we", "addr")
            self.asked[bool(write)].append(address)

    @passive
    def _written(self) -> Iterator[Any]:
        while True:
            if self.asked[True]:
                data, strobe = yield from self._receive(self.port.wdata, "data", "we")
                assert strobe == 15
                self.words[self.asked[True].popleft()] = data
                yield self.port.wdata.ready.eq(0)
            else:
                yield

    @passive
    def _read(self) -> Iterator[Any]:
        while True:
            if self.asked[False] and not self._holds_back():
                yield self.port.rdata.data.eq(self.words[self.asked[False].popleft()])
                yield self.port.rdata.valid.eq(1)
            else:
                yield self.port.rdata.valid.eq(0)
            yield
            assert (yield self.port.rdata.ready), "LiteDRAM cannot hold back what it has read"

    def _clock(self) -> Iterator[Any]:
        while self.left:
            self.cycles += 1
            assert self.cycles < DEADLINE
            yield


def bursts(seed: int, count: int, first: int) -> list[Burst]:
    """In the half of the memory from word `first` on, a third of them outside."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        beats = rng.choice([1, 2, 3, 8])
        word = first + rng.randrange(SIZE // BEAT // 2 - beats + 1)
        address = rng.choice(OUTSIDE) if i % 3 == 1 else BASE + BEAT * word
        made.append(Burst(address, beats, [rng.getrandbits(32) for _ in range(beats)]))
    return made


@pytest.mark.parametrize("stalls", [0.0, 0.5])
def test_bursts_outside_are_denied_and_those_inside_are_not(stalls):
    reads, writes = bursts(1, 14, 0), bursts(2, 14, SIZE // BEAT // 2)
    bench = Bench(reads, writes, stalls=stalls, seed=1)
    want = list(bench.words)
    for burst in writes:
        if burst.inside:
            want[burst.words().start : burst.words().stop] = burst.data
    for burst in reads:
        burst.data = []
    bench.run()
    assert [burst.responses for burst in reads] == [[expected(burst)] * burst.beats for burst in reads]
    assert [burst.responses for burst in writes] == [[expected(burst)] for burst in writes]
    assert bench.words == want, "what is written outside must be lost"
    for burst in reads:
        assert not burst.inside or burst.data == [want[word] for word in burst.words()]


def test_beats_pass_at_full_rate():
    bench = Bench([Burst(BASE + 32 * BEAT * i, 32) for i in range(4)], [], stalls=0, seed=0)
    bench.run()
    assert bench.cycles <= 4 * 32 + 20


def expected(burst: Burst) -> int:
    return Response.OKAY if burst.inside else Response.DECERR


@pytest.mark.parametrize("base", [0x4000_0000 + 4096, SIZE // 2])
def test_a_memory_begins_where_its_addresses_can_be_cut(base):
    with pytest.raises(ValueError, match=f"memory must begin at a multiple of its 0x4000 bytes, not at {base:#x}"):
        Bridge(replace(MEMORY, base=base), None)
