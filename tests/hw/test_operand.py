"""The streamed operand against the prologue of `sim.interpret`: elements to digits, row sums, saturations."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Command, Kind, Prologue
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import (
    MEAN_GUARD,
    SCORE_FRACTION,
    SUM_WIDTH,
    Ints,
    operand_limits,
    split_digits,
)
from patchloom.hw.command import beat_layout
from patchloom.hw.operand import Operand
from patchloom.hw.pipeline import tree_latency
from patchloom.sim.bench import pack
from patchloom.sim.interpret import Normalisation, prologue
from tests.hw.pipelines import command_bits, drive, joined, parted

CONFIGS = {
    "8 x 8 bits": Config(inputs=8, outputs=4, lanes=4, bus_width=64),
    "12 x 8 bits": Config(inputs=12, outputs=4, lanes=4, bus_width=32),
    "4 x 8 bits": Config(inputs=4, outputs=4, lanes=4, bus_width=32),
    "8 x 16 bits": Config(inputs=8, outputs=4, lanes=4, bus_width=64, activation_width=16),
}
BEATS = 150


@dataclass
class Case:
    """Random beats of one command: every beat has its own row constants, slice, digit and flags."""

    config: Config
    command: Command
    seed: int = 0
    elements: Ints = field(init=False)  # [beats, inputs]

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n, half = self.config.inputs, 1 << 15
        spread = 2.0 ** rng.uniform(2, 16, (BEATS, 1))
        self.elements = np.clip(np.rint(rng.normal(0, spread, (BEATS, n))), -half, half - 1).astype(np.int64)
        self.elements[::50], self.elements[1::50] = half - 1, -half
        self.mean = rng.integers(-(half << MEAN_GUARD), half << MEAN_GUARD, BEATS)
        self.mean[::3] >>= 8
        self.scale = rng.integers(0, 1 << 17, BEATS)
        self.shift = rng.integers(4, 40, BEATS)
        above = np.where(rng.random(BEATS) < 0.5, rng.integers(0, 1 << 12, BEATS), 1 << 16)
        self.slice = rng.integers(0, -(-self.command.depth // n), BEATS)
        self.half = rng.integers(0, 1 + self.config.input_chunks % 2, BEATS)
        self.maximum = np.minimum(stored(self).max(axis=1) + above, half - 1)
        self.group = rng.integers(0, 3, BEATS)
        self.digit = rng.integers(0, 1 + self.command.a_wide * (self.config.activation_width == 8), BEATS)
        self.fresh = rng.integers(0, 2, BEATS)
        self.valid = (rng.random(BEATS) < 0.8).astype(np.int64)


def rtl(case: Case) -> tuple[list[list[int]], list[int], int]:
    config, n = case.config, case.config.inputs
    sums = Operand.sum_latency(config)
    beats = [
        pack(beat_layout(config), valid=v, slice=s, group=g, digit=d, fresh=f)
        for v, s, g, d, f in zip(case.valid, case.slice, case.group, case.digit, case.fresh, strict=True)
    ]
    inputs = {
        "command": command_bits(case.command),
        "beat": beats,
        "elements": [joined(row, ELEMENT_WIDTH) for row in case.elements],
    }
    inputs |= {name: getattr(case, name).tolist() for name in ("mean", "scale", "shift", "maximum", "half")}
    cycles = BEATS + sums + tree_latency(n) + 5
    seen = drive(Operand(config), inputs, ["digits", "row_sum", "saturations"], cycles)
    digits = [parted(word, config.activation_width, n) for word in seen["digits"][Operand.LATENCY :][:BEATS]]
    return digits, seen["row_sum"][sums:][:BEATS], sum(seen["saturations"])


def stored(case: Case) -> Ints:
    """The slice's elements; of 8 bits each, if packed, from the chunk that they begin in, maybe in its middle."""
    config = case.config
    if not case.command.a_packed:
        return case.elements
    octets = case.elements.astype("<i2").view(np.int8).astype(np.int64)
    return np.take_along_axis(octets, case.half[:, None] * config.lanes + np.arange(config.inputs), axis=1)


def reference(case: Case) -> tuple[list[list[int]], list[int], int]:
    c, config = case.command, case.config
    x, saturated = prologue(c, stored(case), Normalisation(case.mean, case.scale, case.shift), case.maximum)
    inside = case.slice[:, None] * config.inputs + np.arange(config.inputs) < c.depth
    counted = (case.valid & case.fresh & (case.group == 0)).astype(bool)[:, None] & inside
    digits = operand = np.where(inside, x, 0)
    if config.activation_width == 8:
        low, high = split_digits(operand, 8, 2)
        digits = np.where(case.digit[:, None], high, low) if c.a_wide else operand
    return digits.tolist(), (operand.sum(axis=1) % (1 << SUM_WIDTH)).tolist(), int(saturated[counted].sum())


PROLOGUES = {
    "none": (Prologue.NONE, 0),
    "normalise": (Prologue.NORMALISE, 0),
    "root mean square": (Prologue.RMS, 0),
    "exp": (Prologue.EXP, 3),
    "exp of scores in 2**-12": (Prologue.EXP, 0),
    "exp of scores in 1": (Prologue.EXP, SCORE_FRACTION),
}


@pytest.mark.parametrize("wide", [0, 1], ids=["narrow", "wide"])
@pytest.mark.parametrize(("prologue", "exp_shift"), PROLOGUES.values(), ids=PROLOGUES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_operand(config, prologue, exp_shift, wide):
    depth = max(config.inputs * (1 + wide) + exp_shift - 5, 1)
    case = Case(config, Command(kind=Kind.MATMUL, depth=depth, prologue=prologue, exp_shift=exp_shift, a_wide=wide))
    assert rtl(case) == reference(case)


@pytest.mark.parametrize("prologue", Prologue)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed(config, prologue):
    for wide in (0, 1):
        command = Command(kind=Kind.MATMUL, depth=5 * config.inputs - 3, prologue=prologue, a_wide=wide, a_packed=1)
        case = Case(config, command, seed=wide)
        assert rtl(case) == reference(case)


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 21])
def test_features_beyond_the_depth_are_zero(depth):
    case = Case(CONFIGS["8 x 8 bits"], Command(kind=Kind.MATMUL, depth=depth))
    assert rtl(case) == reference(case)


def test_saturation_is_counted_once():
    """Both limits, each width: what is limited and what just is not."""
    config = CONFIGS["8 x 8 bits"]
    for wide in (0, 1):
        low, high = operand_limits(16 if wide else 8)
        case = Case(config, Command(kind=Kind.MATMUL, depth=8, a_wide=wide))
        case.elements[:] = 0
        case.elements[10] = [low, high, low - 1 if not wide else low, high + 1, 0, 0, 0, 0]
        case.group[10], case.fresh[10], case.valid[10] = 0, 1, 1
        assert rtl(case) == reference(case)
        assert reference(case)[2] == 2 - wide
