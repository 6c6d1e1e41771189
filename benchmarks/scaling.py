"""Cycles of M3ViT-T against tokens, experts and multipliers: `python -m benchmarks.scaling`, docs/scaling.png.

From the cycle model, which counts as the RTL does; tokens are spread evenly over the experts, so that lengths other
than the published ones compare. Every size but the one in question is the reference workload's, on `zcu102`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from benchmarks.configs import CONFIGS
from benchmarks.m3vit_t.model import TASKS, M3ViT
from benchmarks.m3vit_t.weights import SEED, draw, picture
from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.machine.commands import Kind, Queue
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import schedule
from patchloom.sim.cycles import predict

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PICTURE = Path(__file__).parent.parent / "docs" / "scaling.png"
LATENCY = 40

PICTURES = {65: (128, 128), 129: (128, 256), 257: (256, 256), 513: (256, 512)}  # tokens: height, width
EXPERTS = (4, 16, 64)
ARRAYS = ((8, 8, 64), (16, 16, 128), (32, 32, 512), (64, 32, 512), (64, 64, 512))  # inputs, outputs, bus
ROOM: dict[str, Any] = {"scratchpad_chunks": 1 << 17, "max_rows": 1024, "statistics_rows": 2048, "max_experts": 64}


@dataclass(frozen=True)
class Point:
    tokens: int
    experts: int
    multipliers: int
    cycles: int
    macs: int
    weight_bytes: int
    roofline: int  # cycles that multipliers or bus take at the least


def quantised(tokens: int = 129, experts: int = 16) -> Quantised:
    """The workload with random weights, one task; cycles depend on nothing else."""
    height, width = PICTURES[tokens]
    model = M3ViT(experts=experts, height=height, width=width).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        draw(model, generator)
        image = picture(model, generator)
    graphs = capture(model, (image, 0), tasks=TASKS[:1])
    return quantise(graphs, {"image": image.numpy()}, Precision.parse("w8a8"))


def spread(program: Program) -> list[list[int]]:
    """As many tokens for each expert as for the next."""
    routes = [command for command in program.tasks[0].commands if command.kind == Kind.ROUTE]
    return [
        [(c.rows * c.top_k + expert) // c.columns for expert in range(c.columns)]
        for c in routes
    ]  # fmt: skip


def point(model: Quantised, config: Config) -> Point:
    program = schedule(model, config)
    [task] = program.tasks
    queues = spread(program)
    cycles = predict(program, task.name, queues=queues, latency=LATENCY).cycles
    products = [c for c in task.commands if c.kind == Kind.MATMUL and c.dma_beats]
    beats = sum(c.dma_beats for c in products)
    multipliers = config.inputs * config.outputs
    tokens = max(c.rows for c in products)
    experts = 1 + max(c.expert for c in products if c.queue != Queue.NONE)
    bound = max(task.macs // multipliers, beats)
    return Point(tokens, experts, multipliers, cycles, task.macs, beats * config.beat_bytes, bound)


def measure() -> dict[str, list[dict[str, Any]]]:
    wide = replace(CONFIGS["zcu102"], command_depth=1024, **ROOM)
    base = quantised()
    sweeps: dict[str, list[Point]] = {"tokens": [], "experts": [], "multipliers": []}
    for inputs, outputs, bus in ARRAYS:
        config = replace(wide, inputs=inputs, outputs=outputs, lanes=min(outputs, 32), bus_width=bus)
        sweeps["multipliers"].append(shown(point(base, config)))
    for tokens in PICTURES:
        sweeps["tokens"].append(shown(point(base if tokens == 129 else quantised(tokens=tokens), wide)))
    for experts in EXPERTS:
        sweeps["experts"].append(shown(point(base if experts == 16 else quantised(experts=experts), wide)))
    return {name: [vars(p) for p in points] for name, points in sweeps.items()}


def shown(found: Point) -> Point:
    print(found, flush=True)
    return found


def draw_picture(sweeps: dict[str, list[dict[str, Any]]]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, (name, points) in zip(axes, sweeps.items(), strict=True):
        x = [p[name] for p in points]
        axis.loglog(x, [p["cycles"] for p in points], "o-", color="#1b6ca8", label="cycles")
        axis.loglog(x, [p["roofline"] for p in points], "--", color="#999999", label="roofline: multipliers or bus")
        axis.set_xticks(x, [f"{value}" for value in x])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.grid(visible=True, color="#eeeeee")
        for p in points:
            share = p["macs"] / p["cycles"] / p["multipliers"]
            axis.annotate(f"{share:.0%}", (p[name], p["cycles"]), (0, 7), textcoords="offset points", ha="center")
    axes[0].set_ylabel("cycles a frame")
    axes[0].legend(frameon=False)
    figure.suptitle("M3ViT-T, w8a8; the figure at each point is MACs per multiplier and cycle")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    found = measure()
    RESULTS.write_text(
        json.dumps({"command": "python -m benchmarks.scaling", "latency": LATENCY} | found, indent=1) + "\n"
    )
    draw_picture(found)
