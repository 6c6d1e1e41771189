"""Everything that does not fit is told at once, with what would help."""

import re

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import FitError, schedule
from tests.compiler.graphs import Builder, check, compiled, fit_error, one, samples, transformer


def chunks(program: Program) -> int:
    return max(b.address + b.chunks for b in program.tasks[0].buffers)


def test_everything_that_does_not_fit_is_reported_at_once():
    config = Config(max_rows=16, max_experts=2, max_top_k=2, command_depth=16, scratchpad_chunks=64, statistics_rows=16)
    graph = transformer(tokens=40, experts=4)
    quantised = quantise([graph], samples(graph, 2), Precision.parse("w8a8"))
    with pytest.raises(FitError) as error:
        schedule(quantised, config)
    lines = str(error.value).splitlines()
    assert all(re.fullmatch(r"does not fit: .* needs \d+, has \d+; try .*", line) for line in lines)
    for what in ("tokens of a mixture", "experts", "scratchpad (chunks)", "row statistics (rows)", "commands"):
        assert any(what in line for line in lines), what


def test_tokens_of_a_mixture():
    b = Builder()
    graph = one(b.moe("moe", b.matmul("embed", b.input(20, 16), 16), 4, 16))
    assert fit_error(graph, max_rows=16) == (
        "does not fit: 'moe': tokens of a mixture of experts needs 20, has 16; try Config(max_rows=20)"
    )


def test_experts_and_choices():
    b = Builder()
    graph = one(b.moe("moe", b.matmul("embed", b.input(20, 16), 16), 6, 16, top_k=5))
    assert fit_error(graph, max_experts=4) == (
        "does not fit: 'moe': experts needs 6, has 4; try Config(max_experts=6)\n"
        "does not fit: 'moe': experts per token needs 5, has 4; try Config(max_top_k=5, max_experts=6)"
    )


def test_commands():
    graph = transformer(layers=2)
    assert "does not fit: task 'main': commands needs 24, has 16; try Config(command_depth=64)" in fit_error(
        graph, command_depth=16
    )


def test_scratchpad():
    b = Builder()
    x = b.input(100, 16)
    graph = one(b.matmul("a", x, 16, residual=x))
    assert fit_error(graph, scratchpad_chunks=64) == (
        "does not fit: task 'main': scratchpad (chunks) needs 200, has 64; try Config(scratchpad_chunks=200)"
    )
    assert chunks(compiled(graph, "w8a8", Config(scratchpad_chunks=200))) == 200


def test_scratchpad_that_more_commands_would_spare():
    b = Builder()
    graph = one(b.matmul("a", b.input(100, 16), 16))
    assert fit_error(graph, scratchpad_chunks=70, command_depth=8) == (
        "does not fit: task 'main': scratchpad (chunks) needs 100, has 70; "
        "try Config(scratchpad_chunks=100) or Config(command_depth=64)"
    )


def test_commands_are_not_what_a_scratchpad_lacks():
    """Queries cut down to rows would take thousands of commands."""
    text = fit_error(transformer(tokens=100, layers=1), scratchpad_chunks=64)
    assert re.fullmatch(r"does not fit: task 'main': scratchpad \(chunks\) needs \d+, .*; try .*chunks=\d+\)", text)


def test_statistics_rows():
    b = Builder()
    graph = one(b.matmul("a", b.matmul("x", b.input(20, 16), 16), 16, epsilon=1e-6))
    assert fit_error(graph, statistics_rows=16) == (
        "does not fit: task 'main': row statistics (rows) needs 20, has 16; try Config(statistics_rows=20)"
    )


def test_features_that_are_normalised():
    b = Builder()
    text = fit_error(one(b.matmul("a", b.matmul("x", b.input(2, 8), 4112), 8, epsilon=1e-3)))
    assert "does not fit: 'a': normalised features needs 4112, has 4096; try fewer features" in text


def test_accumulator_names_node_and_channel():
    b = Builder()
    x = b.matmul("a", b.input(4, 64), 16)
    x.weight[:] *= 0.01
    x.weight[5] = 1
    text = fit_error(one(x), "w16a16", accumulator_width=32)
    assert re.fullmatch(
        r"does not fit: accumulator of 'a', channel 5, needs (3\d), has 32; try Config\(accumulator_width=\1\)", text
    )


def test_wide_weights_give_way_to_the_accumulator():
    """4096 features of 16 bits would need 43 bits; the channels' scales leave room instead."""
    b = Builder()
    x = b.matmul("a", b.input(2, 4096), 16)
    x.weight[:] = np.where(x.weight > 0, 1, -1)
    check(one(x), bound=60)


def test_attention_accumulator():
    b = Builder()
    graph = one(b.attention("attention", b.matmul("qkv", b.input(20, 16), 48), 1, 16))
    text = fit_error(graph, "w16a16", accumulator_width=32)
    for what in ("scores", "values"):
        need = f"accumulator of 'attention' {what}, every channel, needs 36, has 32; try Config(accumulator_width=36)"
        assert need in text
    graph = one(b.attention("attention", b.matmul("qkv", b.input(4, 16), 3 * 512), 1, 512))
    assert "scores, every channel, needs 41, has 40; try 8-bit activations for this layer" in fit_error(graph, "w16a16")
    compiled(graph, "w16a16", attention="w16a8")


def test_attention_is_bounded_by_the_digits_that_hold_it():
    """Keys of 8 bits lie in a digit of 16 that limits them to no less."""
    b = Builder()
    graph = one(b.attention("attention", b.matmul("qkv", b.input(8, 16), 3 * 64), 1, 64))
    native = {"weight_width": 16, "activation_width": 16}
    text = fit_error(graph, "w8a8", accumulator_width=28, **native)
    assert (
        "accumulator of 'attention' scores, every channel, needs 30, has 28; try Config(accumulator_width=30)" in text
    )
    compiled(graph, "w8a8", Config(accumulator_width=30, **native))
    compiled(graph, "w8a8", Config(accumulator_width=28))


def test_a_stride_beyond_the_command():
    b = Builder()
    graph = one(b.matmul("a", b.input(1, 8 * 4096), 4))
    text = fit_error(graph, inputs=4, outputs=4, lanes=4)
    assert "does not fit: 'x: load'" not in text
    assert "a_stride must lie in 0 to 4095, not 4096" in text
