"""What a kind of node multiplies."""

from tests.compiler.graphs import Builder


def test_macs_are_the_models():
    b = Builder()
    qkv = b.matmul("qkv", b.input(10, 8), 48)
    assert qkv.macs == 10 * 8 * 48
    attention = b.attention("attention", qkv, 2, 8)
    assert attention.macs == 2 * 10 * 10 * (8 + 8)
    assert b.moe("moe", attention, 4, 32, top_k=2).macs == 10 * (16 * 4 + 2 * 2 * 16 * 32)
