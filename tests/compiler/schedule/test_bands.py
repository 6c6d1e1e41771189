"""Bands of sparse matrices."""

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.schedule.bands import bands

CONFIG = Config(max_rows=16)
MATRICES = {
    "diagonal": np.eye(100),
    "dense": np.ones((40, 30)),
    "zero": np.zeros((20, 30)),
    "first rows are zero": np.vstack([np.zeros((5, 60)), np.eye(60)]),
    "last row alone": np.eye(50)[[0, 1, 2, 49]],
    "random": np.random.default_rng(0).random((70, 90)) < 0.05,
}


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("name", MATRICES)
def test_bands_hold_the_matrix(name: str, step: int):
    matrix, rows = MATRICES[name], 0
    for band in bands(matrix, CONFIG, step):
        assert band.first == rows
        assert 0 < band.last - band.first <= CONFIG.max_rows
        assert band.low % step == 0
        assert 0 <= band.low < band.high <= matrix.shape[1]
        assert band.of(matrix).sum() == matrix[band.first : band.last].sum()
        rows = band.last
    assert rows == len(matrix)


def test_a_diagonal_costs_little():
    cost = sum((band.last - band.first) * (band.high - band.low) for band in bands(np.eye(1024), CONFIG))
    assert cost <= 1024 * 16
