"""Shift, round and limit against `compiler.machine.fixed`, next to every limit."""

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.fixed import MAX_SHIFT, SHIFT_WIDTH, shift_round
from patchloom.hw.pipeline import limited_shift
from tests.hw.pipelines import drive


class Shifter(wiring.Component):
    def __init__(self, taken: int, given: int):
        self.given = given
        super().__init__(
            {"value": In(signed(taken)), "shift": In(SHIFT_WIDTH), "limited": Out(signed(given)), "changed": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        limited, changed = limited_shift(m, self.value, self.shift, self.given, name="x")
        m.d.comb += [self.limited.eq(limited), self.changed.eq(changed)]
        return m


@pytest.mark.parametrize(("taken", "given"), [(35, 18), (20, 8), (56, 22)])
def test_limited_shift(taken, given):
    rng = np.random.default_rng(taken)
    low, high = -(1 << taken - 1), (1 << taken - 1) - 1
    shifts = np.repeat(np.arange(MAX_SHIFT + 1), 80)
    values = (rng.normal(size=shifts.size) * 2.0 ** rng.uniform(0, taken, shifts.size)).astype(np.int64)
    edge = np.array([-(1 << given), -(1 << given - 1), 1 << given - 1, 1 << given])  # of the result, and one bit more
    for place, shift in enumerate(shifts[::80]):
        if shift + given < 62:
            near = (edge[:, None] << shift) + np.array([-1, 0, 1]) + (rng.integers(-1, 2, 3) << max(shift - 1, 0))
            values[80 * place : 80 * place + 12] = near.ravel()
    values = np.clip(values, low, high)
    seen = drive(
        Shifter(taken, given), {"value": values.tolist(), "shift": shifts.tolist()}, ["limited", "changed"],
        len(values) + 2,
    )  # fmt: skip
    exact = shift_round(values, shifts)
    limited = np.clip(exact, -(1 << given - 1), (1 << given - 1) - 1)
    np.testing.assert_array_equal(seen["limited"][2:], limited)
    np.testing.assert_array_equal(seen["changed"][2:], limited != exact)
    assert np.mean(limited != exact) > 0.02
