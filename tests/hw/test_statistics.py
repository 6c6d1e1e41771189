"""Row statistics: what was gathered in pieces is read as the mean and scale that `sim.interpret` computes."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Command, Kind, Prologue
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import NORMALISED_FEATURES, Ints
from patchloom.compiler.quantise.linear import normalise_constants
from patchloom.hw.statistics import Statistics
from patchloom.sim.interpret import normalisation
from tests.hw.pipelines import command_bits, drive, joined

CONFIGS = {
    "4 channels": Config(inputs=8, outputs=4, lanes=4, statistics_rows=24),
    "12 channels": Config(inputs=8, outputs=12, lanes=4, statistics_rows=24),
    "12 channels in 3 passes": Config(inputs=8, outputs=12, lanes=4, statistics_rows=24, epilogue_lanes=4),
}


@dataclass
class Case:
    """Rows of elements, gathered a group of `outputs` at a time, one row after another for each group."""

    config: Config
    features: int
    elements: Ints  # [statistics rows, features]
    epsilon: float = 1e-5
    scale: float = 2.0**-8
    command: Command = field(init=False)

    def __post_init__(self) -> None:
        _, constants = normalise_constants(self.features, self.epsilon, 2.0**-10, self.scale)
        self.command = Command(kind=Kind.MATMUL, prologue=Prologue.NORMALISE, depth=self.features, **asdict(constants))


def normal(config: Config, features: int) -> Case:
    rng = np.random.default_rng(features)
    rows = config.statistics_rows
    spread = 2.0 ** rng.uniform(0, 13, (rows, 1))
    elements = rng.normal(rng.normal(size=(rows, 1)) * spread, spread, (rows, features))
    return Case(config, features, np.clip(np.rint(elements), -(1 << 15), (1 << 15) - 1).astype(np.int64))


def extreme(config: Config, features: int) -> Case:
    """Constant rows, the largest spread, rows that grow; a large and a small scale of the result."""
    rows = config.statistics_rows
    elements = np.zeros((rows, features), np.int64)
    elements[1], elements[2] = -(1 << 15), (1 << 15) - 1
    elements[3, ::2], elements[3, 1::2] = -(1 << 15), (1 << 15) - 1
    elements[4, 0] = 1
    for row in range(5, rows):
        elements[row] = np.arange(features) * row - 3 * row
    return Case(config, features, np.clip(elements, -(1 << 15), (1 << 15) - 1), scale=2.0**-12)


def rtl(case: Case) -> list[tuple[int, int, int]]:
    config, n, rows = case.config, case.config.outputs, len(case.elements)
    names = ["gather", "begin", "gather_row", "elements", *(["first"] if config.epilogue_lanes else [])]
    inputs: dict[str, list[int]] = {name: [] for name in names}

    def beat(gather: int, begin: int, row: int, elements: int) -> None:
        """In the last pass all counts, in others what is of no row."""
        for number in range(config.passes):
            last, part = number == config.passes - 1, n // config.passes * ELEMENT_WIDTH
            word = elements >> number * part & ((1 << part) - 1)
            values = (gather * last, begin if last else 1 - begin, row if last else 0, word, int(number == 0))
            for series, value in zip(inputs.values(), values, strict=False):
                series.append(value)

    for _ in range(2):  # what was there before is forgotten
        for group in range(-(-case.features // n)):
            for row in range(rows):
                piece = case.elements[row, group * n : group * n + n]
                beat(1, group == 0, row, joined(piece, ELEMENT_WIDTH))
                if row % 5 == 3:
                    beat(0, 1, row, joined(piece, ELEMENT_WIDTH))  # a gap
    late = len(inputs["gather"]) - 1 + Statistics.gather_latency(config)
    reads: dict[str, int | list[int]] = {
        "read_row": [0] * late + list(range(rows)),
        "command": command_bits(case.command),
    }
    first = late + Statistics.READ_LATENCY
    # the last row may not be there when the first is read, but it is when its own turn comes
    names = ["mean", "scale", "shift"]
    seen = drive(Statistics(config), inputs | reads, names, first + rows)
    return [tuple(values) for values in zip(*(seen[name][first:] for name in names), strict=True)]


def reference(case: Case) -> list[tuple[int, int, int]]:
    by = normalisation(case.command, case.elements.sum(axis=1), (case.elements**2).sum(axis=1))
    return list(zip(*(x.tolist() for x in by), strict=True))


@pytest.mark.parametrize("features", [1, 7, 192])
@pytest.mark.parametrize("make", [normal, extreme])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("prologue", [Prologue.NORMALISE, Prologue.RMS], ids=["mean", "no mean"])
def test_statistics(config, prologue, make, features):
    case = make(config, features)
    case.command = replace(case.command, prologue=prologue)
    assert rtl(case) == reference(case)


def test_widest_row():
    """As many features as `compiler.machine.verify` admits, all of them extreme."""
    config = Config(inputs=8, outputs=64, lanes=4, statistics_rows=16)
    case = extreme(config, NORMALISED_FEATURES)
    assert rtl(case) == reference(case)


def test_gathered_row_is_read_on_time():
    """The very last row gathered, read `gather_latency` cycles later; a row that comes again after the least period."""
    config = CONFIGS["12 channels"]
    command = Case(config, 24, np.zeros((1, 24), np.int64)).command
    pieces = np.arange(24).reshape(2, 12) * 31 - 50
    gap = Statistics.GATHER_PERIOD
    inputs: dict[str, int | list[int]] = {
        "gather": [1] + [0] * (gap - 1) + [1],
        "begin": [1],
        "gather_row": [5] * (gap + 1),
        "elements": [joined(pieces[0], ELEMENT_WIDTH)] + [0] * (gap - 1) + [joined(pieces[1], ELEMENT_WIDTH)],
        "read_row": 5,
        "command": command_bits(command),
    }
    at = gap + Statistics.gather_latency(config) + Statistics.READ_LATENCY
    seen = drive(Statistics(config), inputs, ["mean", "scale", "shift"], at + 1)
    got = [(seen["mean"][at], seen["scale"][at], seen["shift"][at])]
    assert got == reference(Case(config, 24, pieces.reshape(1, -1)))
