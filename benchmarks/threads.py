"""How fast a frame is with all threads of a machine and with one: `python -m benchmarks.threads PROGRAM`.

A saved Program runs frames of random inputs on the interpreter, in processes that have OMP_NUM_THREADS=1 and in ones
that have no such limit, in turn. Needs the base install alone. Prints JSON; `--output FILE` writes it too.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import patchloom
from patchloom.compiler.machine.program import Task

FRAMES = 5  # of a process, after one that warms up
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def inputs(task: Task) -> dict[str, Any]:
    """Inside of what calibration saw."""
    rng = np.random.default_rng(0)
    limit = {port.name: 2.0 ** (port.width - 1 - port.fraction) for port in task.inputs}
    return {port.name: rng.uniform(-1, 1, port.shape) * limit[port.name] * 0.9 for port in task.inputs}


def frame_seconds(folder: Path) -> float:
    """The median of a few frames."""
    program = patchloom.load(folder)
    task = program.tasks[0]
    sample, seconds = inputs(task), []
    for _ in range(1 + FRAMES):
        begin = time.perf_counter()
        patchloom.run(program, sample, task=task.name)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def in_a_process(folder: Path, *, one_thread: bool) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in LIMITS}
    if one_thread:
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "benchmarks.threads", str(folder), "--inner"]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def measure(folder: Path, pairs: int) -> dict[str, Any]:
    free, one = [], []
    for _ in range(pairs):
        one.append(in_a_process(folder, one_thread=True))
        free.append(in_a_process(folder, one_thread=False))
    return {
        "command": f"python -m benchmarks.threads {folder.name}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "frame_seconds": statistics.median(free),
        "frame_seconds_of_one_thread": statistics.median(one),
        "ratio": statistics.median(f / o for f, o in zip(free, one, strict=True)),
        "ratios": [f / o for f, o in zip(free, one, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="a saved Program")
    parser.add_argument("--pairs", type=int, default=7, help="of processes")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        sys.stdout.write(f"{frame_seconds(options.program)}\n")
        return
    text = json.dumps(measure(options.program, options.pairs), indent=1) + "\n"
    sys.stdout.write(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
