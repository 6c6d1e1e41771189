"""Products with learned weights."""

import pytest

from tests.compiler.graphs import Builder, check, one


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_activations(activation):
    b = Builder()
    check(one(b.matmul("a", b.matmul("b", b.input(9, 20), 40, activation=activation), 20, activation=activation)))


def test_residual_input():
    b = Builder()
    x = b.input(9, 20)
    check(one(b.matmul("a", x, 20, residual=x, activation="relu")))


def test_rows_of_a_matmul():
    b = Builder()
    x = b.matmul("x", b.input(9, 20), 24)
    check(one(b.matmul("a", b.matmul("b", x, 24, rows=(3, 8)), 8, rows=(2, 4), epsilon=1e-6)))
