"""Products of two activations, and softmax, outside of attention."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import GraphError, View, heads_of, whole
from patchloom.compiler.nodes import Constant, Products, Shares
from patchloom.compiler.quantise.errors import QuantiseError
from tests.compiler.graphs import Builder, check, compiled, one

b = Builder()
QKV = b.matmul("qkv", b.input(9, 24), 48)
Q, K, V = (heads_of(QKV, first, 8) for first in ([0, 8], [16, 24], [32, 40]))
SMALL = Config(lanes=4, inputs=8, outputs=8, max_rows=16)


def turned(view: View) -> View:
    return view.pick(view.index.swapaxes(1, 2))


@pytest.mark.parametrize("config", [Config(), SMALL], ids=["usual", "small"])
@pytest.mark.parametrize(("precision", "bound"), [("w8a8", 25), ("w16a16", 60)])
def test_products(precision: str, bound: float, config: Config):
    scores = Products(name="scores", a=Q, b=turned(K), scale=0.3)
    assert scores.macs == 2 * 9 * 9 * 8
    check(one(scores), config, bound, precision)
    check(one(Products(name="values", a=V, b=turned(V), scale=0.3)), config, bound, precision)
    weights = Shares(name="weights", x=heads_of(scores, [0, 9], 9))
    check(one(Products(name="values", a=heads_of(weights, [0, 9], 9), b=V)), config, bound, precision)


@pytest.mark.parametrize("config", [Config(), SMALL], ids=["usual", "small"])
@pytest.mark.parametrize(("precision", "bound"), [("w8a8", 25), ("w16a16", 60)])
def test_shares(precision: str, bound: float, config: Config):
    shares = Shares(name="shares", x=Q, scale=0.7)
    check(one(b.matmul("proj", shares, 10)), config, bound, precision)
    stacked = whole(QKV).pick(whole(QKV).index.reshape(3, 3, 48)[:, :, :16])
    check(one(b.matmul("proj", Shares(name="shares", x=stacked, windows=3), 10)), config, bound, precision)


def test_a_softmax_of_what_is_stored_too_coarsely():
    low = Constant(name="low", value=np.array([[0, -1e4]], np.float32))
    shares = Shares(name="shares", x=whole(low).reshape(1, 1, 2))
    with pytest.raises(QuantiseError, match=r"shares 'shares': its operand lies in steps of 0\.46,"):
        compiled(one(shares), "w8a8")


def test_refused():
    products = Products(name="p", a=Q, b=turned(K))
    with pytest.raises(GraphError, match="products 'p' has 8 columns and 9 rows"):
        replace(products, b=K)
    with pytest.raises(GraphError, match="products 'p' has 2 heads and 1"):
        replace(products, b=turned(K.pick(K.index[:1])))
    with pytest.raises(GraphError, match="products 'p' has 2 heads in 3 windows"):
        replace(products, windows=3)
