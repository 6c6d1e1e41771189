"""Attention of any heads."""

import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import heads_of
from patchloom.compiler.nodes import Attention
from tests.compiler.graphs import Builder, check, one


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
