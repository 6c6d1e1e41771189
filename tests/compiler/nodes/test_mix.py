"""Constant matrices times tokens."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import GraphError, whole
from patchloom.compiler.nodes import Mix
from patchloom.compiler.schedule.errors import ScheduleError
from tests.compiler.graphs import Builder, check, compiled, one

b = Builder()
X, Y = b.matmul("x", b.input(12, 20), 24), b.matmul("y", b.input(7, 20, "z"), 24)
EYE = np.eye(24, dtype=np.float32)
ORDER = EYE[:12, :12][np.random.default_rng(0).permutation(12)]
AT = whole(X)


def beside(columns: slice) -> Mix:
    part = AT.pick(AT.index[3:10, columns])
    return Mix(x=(part, whole(Y)), matrices=(EYE[:7, :7], EYE[:7, :7]), places=((0, 0), (0, part.shape[1])), name="mix")


MIXES: dict[str, Callable[[], Mix]] = {
    "another order": lambda: Mix.of(AT, ORDER, name="mix"),
    "sums of tokens": lambda: Mix.of(AT, b.normal(9, 12), name="mix"),
    "mean": lambda: Mix.of(AT, np.full((2, 12), 1 / 12, np.float32), name="mix"),
    "a row of zeros": lambda: Mix.of(AT, EYE[:5, 2:14] * EYE[:12, :12].sum(0), name="mix"),
    "transposed": lambda: Mix.of(AT.transposed, EYE, name="mix"),
    "sums of columns": lambda: Mix.of(AT.transposed, b.normal(5, 24), name="mix"),
    "above one another": lambda: Mix(
        x=(AT, whole(Y)), matrices=(EYE[2:9, :12], EYE[:7, :7]), places=((0, 0), (7, 0)), name="mix"
    ),
    "every other row": lambda: Mix(
        x=(AT, AT), matrices=(ORDER, EYE[:12, :12]), places=((0, 0), (1, 0)), steps=(2, 2), name="mix"
    ),
    "beside one another": lambda: beside(slice(8, 20)),
    "beside, from no chunk on": lambda: beside(slice(5, 18)),
}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize(("precision", "bound"), [("w8a8", 25), ("w16a16", 60)])
def test_mix(name: str, precision: str, bound: float):
    mix = MIXES[name]()
    for config in (Config(), Config(lanes=4, inputs=8, outputs=8, max_rows=16)):
        check(one(b.matmul("out", mix, 10, epsilon=1e-5)), config, bound, precision)
        if len(mix.x) == 1:  # heads of one part: others may have a gap within them
            check(one(b.attention("heads", mix, 1, mix.shape[1] // 3)), config, bound, precision)


def test_what_only_moves_is_exact():
    """Where its format is its operand's."""
    program = check(one(b.matmul("out", Mix.of(AT, ORDER, name="mix"), 10)))
    multiplier, shift = next(
        (c.multiplier, c.shift)
        for c, note in zip(program.tasks[0].commands, program.tasks[0].notes, strict=True)
        if note.startswith("mix: part 0 rows")
    )
    assert multiplier & (multiplier - 1) == 0
    assert shift > 0


def test_macs():
    assert Mix.of(AT, ORDER).macs == 0
    assert Mix.of(AT, b.normal(9, 12)).macs == 9 * 12 * 24


def test_refused():
    mix = Mix.of(AT, ORDER, name="mix")
    with pytest.raises(GraphError, match="mix 'mix' needs 11 tokens, x has 12"):
        replace(mix, matrices=(ORDER[:, :11],))
    with pytest.raises(GraphError, match="mix 'mix' must make each element of its result once"):
        replace(mix, places=((1, 0),))


def test_no_gap_is_left_within_a_head():
    """A head's columns are written one behind the other: whoever needs one of them to begin a chunk reads a copy."""
    heads = whole(b.attention("heads", X, 1, 8))
    cut = Mix.of(heads.pick(heads.index[:, 3:8]), EYE[:12, :12], name="cut")
    with pytest.raises(ScheduleError, match="attention 'heads' cannot leave a gap in columns 0 to 7"):
        compiled(one(cut), "w8a8", Config(lanes=4, inputs=8, outputs=8))
