"""Predicted cycles against those that the RTL counts, to the cycle."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise, product
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiler.machine.commands import Command, Kind, Queue, Space, Stationary
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.layout import stream_beats
from patchloom.compiler.machine.program import Program, Task, command_table
from patchloom.host.errors import DeviceError
from patchloom.host.session import Session
from patchloom.sim import cycles
from patchloom.sim.cycles import (
    MACHINES,
    WAITS,
    CycleError,
    Prediction,
    Routed,
    compare,
    main,
    predict,
    queue_lengths,
    random_program,
)
from patchloom.sim.device import SimulatedDevice
from tests.compiler.golden import matches
from tests.compiler.graphs import compiled, random_graph, transformer
from tests.sim.test_machine import CONFIGS

# A bus as wide as a column, wider than a whole tile, of a quarter of a column; rows that wait for the epilogue.
BUILT = {
    "bus64": CONFIGS["8 x 8, bus of 64"], "bus512": MACHINES[1], "bus32": CONFIGS["16 x 8, bus of 32, 1 copy"],
    "1 lane": CONFIGS["8 x 4, 1 lane, bus of 64, 1 copy"],
}  # fmt: skip
MEMORIES = [
    {"latency": latency, "cycles_per_beat": per_beat, "outstanding": outstanding, "refresh_period": period,
     "refresh_cycles": period // 20}
    for (latency, per_beat), outstanding, period in zip(
        product((1, 20, 200), (1, 3)), (2, 32, 1, 8, 32, 3), (0, 0, 400, 0, 390, 61), strict=True)
]  # fmt: skip

machines = pytest.mark.parametrize("config", BUILT.values(), ids=BUILT)


def counted(program: Program, inputs: np.ndarray, memory: dict[str, int], task: str | None = None) -> tuple:
    with SimulatedDevice(program.config, **memory, memory_bytes=1 << 26) as device:
        frame = Session(device, program).frame(inputs, task)[1]
        return frame, device.traffic.read_beats, device.traffic.write_beats


def predicted(program: Program, inputs: np.ndarray, memory: dict[str, int], task: str | None = None) -> tuple:
    p = predict(program, task, queues=queue_lengths(program, task, inputs), **memory)
    return p.cycles, p.beats_read, p.beats_written


def region(program: Program) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, program.tasks[0].input_bytes // 2).astype(np.int16)


def written(config: Config, *commands: Command) -> Program:
    """One task of these commands."""
    begin = Command(kind=Kind.BEGIN, rows=len(commands) + 2, epsilon=config.fingerprint)
    task = Task("main", (begin, *commands, Command(kind=Kind.END)), (), (), 1 << 16, 1 << 16, 0)
    return Program(config, "exact", (task,), command_table(config, [task.commands]) + bytes(1 << 20))


# --- The same number as the RTL's ---


@machines
def test_random_commands(config):
    for seed in range(3):
        for comparison in compare(config, seed):
            assert comparison.predicted == comparison.rtl, comparison


@machines
def test_models(config):
    """A transformer with experts and a graph of anything: every memory on one of them."""
    graphs = (transformer(tokens=11, dim=16, layers=2, experts=4), random_graph(12))
    precision = "w16a16" if config.weight_width == 16 else "w8a16"
    for number, memory in enumerate(MEMORIES):
        program = compiled(graphs[number % 2], precision, config)
        inputs = region(program)
        assert predicted(program, inputs, memory) == counted(program, inputs, memory), memory


GOLDEN = {
    "dense": transformer(tokens=11, dim=16, layers=1),
    "mixture": transformer(tokens=11, dim=16, layers=2, experts=4),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    """The first cycle and the end of each command, and the RTL's sum: a slower machine is one that fails here."""
    config, memory = BUILT["bus64"], {"latency": 20, "cycles_per_beat": 1, "outstanding": 8}
    program = compiled(GOLDEN[name], "w8a8", config)
    inputs = region(program)
    p = predict(program, queues=queue_lengths(program, None, inputs), **memory)
    assert counted(program, inputs, memory) == (p.cycles, p.beats_read, p.beats_written)
    rows = zip(p.per_command, program.tasks[0].notes, strict=True)
    text = "".join(f"{begin:6} {end:6}  {note}\n" for (begin, end), note in rows)
    assert matches(text, Path(__file__).parent / "golden" / f"{name}.txt")


def test_command_that_never_ends():
    """Fewer beats are asked for than the LOAD waits for."""
    config = BUILT["bus64"]
    load = Command(kind=Kind.LOAD, rows=8, dma_beats=7)
    program = written(config, replace(load, dma_beats=8), load)
    with pytest.raises(CycleError, match="command 2, LOAD, never ends"):
        predict(program, queues=[])
    with SimulatedDevice(config) as device, pytest.raises(DeviceError, match="WATCHDOG at command 2"):
        Session(device, program, watchdog=1000).frame(region(program))


def test_a_route_waits_for_who_is_behind():
    """All tokens choose the first expert; the others' weights, which were expected, still come while it is done."""
    config, memory = BUILT["bus64"], {"latency": 200, "outstanding": 1}
    logits = Command(kind=Kind.LOAD, rows=16, dma_space=Space.INPUT, dma_beats=16 * config.lanes * 2 // 8)
    route = Command(kind=Kind.ROUTE, rows=16, columns=6, top_k=1, a_stride=1)
    size = stream_beats(config, 64, 32, 1)
    expert = Command(
        kind=Kind.MATMUL, rows=16, depth=64, columns=32, a_address=64, a_stride=16, o_address=512, o_stride=8,
        b_digits=1, dma_address=config.command_depth * 64, dma_beats=size, queue=Queue.GATHER, expected=1,
    )  # fmt: skip
    experts = [replace(expert, expert=number) for number in range(6)]
    program = written(config, logits, route, *experts, route, *experts)
    zeros = np.zeros_like(region(program))
    lengths = Routed((16, 0, 0, 0, 0, 0), (0, -1, -1, -1, -1, -1))
    p = predict(program, queues=[lengths] * 2, **memory)
    assert counted(program, zeros, memory) == (p.cycles, p.beats_read, p.beats_written)
    assert p.waits["issuer.behind"] > size


# --- What else a prediction says ---


def beats(config: Config, task: Task, lengths: list[int]) -> list[int]:
    """Of each command: how often the array multiplies."""
    wide = config.activation_width == 8
    return [
        (lengths[c.expert] if c.queue else c.rows) * -(-c.depth // config.inputs) * -(-c.columns // config.outputs)
        * c.b_digits * (1 + c.a_wide * wide)
        for c in task.commands
    ]  # fmt: skip


def mixtures(config: Config) -> Iterator[tuple[Program, Task, list, Prediction]]:
    """Random tasks with one ROUTE, without end."""
    for seed in itertools.count():
        program, inputs = random_program(config, seed)
        for task in program.tasks:
            if sum(c.kind == Kind.ROUTE for c in task.commands) == 1:
                queues = queue_lengths(program, task.name, inputs)
                yield program, task, queues, predict(program, task.name, queues=queues)


@machines
def test_where_cycles_go(config):
    for _, task, queues, p in islice(mixtures(config), 20):
        assert [p.per_command[0][0], p.per_command[-1][1]] == [0, p.cycles]
        assert all(end == begin for (_, end), (begin, _) in pairwise(p.per_command))
        multiplied = beats(config, task, list(queues[0].lengths))
        for command, count, (begin, end), waits in zip(
            task.commands, multiplied, p.per_command, p.waits_per_command, strict=True
        ):
            issuer = sum(cycles for name, cycles in waits.items() if name.startswith("issuer."))
            assert end - begin - issuer == (count if command.kind == Kind.MATMUL else 0)
        issued = [end for _, end in p.per_command]
        assert all(ends == sorted(ends) for ends in p.ahead.values())
        assert sum(p.ahead["fetcher"]) < sum(p.ahead["stager"])
        staged = zip(p.ahead["stager"], issued, multiplied, strict=True)
        assert all(ahead <= end for ahead, end, count in staged if count)  # else the stager may have weights to drop
        assert set(p.waits) == set(WAITS)
        for unit in cycles.UNITS:
            assert 0 < sum(n for name, n in p.waits.items() if name.startswith(f"{unit}.")) <= p.cycles


def test_waits_name_the_cause():
    """The same work, held up by the memory's bandwidth, its latency, or by nothing."""
    config = BUILT["bus64"]
    product_ = Command(
        kind=Kind.MATMUL, rows=20, depth=64, columns=32, a_stride=16, b_source=Stationary.MEMORY, b_digits=1,
        dma_address=config.command_depth * 64, dma_beats=8 * (4 + 8 * 4),
    )  # fmt: skip
    program = written(config, product_, product_)
    quick, narrow, late = (
        predict(program, queues=[], **memory)
        for memory in ({"latency": 1}, {"latency": 1, "cycles_per_beat": 20}, {"latency": 2000, "outstanding": 1})
    )
    assert quick.waits["issuer.weights"] < 10
    assert quick.waits["memory.bandwidth"] == 0
    assert narrow.waits["memory.bandwidth"] > 0.9 * narrow.cycles
    assert late.waits["memory.latency"] > 0.9 * late.cycles
    for slow in (narrow, late):
        assert slow.waits["issuer.weights"] > 0.5 * slow.cycles - quick.cycles
        assert slow.beats_read == quick.beats_read == 8 * 5 + 2 * product_.dma_beats  # BEGIN is read twice


def test_lengths_alone():
    """Nearly the same without when each queue got its first token; the same where no weights are fetched for it."""
    equal = []
    for program, task, queues, exact in islice(mixtures(BUILT["bus64"]), 80):
        near = predict(program, task.name, queues=[queue.lengths for queue in queues])
        assert abs(near.cycles - exact.cycles) < 0.1 * exact.cycles
        assert near.beats_read == exact.beats_read
        equal.append(near.cycles == exact.cycles)
        assert equal[-1] or any(c.queue and c.b_source == Stationary.MEMORY for c in task.commands)
    assert True in equal
    assert False in equal


def test_queues_must_fit():
    program, task, queues, _ = next(mixtures(BUILT["bus64"]))
    for wrong in ([], [*queues, *queues], [queues[0].lengths[1:]]):
        with pytest.raises(ValueError, match="queues must be those of 1 ROUTEs, one length per expert"):
            predict(program, task.name, queues=wrong)


def test_quick():
    """A frame of the size of M3ViT-T's."""
    config = Config(inputs=32, outputs=32, lanes=32, bus_width=256)
    one = Command(
        kind=Kind.MATMUL, rows=129, depth=192, columns=96, b_source=Stationary.MEMORY, b_digits=1,
        dma_address=config.command_depth * 64, dma_beats=3 * (config.parameter_beats + 6 * config.tile_beats),
    )  # fmt: skip
    program = written(replace(config, command_depth=512), *[one] * 350)
    predict(program, queues=[])  # built
    begun = time.process_time()
    p = predict(program, queues=[])
    assert p.cycles > 800_000
    assert time.process_time() - begun < 1


# --- The sweep ---


def test_check(tmp_path, monkeypatch, capsys):
    output = tmp_path / "check.json"
    check = cycles.check
    monkeypatch.setattr(cycles, "check", lambda count, seed: check(count, seed, MACHINES[1:2]))
    assert main(["check", "--count", "2", "--seed", "70", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [result["programs"], result["mismatches"]] == [2, []]
    assert result["cycles"] > 1000
    assert json.loads(capsys.readouterr().out) == result

    def early(*args, **kwargs) -> Prediction:
        p = predict(*args, **kwargs)
        return replace(p, cycles=p.cycles - 1)

    monkeypatch.setattr(cycles, "predict", early)
    assert main(["check", "--count", "1", "--output", str(output)]) == 1
    [mismatch, *_] = json.loads(output.read_text())["mismatches"]
    assert mismatch["rtl"][0] == mismatch["predicted"][0] + 1
