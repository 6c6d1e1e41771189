"""Interpreter, HLS kernels and RTL, element for element, and how long a frame takes: `python -m benchmarks.hls`.

Writes benchmarks/results/hls.json. Every part can be run alone, and keeps what the others have written.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.configs import CONFIGS
from benchmarks.run import Workload, reference, workload
from examples.fashion_scenes.evaluate import HERE, load_scenes, network_input
from patchloom.compiler.machine.frames import input_frames, input_region
from patchloom.compiler.machine.program import Program
from patchloom.compiler.schedule import schedule
from patchloom.design import compile_design, load_design
from patchloom.host.session import Session
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.hls import WARNINGS, HlsMachine, build, write_project
from patchloom.sim.interpret import execute
from tests.sim.models import TASKS, Model
from tests.sim.test_machine import CONFIGS as SMALL
from tests.sim.test_machine import PRECISIONS

RESULTS = Path(__file__).parent / "results" / "hls.json"
SCENES, RTL_SCENES, MODELS, REPEATS = 64, 2, 200, 3
# Left shifts of negative numbers, of which the vendor's headers are full, are defined in C++20.
SANITIZED = ("g++", "-std=c++20", "-O1", *WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

Elements = NDArray[np.int16]
Frame = tuple[Elements, int]  # output, saturations
Row = dict[str, Any]


def timed(run: Callable[[], Frame]) -> tuple[Frame, float]:
    begin = time.perf_counter()
    frame = run()
    return frame, time.perf_counter() - begin


def same(frames: list[Frame]) -> bool:
    first, *others = frames
    return all(np.array_equal(first[0], output) and first[1] == count for output, count in others)


def compare(program: Program, task: str, regions: list[Elements], rtl_frames: int) -> Row:
    """The first frames on all three engines, the others on two; seconds are the best of each."""
    machine, identical, elements, saturations = HlsMachine(program), True, 0, 0
    seconds: dict[str, list[float]] = {"interpreter": [], "hls": [], "rtl": []}
    for number, region in enumerate(regions):
        engines: dict[str, Callable[[], Frame]] = {
            "interpreter": lambda region=region: execute(program, task, region),  # type: ignore[misc]
            "hls": lambda region=region: machine.run(region, task),  # type: ignore[misc]
        }
        if number < rtl_frames:
            engines["rtl"] = lambda region=region: on_rtl(program, task, region)  # type: ignore[misc]
        frames = []
        for name, engine in engines.items():
            frame, took = timed(engine)
            frames.append(frame)
            seconds[name].append(took)
        identical &= same(frames)
        elements += frames[0][0].size
        saturations += frames[0][1]
    best = {f"{name}_seconds": round(min(times), 4) for name, times in seconds.items() if times}
    counts = {"frames": len(regions), "rtl_frames": rtl_frames, "elements": elements, "saturations": saturations}
    return {"task": task, "identical": identical, **counts, **best}


def on_rtl(program: Program, task: str, region: Elements) -> Frame:
    with SimulatedDevice(program.config) as device, Session(device, program) as session:
        output, _, saturations = session.frame(region, task)
    return output, saturations


# --- The parts ---


def m3vit(work: Workload, config: str, rtl: bool) -> Row:
    """The reference workload's frame."""
    program = schedule(work.quantised, CONFIGS[config])
    _, seconds = timed(lambda: (build(program.config), 0))  # type: ignore[arg-type, return-value]
    rows = []
    for task in program.tasks:
        region, _ = input_region(task, {"image": work.image[0].numpy()})
        rows.append(compare(program, task.name, [region] * REPEATS, int(rtl)))
    return {"config": config, "compile_seconds": round(seconds, 1), "tasks": rows}


def scenes_program() -> Program:
    return compile_design(load_design(HERE / "design.yaml"))


def scenes(rtl: bool) -> Row:
    """The trained example's held-back scenes."""
    program, images = scenes_program(), network_input(load_scenes().images[:SCENES])
    rows = []
    for task in program.tasks:
        regions = [input_region(task, frame)[0] for frame in input_frames(task, images)[0]]
        rows.append(compare(program, task.name, regions, RTL_SCENES if rtl else 0))
    return {"tasks": rows}


def models(count: int, rtl: bool) -> Row:
    """Random small models, machines and precisions in turns, both tasks."""
    total: Row = {"models": count, "identical": True, "frames": 0, "elements": 0, "saturations": 0, "rtl": rtl}
    machines = list(SMALL.values())
    for seed in range(count):
        model, config = Model(seed), machines[seed % len(machines)]
        program = model.compiled(config, PRECISIONS[seed // len(machines) % len(PRECISIONS)])
        for number, task in enumerate(TASKS):
            row = compare(program, task, [model.region(program, number, seed % 8)], int(rtl))
            total["identical"] &= row["identical"]
            total |= {key: total[key] + row[key] for key in ("frames", "elements", "saturations")}
    return total


def sanitized(program: Program, regions: dict[str, Elements]) -> Row:
    """Whole frames of a project's test bench under the address and undefined behaviour sanitizers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project"
        write_project(program, regions, path)
        command = [*SANITIZED, "-isystem", "ap_types", "-o", "bench", "testbench.cpp", "top.cpp"]
        built = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
        ran = subprocess.run(["./bench"], cwd=path, capture_output=True, text=True, check=False)
    clean = (built.returncode, built.stderr, ran.returncode, ran.stderr) == (0, "", 0, "")
    return {"tasks": list(regions), "clean": clean, "said": (built.stderr + ran.stderr)[:2000]}


def sanitize_scenes() -> Row:
    program, images = scenes_program(), network_input(load_scenes().images[:1])
    regions = {task.name: input_region(task, input_frames(task, images)[0][0])[0] for task in program.tasks}
    return sanitized(program, regions)


def sanitize_m3vit(work: Workload, config: str) -> Row:
    program = schedule(work.quantised, CONFIGS[config])
    return sanitized(program, {task.name: reference(work, program, task).region for task in program.tasks})


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(help="of m3vit, scenes, models, sanitize, sanitize-m3vit")
    ] = None,
    config: str = "mid",
    count: int = MODELS,
    rtl: Annotated[bool, typer.Option(help="Run the RTL beside the others.")] = True,
    results: Path = RESULTS,
) -> None:
    """Compare, write the results, print them."""
    torch.set_num_threads(1)
    known: dict[str, Callable[[], Row]] = {
        "m3vit": lambda: m3vit(workload(), config, rtl),
        "scenes": lambda: scenes(rtl),
        "models": lambda: models(count, rtl),
        "sanitize": sanitize_scenes,
        "sanitize-m3vit": lambda: sanitize_m3vit(workload(), config),
    }
    for part in parts or known:
        row = known[part]()
        kept = json.loads(results.read_text()) if results.exists() else {}
        command = " ".join(["python -m benchmarks.hls", *sys.argv[1:]])
        kept[part] = {"command": command, "date": datetime.now(UTC).date().isoformat(), **row}
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(kept, indent=1) + "\n")
        typer.echo(json.dumps({part: row}))


if __name__ == "__main__":
    typer.run(main)
