"""The benchmark's own arithmetic: assignments, tables, the shell around a machine."""

import json

import pytest
import torch

from benchmarks.area import shell
from benchmarks.configs import BUDGET, CONFIGS, DEVICES
from benchmarks.m3vit_t.model import TASKS
from benchmarks.m3vit_t.weights import assignment, loads
from benchmarks.run import LATENCIES, PAGE, RESULTS, table, workload
from patchloom.compiler.schedule import schedule

ROW_KEYS = {
    "config", "task", "memory_latency", "cycles", "utilisation", "roofline_share", "identical", "bytes_read", "dsp",
    "bram", "lut", "ff", "fmax_mhz", "sim_khz",
}  # fmt: skip


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


def test_the_small_machine_has_what_the_workload_needs():
    config = CONFIGS["ulx3s"]
    program = schedule(workload().quantised, config)
    for task in program.tasks:
        assert len(task.commands) <= config.command_depth < len(task.commands) + 64
        assert max(buffer.address + buffer.chunks for buffer in task.buffers) <= config.scratchpad_chunks


def test_names():
    assert CONFIGS.keys() == DEVICES.keys() == BUDGET.keys()


def test_committed_results():
    rows = json.loads(RESULTS.read_text())["configs"]
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert row["identical"]
        assert row["loads_as_published"]
        assert row["saturations"] == row["interpreter_saturations"]
        assert row["cycles"] == row["predicted_cycles"]
        assert row["weight_bytes_ratio"] <= 1.02
        assert row["roofline_share"] >= 0.9 or row["config"] == "zcu102-wide"
        budget = BUDGET[row["config"]]
        assert all(row[part] <= most for part, most in budget.items() if row[part] is not None)
    assert {(row["config"], row["task"], row["memory_latency"]) for row in rows} >= {
        (config, task, latency) for config in ("ulx3s", "mid", "zcu102") for task in TASKS for latency in LATENCIES
    }
    assert table(rows) in PAGE.read_text()
