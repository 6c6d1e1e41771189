"""The whole compute pipeline against the interpreter: random commands, beats and tiles at any moment they may come."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.hw.datapath import Datapath
from patchloom.sim.cosim import simulate
from patchloom.sim.interpret import execute
from tests.hw.pipelines import as_case
from tests.sim.programs import random_program

SIZES = {"scratchpad_chunks": 1024, "max_rows": 16, "statistics_rows": 64, "max_experts": 6, "max_top_k": 3}
CONFIGS = {
    "8 x 4": Config(inputs=8, outputs=4, lanes=4, bus_width=64, **SIZES),
    "4 x 12, 2 columns at once": Config(inputs=4, outputs=12, lanes=4, bus_width=32, word_beats=2, **SIZES),
    "4 x 12, 16-bit weights, 2 at once": Config(
        inputs=4, outputs=12, lanes=4, bus_width=32, weight_width=16, epilogue_lanes=2, **SIZES
    ),
    "8 x 4, 1 copy, 1 at once": Config(
        inputs=8, outputs=4, lanes=4, bus_width=64, scratchpad_copies=1, epilogue_lanes=1, **SIZES
    ),
}


@dataclass
class Case:
    """Random Programs, one after another."""

    config: Config
    seeds: range

    def __post_init__(self) -> None:
        self.made = [random_program(self.config, seed, steps=8) for seed in self.seeds]


Result = list[tuple[list[int], int]]


def rtl(case: Case) -> Result:
    """(output region, saturations) of each Program."""
    given = as_case(case.config) | {"seed": case.seeds[0], "programs": len(case.made)}
    for number, (program, (region,)) in enumerate(case.made):
        commands = b"".join(command.encode() for command in program.tasks[0].commands)
        parts = {
            "commands": np.frombuffer(commands, np.uint8),
            "image": np.frombuffer(program.image, np.uint8),
            "region": region,
            "output_bytes": program.tasks[0].output_bytes,
        }
        given |= {f"{name}_{number}": part for name, part in parts.items()}
    got = simulate(Datapath(case.config), Path(__file__).with_name("bench_datapath.py"), case=given)
    return [(got[f"output_{i}"].tolist(), int(got[f"saturations_{i}"])) for i in range(len(case.made))]


def reference(case: Case) -> Result:
    results = []
    for program, (region,) in case.made:
        output, saturations = execute(program, None, region)
        results.append((output.tolist(), saturations))
    return results


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_datapath(config):
    case = Case(config, range(6))
    assert rtl(case) == reference(case)
