"""Which samples are taken, and who is told."""

import numpy as np
import pytest

from patchloom.compiler.quantise import Precision, QuantiseError, quantise
from tests.compiler.graphs import samples, transformer


@pytest.mark.parametrize(("calibration", "text"), [
    ({}, "calibration must have samples of x, not of "),
    ({"x": np.zeros((2, 20, 24)), "y": np.zeros(2)}, "calibration must have samples of x, not of x, y"),
    ({"x": np.zeros((2, 20, 23))}, r"calibration samples of .* \(samples, 20, 24\), not \(2, 20, 23\)"),
    ({"x": np.zeros((0, 20, 24))}, r"calibration samples of .* \(samples, 20, 24\), not \(0, 20, 24\)"),
    ({"x": np.full((1, 20, 24), np.nan)}, "calibration: output of 'x' is not finite"),
])  # fmt: skip
def test_calibration_refused(calibration, text):
    with pytest.raises(QuantiseError, match=text):
        quantise([transformer(layers=1)], calibration, Precision.parse("w8a8"))


def test_progress_counts_samples_and_layers():
    told = []
    graph = transformer(layers=1)
    quantise([graph], samples(graph, 3), Precision.parse("w8a8"), lambda *args: told.append(args))
    assert [t for t in told if t[0] == "calibrate"] == [("calibrate", i, 3) for i in range(4)]
    assert told[-1] == ("quantise", 7, 7)
