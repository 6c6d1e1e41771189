"""Storer: chunks of the scratchpad leave as bus beats, whatever stalls the writer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.hw.storer import Storer
from patchloom.sim.cosim import simulate
from tests.hw.pipelines import as_case

CONFIGS = {
    "2 beats a chunk": Config(inputs=8, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=128),
    "a chunk is a beat": Config(inputs=8, outputs=4, lanes=4, bus_width=64, scratchpad_chunks=128),
    "4 chunks a beat": Config(inputs=32, outputs=4, lanes=4, bus_width=256, scratchpad_chunks=128),
}


@dataclass
class Case:
    config: Config
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        c = self.config
        self.scratchpad = rng.integers(-(1 << 15), 1 << 15, (c.scratchpad_chunks, c.lanes)).astype(np.int16)
        whole = max(c.bus_width // (c.lanes * 16), 1)  # chunks of a beat
        rows = whole * np.array([1, 2, 1, 7, 12, 3, 20 // whole + 1])
        self.commands = np.stack([rng.integers(0, c.scratchpad_chunks - rows), rows], axis=1)


def rtl(case: Case) -> bytes:
    given = {"seed": case.seed, "scratchpad": case.scratchpad, "commands": case.commands}
    bench = Path(__file__).with_name("bench_storer.py")
    return simulate(Storer(case.config), bench, case=given | as_case(case.config))["bytes"].astype(np.uint8).tobytes()


def reference(case: Case) -> bytes:
    return b"".join(case.scratchpad[address : address + rows].tobytes() for address, rows in case.commands)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_storer(config):
    case = Case(config)
    assert rtl(case) == reference(case)
