"""The reference workload on simulated machines, beside what was published: `python -m benchmarks.run`.

Every frame runs on the interpreter and on the RTL, whole; cycles are those that the machine counts itself.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.area import measured
from benchmarks.configs import CONFIGS
from benchmarks.m3vit_t.model import TASKS, M3ViT, MoEBlock
from benchmarks.m3vit_t.weights import build, loads
from docs.page import DOCS, write
from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.machine.commands import COMMAND_BYTES, Kind, Queue, Stationary
from patchloom.compiler.machine.frames import input_region
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import schedule
from patchloom.host.session import Session
from patchloom.sim.cycles import Routed, predict, queue_lengths
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.interpret import execute

RESULTS = Path(__file__).parent / "results" / "m3vit_t.json"
PAGE = DOCS / "benchmarks.md"
LATENCIES = (1, 200)  # cycles to the first beat of a burst: on-chip memory, and worse than most DRAM controllers
REPEATS = 5

# Published on a ZCU102 at 300 MHz with this model: milliseconds, DSP48E2.
PUBLISHED = {"Edge-MoE": (34.6, None), "UbiMoE": (25.8, 1850), "CoQMoE": (6.47, 1754)}
MEGAHERTZ = 300
MACS = 782.7e6

Elements = NDArray[np.int16]
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, eq=False)
class Workload:
    model: M3ViT
    image: torch.Tensor
    quantised: Quantised


def workload(top_k: int = 2) -> Workload:
    model, image = build(top_k)
    graphs = capture(model, (image, 0), tasks=TASKS)
    return Workload(model, image, quantise(graphs, {"image": image.numpy()}, Precision.parse("w8a8")))


# --- One frame ---


@dataclass(frozen=True, eq=False)
class Reference:
    """What the interpreter says of one task's frame."""

    region: Elements
    output: Elements
    saturations: int
    weight_bytes: int  # as stored, parameters included, once each, of all products but those of experts nobody chose
    other_bytes: int  # read besides: commands, inputs, constants
    queues: list[list[int]]  # tokens of each expert, per mixture layer
    routed: list[Routed]  # the same for the cycle model


def reference(work: Workload, program: Program, task: Task) -> Reference:
    region, _ = input_region(task, {"image": work.image[0].numpy()})
    config, routed = program.config, queue_lengths(program, task.name, region)
    commands = -(-len(task.commands) // config.word_commands) + 1  # words, the first one twice
    other = commands * config.word_commands * COMMAND_BYTES
    other += sum(c.dma_beats for c in task.commands if c.kind in (Kind.LOAD, Kind.TABLE)) * config.beat_bytes
    weights: dict[int, int] = {}  # bytes by address
    routes, lengths = iter(routed), ()
    for c in task.commands:
        if c.kind == Kind.ROUTE:
            lengths = next(routes).lengths
        elif c.kind == Kind.MATMUL and c.b_source == Stationary.MEMORY:
            idle = c.queue != Queue.NONE and not lengths[c.expert]
            weights[c.dma_address] = 0 if idle else c.dma_beats * config.beat_bytes
    queues = [
        [length for _, length in sorted(zip(order, route.lengths, strict=True))]
        for order, route in zip(task.experts, routed, strict=True)
    ]
    output, saturations = execute(program, task.name, region)
    return Reference(region, output, saturations, sum(weights.values()), other, queues, routed)


def measure(name: str, program: Program, task: Task, latency: int, expected: Reference) -> dict[str, Any]:
    """One row of the results."""
    config = program.config
    with SimulatedDevice(config, latency=latency) as device, Session(device, program) as session:
        begin = time.perf_counter()
        output, cycles, saturations = session.frame(expected.region, task.name)
        seconds = time.perf_counter() - begin
        read = device.traffic.read_beats * config.beat_bytes
        stalls = {key: device.read(key) for key in ("stall_weights", "stall_writes")}
    multipliers = config.inputs * config.outputs
    bound = max(task.macs / multipliers, expected.weight_bytes / config.beat_bytes)
    return {
        "config": name,
        "task": task.name,
        "memory_latency": latency,
        "cycles": cycles,
        "predicted_cycles": predict(program, task.name, queues=expected.routed, latency=latency).cycles,
        "utilisation": round(task.macs / (cycles * multipliers), 4),
        "roofline_share": round(bound / cycles, 4),
        "identical": bool(np.array_equal(output, expected.output)),
        "bytes_read": read,
        "sim_khz": round(cycles / seconds / 1e3, 1),
        "sim_seconds": round(seconds, 1),
        "macs": task.macs,
        "weight_bytes": expected.weight_bytes,
        "weight_bytes_read": read - expected.other_bytes,
        "weight_bytes_ratio": round((read - expected.other_bytes) / expected.weight_bytes, 4),
        "saturations": saturations,
        "interpreter_saturations": expected.saturations,
        **stalls,
    }


def routed_as_published(work: Workload, expected: Reference, task: int) -> bool:
    """Quantised, too, every gate sends the published number of tokens to every expert."""
    mixtures = {layer: block.moe for layer, block in enumerate(work.model.layers()) if isinstance(block, MoEBlock)}
    return expected.queues == [loads(moe.top_k, task, layer) for layer, moe in mixtures.items()]


def speed(work: Workload, program: Program, task: Task, region: Elements) -> dict[str, float]:
    """Median seconds of one frame, one thread, alternating."""
    number = program.tasks.index(task)

    def torch_frame() -> None:
        with torch.no_grad():
            work.model(work.image, number)

    times: dict[str, list[float]] = {"interpreter_seconds": [], "torch_seconds": []}
    frames: dict[str, Callable[[], object]] = {
        "interpreter_seconds": lambda: execute(program, task.name, region),
        "torch_seconds": torch_frame,
    }
    for _ in range(REPEATS):
        for key, frame in frames.items():
            begin = time.perf_counter()
            frame()
            times[key].append(time.perf_counter() - begin)
    return {key: round(statistics.median(values), 4) for key, values in times.items()}


# --- All of it ---


@app.command()
def main(
    configs: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(CONFIGS)}; all if none is named")] = None,
    latency: Annotated[list[int] | None, typer.Option(help="cycles to the first beat of a burst")] = None,
    top_k: int = 2,
    results: Path = RESULTS,
) -> None:
    """Measure, write the results, print them beside the published ones; docs/benchmarks.md shows the usual file's."""
    torch.set_num_threads(1)
    typer.echo("compile: capture and quantise")
    work = workload(top_k)
    kept = json.loads(results.read_text())["configs"] if results.exists() else []
    for name in configs or CONFIGS:
        begin = time.perf_counter()
        program = schedule(work.quantised, CONFIGS[name])
        typer.echo(f"{name}: schedule {time.perf_counter() - begin:.1f} s")
        for number, task in enumerate(program.tasks):
            expected = reference(work, program, task)
            common: dict[str, Any] = {"loads_as_published": routed_as_published(work, expected, number)}
            common |= speed(work, program, task, expected.region)
            for cycles in latency or LATENCIES:
                row = measure(name, program, task, cycles, expected) | common
                typer.echo(json.dumps(row))
                kept = [other for other in kept if _key(other) != _key(row)] + [row]
                save(results, kept)
    Console().print(Markdown(table(kept)))
    if results == RESULTS:
        write(PAGE, "benchmarks.run", table(kept))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["config"], row["task"], row["memory_latency"]


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in order, each with what `benchmarks.area` has measured last."""
    for row in rows:
        area = measured(row["config"])
        row |= {name: area and getattr(area, name) for name in ("dsp", "bram", "lut", "ff", "fmax_mhz", "routed")}
    order = {name: i for i, name in enumerate(CONFIGS)}
    rows.sort(key=lambda row: (order.get(row["config"], len(order)), row["task"] != TASKS[0], row["memory_latency"]))
    command = " ".join(["python -m benchmarks.run", *sys.argv[1:]])
    content = {"command": command, "date": datetime.now(UTC).date().isoformat(), "configs": rows}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the measured rows, the published ones, and what none of this shows."""
    columns = (
        "system", "task", "memory latency", "cycles", "RTL = interpreter", "MAC per multiplier and cycle",
        "share of roofline", "DSP", "MAC per DSP and cycle", "BRAM", "kLUT", "kFF", "MHz",
    )  # fmt: skip
    lines = [_line(columns), _line(["---", "---", *["--:"] * (len(columns) - 2)])]
    for row in rows:
        dsp = row["dsp"]
        per_dsp = round(row["macs"] / row["cycles"] / dsp, 2) if dsp else None
        lines.append(
            _line([
                row["config"], row["task"], row["memory_latency"], f"{row['cycles']:,}",
                "identical" if row["identical"] else "DIFFERENT", f"{row['utilisation']:.3f}",
                f"{row['roofline_share']:.3f}", _shown(dsp), _shown(per_dsp), _shown(row["bram"]),
                _thousands(row["lut"]), _thousands(row["ff"]), _shown(row["fmax_mhz"]),
            ])
        )  # fmt: skip
    for name, (milliseconds, dsp) in PUBLISHED.items():
        cycles = milliseconds * 1e-3 * MEGAHERTZ * 1e6
        per_dsp = round(MACS / cycles / dsp, 2) if dsp else None
        lines.append(
            _line([
                f"{name}, published", "", "", f"{cycles:,.0f}", "", "", "", _shown(dsp), _shown(per_dsp), "", "", "",
                MEGAHERTZ,
            ])
        )  # fmt: skip
    return "\n".join([*lines, "", NOTES, ""])


NOTES = """\
Measured here: cycles of whole frames on the RTL, simulated cycle by cycle, every output element compared with the
reference interpreter; area by Yosys; MHz by nextpnr where it is given (ECP5, 60 were asked for). BRAM is BRAM36 on
Xilinx devices, DP16KD on ECP5. Empty fields have not been measured.

Not measured: no board ran this, no vendor tool timed it. The published systems ran on a ZCU102 at 300 MHz; our Xilinx
rows have no clock frequency, so cycles compare, milliseconds do not. The weights are random, with the trained model's
expert loads and activation ranges, so that this says nothing of accuracy. The memory is ideal but for its latency: a
beat a cycle once a burst runs."""


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _thousands(value: float | None) -> str:
    return "" if value is None else f"{value / 1e3:.1f}"


if __name__ == "__main__":
    app()
