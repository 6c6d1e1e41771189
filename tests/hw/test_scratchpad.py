"""The scratchpad against a plain array: any first chunk, any number of banks, reads and writes in every cycle."""

from collections import deque

import numpy as np
import pytest

from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.hw.scratchpad import Scratchpad
from tests.hw.pipelines import drive

CONFIGS = {
    "1 bank": Config(inputs=4, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=64),
    "2 banks": Config(inputs=4, outputs=8, lanes=4, bus_width=32, scratchpad_chunks=64),
    "4 banks": Config(inputs=16, outputs=8, lanes=4, bus_width=32, scratchpad_chunks=128),
    "4 banks, 3 and 2 chunks": Config(inputs=12, outputs=8, lanes=4, bus_width=32, scratchpad_chunks=64),
    "1 copy, 1 bank": Config(inputs=4, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=64, scratchpad_copies=1),
    "1 copy, 4 banks, 2 blocks": Config(
        inputs=16, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=32768, scratchpad_copies=1
    ),
    "2 blocks, the last one shorter": Config(inputs=8, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=2 * 5000),
    "8 banks, 2 and 5 chunks": Config(inputs=8, outputs=20, lanes=4, bus_width=32, scratchpad_chunks=64),
}
CYCLES = 1500  # after every chunk has been written
WRITE, READ = Scratchpad.WRITE_LATENCY, Scratchpad.READ_LATENCY


class Case:
    """Random accesses; no read meets a chunk that a write of the last `WRITE_LATENCY - 1` cycles gave.

    Port b of a single copy asks for nothing while there is a write: what it gives then is not compared.
    """

    def __init__(self, config: Config):
        rng = np.random.default_rng(3)
        self.config, self.depth = config, config.scratchpad_chunks
        self.firsts = self.depth if self.depth.bit_count() == 1 else self.depth - config.banks + 1  # that wrap or fit
        self.chunk, halves = config.lanes * ELEMENT_WIDTH, 2 * config.output_chunks
        self.readers = Scratchpad.readers(config)
        self.writes, self.reads = [], []
        fresh: deque[set[int]] = deque([set()] * WRITE, WRITE)
        for cycle in range(self.depth + CYCLES):
            address = int(rng.integers(self.firsts))
            # all chunks are written once, then any
            every = cycle < self.depth
            enable = (1 << halves) - 1 if every else int(rng.integers(1 << halves))
            address = cycle if every else address
            words = [int.from_bytes(rng.bytes(self.chunk // 8), "little") for _ in range(config.output_chunks)]
            self.writes.append((address, enable, words))
            fresh.append({(address + i) % self.depth for i in range(config.output_chunks) if enable >> 2 * i & 3})
            self.reads.append({name: self._apart(rng, set().union(*fresh), n) for name, n in self.readers.items()})

    def asked(self, name: str, data: list[int]) -> list[int]:
        """What port `name` gives, but for what a write pushed aside."""
        shared = name == "b" and self.config.scratchpad_copies == 1
        kept = [word for word, (_, enable, _) in zip(data, self.writes, strict=True) if not (shared and enable)]
        assert len(kept) > CYCLES / 20
        return kept

    def _apart(self, rng: np.random.Generator, fresh: set[int], chunks: int) -> int:
        while True:
            address = int(rng.integers(self.firsts))
            if fresh.isdisjoint((address + i) % self.depth for i in range(chunks)):
                return address


def rtl(case: Case) -> dict[str, list[int]]:
    inputs = {
        "write.valid": [int(enable != 0) for _, enable, _ in case.writes],
        "write.address": [address for address, _, _ in case.writes],
        "write.enable": [enable for _, enable, _ in case.writes],
        "write.data": [sum(w << (case.chunk * i) for i, w in enumerate(words)) for _, _, words in case.writes],
    }
    inputs |= {f"{name}.address": [read[name] for read in case.reads] for name in case.readers}
    outputs = [f"{name}.data" for name in case.readers]
    seen = drive(Scratchpad(case.config), inputs, outputs, len(case.writes) + READ)
    return {name: case.asked(name, seen[f"{name}.data"][READ:]) for name in case.readers}


def reference(case: Case) -> dict[str, list[int]]:
    memory = [0] * case.depth
    out: dict[str, list[int]] = {name: [] for name in case.readers}
    landing: deque[tuple] = deque()
    for write, read in zip(case.writes, case.reads, strict=True):
        landing.append(write)
        if len(landing) > WRITE:
            address, enable, words = landing.popleft()
            for i, word in enumerate(words):
                half = (1 << case.chunk // 2) - 1
                taken = (enable >> 2 * i & 1) * half | (enable >> 2 * i + 1 & 1) * half << case.chunk // 2
                at = (address + i) % case.depth
                memory[at] = word & taken | memory[at] & ~taken
        for name, chunks in case.readers.items():
            at = [(read[name] + i) % case.depth for i in range(chunks)]
            out[name].append(sum(memory[a] << (case.chunk * i) for i, a in enumerate(at)))
    return {name: case.asked(name, data) for name, data in out.items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_scratchpad(config):
    case = Case(config)
    assert rtl(case) == reference(case)
