"""Attention of any heads."""

from dataclasses import replace

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import heads_of, whole
from patchloom.compiler.nodes import Attention
from patchloom.compiler.quantise.errors import QuantiseError
from tests.compiler.graphs import Builder, check, compiled, one, quality, run


@pytest.mark.parametrize(("head_dim", "lanes"), [(12, 16), (20, 16), (6, 4), (16, 16)])
def test_heads_that_fill_no_chunk(head_dim, lanes):
    b = Builder()
    qkv = b.matmul("qkv", b.input(9, 24), 3 * 3 * head_dim)
    out = b.matmul("proj", b.attention("attention", qkv, 3, head_dim), 10)
    check(one(out), Config(lanes=lanes))


def test_heads_of_an_input_and_of_a_mixture():
    b = Builder()
    mixture = b.moe("moe", b.input(7, 36), 3, 16, epsilon=None, residual=None)
    for x in (mixture, b.input(7, 36)):
        check(one(b.matmul("proj", b.attention("attention", x, 1, 12), 10)))


def test_attention_across_streams_with_shared_keys():
    b = Builder()
    q, kv = b.matmul("q", b.input(11, 20), 48), b.matmul("kv", b.input(23, 20, "z"), 24)
    columns = (0, 12, 24, 36)
    k, v = heads_of(kv, [0] * 4, 12), heads_of(kv, [12] * 4, 12)
    attention = Attention(name="cross", q=heads_of(q, columns, 12), k=k, v=v, scale=0.3)
    check(one(b.matmul("proj", attention, 16)))


def test_attention_twice():
    b = Builder()
    first = b.attention("first", b.matmul("qkv", b.input(9, 24), 48), 1, 16)
    head = heads_of(first, [0], 16)
    second = Attention(name="second", q=head, k=head, v=head, scale=0.25)
    check(one(second))


def test_attention_output_is_added_and_normalised():
    b = Builder()
    x = b.input(9, 32)
    attention = b.attention("attention", b.matmul("qkv", x, 96), 2, 16)
    added = b.matmul("added", x, 32, residual=attention)
    check(one(b.matmul("head", added, 8, epsilon=1e-5)))
    check(one(b.matmul("head", attention, 8, epsilon=1e-5)))


def biased(bias: np.ndarray, tokens: int = 9) -> Attention:
    """Two heads of a layer over tokens of an input."""
    b = Builder()
    attention = b.attention("attention", b.matmul("qkv", b.input(tokens, 24), 48), 2, 8)
    bias = np.broadcast_to(bias, (2, tokens, tokens)).astype(np.float32)
    return replace(attention, bias=bias - bias.max(2, keepdims=True))


CAUSAL = np.where(np.tri(9), 0, -1e30)
BIASES = {
    "relative": Builder(1).normal(2, 9, 9, scale=3),
    "causal": CAUSAL,
    "both": CAUSAL + Builder(1).normal(2, 9, 9),
    "hundred": np.where(np.tri(9), 0, -100),
    "wide": np.linspace(0, -40, 81).reshape(9, 9),
}


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize(("precision", "bound"), [("w8a8", 30), ("w16a16", 60)])
def test_biased(name: str, precision: str, bound: float):
    graph = one(Builder().matmul("proj", biased(BIASES[name]), 10))
    check(graph, bound=bound, precision=precision)
    small = Config(max_rows=16, scratchpad_chunks=156, lanes=4, inputs=8, outputs=8)
    assert quality(graph, compiled(graph, precision, small)) > bound


@pytest.mark.parametrize("scale", [0.3, 10.0])
@pytest.mark.parametrize("precision", ["w8a8", "w16a16"])
def test_what_is_hidden_has_no_weight(precision: str, scale: float):
    """Not on any input: the keys that queries do not see have no part in them, whatever they are."""
    graph = one(replace(biased(CAUSAL), scale=scale))
    program = compiled(graph, precision)
    rng = np.random.default_rng(0)
    for size in (1, 30, 1000):
        x = rng.normal(size=(9, 24)).astype(np.float32) * size
        other = x.copy()
        other[5:] = rng.normal(size=(4, 24)) * size
        ours, theirs = run(program, {"x": x})["y"], run(program, {"x": other})["y"]
        assert np.array_equal(ours[:5], theirs[:5])
        assert not np.array_equal(ours[5:], theirs[5:])


def test_windows():
    """Heads of some rows each."""
    b = Builder()
    qkv = b.matmul("qkv", b.input(12, 24), 48)
    index = whole(qkv).index.reshape(3, 4, 3, 2, 8).transpose(2, 0, 3, 1, 4).reshape(3, 6, 4, 8)
    q, k, v = (whole(qkv).pick(part) for part in index)
    bias = b.normal(6, 4, 4)
    attention = Attention(name="attention", q=q, k=k, v=v, scale=0.3, windows=3, bias=bias - bias.max(2, keepdims=True))
    assert attention.shape == (12, 16)
    check(one(b.matmul("proj", attention, 10)))
    check(one(b.matmul("proj", replace(attention, bias=None), 10)))


def test_some_rows_as_keys():
    b = Builder()
    qkv = b.matmul("qkv", b.input(12, 24), 48)
    q, k, v = (heads_of(qkv, first, 8) for first in ([0, 8], [16, 24], [32, 40]))
    k, v = (view.pick(view.index[:, 3:8]) for view in (k, v))
    for cut in ({}, {"scratchpad_chunks": 128, "max_rows": 16}):
        check(one(b.matmul("proj", Attention(name="attention", q=q, k=k, v=v, scale=0.3), 10)), Config(**cut))


def test_scores_too_far_apart_for_a_bias():
    with pytest.raises(
        QuantiseError, match=r"attention 'attention': scores reach .*, too far for a softmax of 16 bits"
    ):
        compiled(one(replace(biased(CAUSAL), scale=800.0)), "w8a8")
