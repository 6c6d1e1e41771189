"""The benchmark's own arithmetic: assignments, tables, the shell around a machine."""

import json

import pytest
import torch

from benchmarks.configs import BUDGET, CONFIGS, DEVICES
from benchmarks.m3vit_t.weights import assignment, loads
from benchmarks.run import LATENCIES, PAGE, RESULTS, Workload, reference, routed_as_published, table, workload
from patchloom.boards.area import shell
from patchloom.compiler.schedule import schedule
from patchloom.sim.cycles import predict


@pytest.mark.parametrize("top_k", [2, 4])
@pytest.mark.parametrize("layer", [1, 9])
def test_assignment(top_k, layer):
    counts = loads(top_k, 1, layer)
    chosen = assignment(counts, 129, top_k, torch.Generator().manual_seed(0))
    assert chosen.sum(dim=0).tolist() == counts
    assert set(chosen.sum(dim=1).tolist()) == {top_k}


def test_impossible_assignment():
    with pytest.raises(ValueError, match=r"loads \[3, 0\] must be of 3 tokens with 2 experts each"):
        assignment([3, 0], 3, 2, torch.Generator().manual_seed(0))


def test_shell():
    text = """module \\top
  wire width 1 input 0  \\clk
  wire width 1 input 1  \\rst
  wire width 8 input 2  \\a
  wire width 3 \\inner
  wire width 4 output 3  \\b
  cell \\x \\y
end
"""
    made = shell(text)
    assert "top top(.clk(clk), .rst(reset[1]), .a(given[0 +: 8]), .b(made_b));" in made
    assert "reg [7:0] given;" in made


@pytest.fixture(scope="module")
def work() -> Workload:
    return workload()


def test_the_small_machine_has_what_the_workload_needs(work):
    config = CONFIGS["ulx3s"]
    program = schedule(work.quantised, config)
    for task in program.tasks:
        assert len(task.commands) <= config.command_depth < len(task.commands) + 64
        assert max(buffer.address + buffer.chunks for buffer in task.buffers) <= config.scratchpad_chunks


def test_names():
    assert CONFIGS.keys() == DEVICES.keys() == BUDGET.keys()


def test_committed_results(work):
    """The figures of one machine are what its program takes today; the page's table is theirs."""
    rows = json.loads(RESULTS.read_text())["configs"]
    program = schedule(work.quantised, CONFIGS["zcu102"])
    for number, task in enumerate(program.tasks):
        expected = reference(work, program, task)
        assert routed_as_published(work, expected, number)
        ours = {row["memory_latency"]: row for row in rows if (row["config"], row["task"]) == ("zcu102", task.name)}
        assert ours.keys() >= set(LATENCIES)
        for latency, row in ours.items():
            prediction = predict(program, task.name, queues=expected.routed, latency=latency)
            assert row["cycles"] == prediction.cycles
            assert row["bytes_read"] == prediction.beats_read * program.config.beat_bytes
            assert (row["macs"], row["weight_bytes"]) == (task.macs, expected.weight_bytes)
    for row in rows:
        assert row["identical"]
        assert all(row[part] <= most for part, most in BUDGET[row["config"]].items() if row[part] is not None)
    assert table(rows) in PAGE.read_text()
